"""The unmodified x402 SDK on the development chain: it signs what we sign, and its sends work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from eth_account import Account
from x402 import x402Client, x402Facilitator, x402ResourceServer
from x402.http.utils import decode_payment_signature_header, encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement import encoding, utils
from x402.mechanisms.evm.batch_settlement.authorizer_signer import (
    LocalAuthorizerSigner,
    sign_claim_batch,
    sign_refund,
)
from x402.mechanisms.evm.batch_settlement.client import (
    BatchSettlementEvmScheme as ClientScheme,
)
from x402.mechanisms.evm.batch_settlement.facilitator import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.server import (
    BatchSettlementEvmScheme as ServerScheme,
)
from x402.mechanisms.evm.batch_settlement.server import BatchSettlementEvmSchemeServerConfig
from x402.mechanisms.evm.batch_settlement.server.channel_manager import (
    BatchSettlementChannelManager,
)
from x402.mechanisms.evm.batch_settlement.server.channel_manager_common import (
    ChannelManagerConfig,
)
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig, VoucherClaim
from x402.mechanisms.evm.signers import EthAccountSigner, FacilitatorWeb3Signer
from x402.schemas import (
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceConfig,
    ResourceInfo,
)

from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS
from inferpool.chain.authorization import (
    authorize_deposit,
    claim_batch_digest,
    deposit_nonce,
    refund_digest,
)
from inferpool.chain.base import Permit2Deposit, TransactionReceipt
from inferpool.chain.client import EvmChain
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.identity.signing import Key
from inferpool.payments.payer import PayerChannel
from inferpool.payments.x402 import Payment, parse_payment, payment_signature
from inferpool.protocol.encoding import from_hex, to_checksum, to_hex
from inferpool.protocol.offer import Terms
from inferpool.protocol.voucher import PERMIT2_ADDRESS
from inferpool.protocol.voucher import ChannelConfig as OurConfig

NETWORK = f"eip155:{DEV_CHAIN_ID}"
PRICE = 1_000
DEPOSIT = 10 * PRICE  # the SDK's own multiple


@pytest.fixture
def chain_url() -> Iterator[str]:
    command = [sys.executable, "-m", "inferpool.chain.devchain", "--port", "0", "--announce"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"]
    process.terminate()
    process.wait()
    process.stdout.close()


@dataclass
class Shop:
    """An SDK server with its facilitator, and an SDK client who buys."""

    server: x402ResourceServer
    channels: BatchSettlementChannelManager
    client: x402Client
    scheme: ServerScheme

    async def buy(self, requirements: list[PaymentRequirements]) -> PaymentPayload:
        """One paid request, without the HTTP around it."""
        required = PaymentRequired(
            accepts=requirements, resource=ResourceInfo(url="http://shop.example/answer")
        )
        payload = await self.client.create_payment_payload(required)
        verified = await self.server.verify_payment(payload, requirements[0])
        assert verified.is_valid, verified
        settled = await self.server.settle_payment(payload, requirements[0])
        assert settled.success, settled
        return payload


def shop(url: str, payer_secret: bytes) -> Shop:
    secret = to_hex(DEV_KEYS[1].secret)  # receives, authorises claims, pays gas
    authorizer = LocalAuthorizerSigner(secret)
    facilitator = x402Facilitator()
    facilitator.register(
        [NETWORK], BatchSettlementEvmFacilitator(FacilitatorWeb3Signer(secret, url))
    )
    scheme = ServerScheme(
        authorizer.address,
        BatchSettlementEvmSchemeServerConfig(receiver_authorizer_signer=authorizer),
    )
    server = x402ResourceServer(facilitator)
    server.register(NETWORK, scheme)
    server.initialize()
    channels = BatchSettlementChannelManager(
        ChannelManagerConfig(
            scheme=scheme,
            facilitator=facilitator,
            receiver=authorizer.address,
            token=to_checksum(DEV_DOLLAR_ADDRESS),
            network=NETWORK,
        )
    )
    client = x402Client()
    client.register(NETWORK, ClientScheme(EthAccountSigner(Account.from_key(payer_secret))))
    client.set_spend_controls(False)
    return Shop(server, channels, client, scheme)


def requirements(made: Shop) -> list[PaymentRequirements]:
    config = ResourceConfig(
        scheme="batch-settlement",
        pay_to=to_checksum(DEV_KEYS[1].address),
        price={
            "amount": str(PRICE),
            "asset": to_checksum(DEV_DOLLAR_ADDRESS),
            "extra": {"name": "Dev Dollar", "version": "1"},
        },
        network=NETWORK,
        max_timeout_seconds=60,
    )
    built: list[PaymentRequirements] = made.server.build_payment_requirements(config)
    return built


def test_the_sdk_deposits_claims_settles_and_refunds(chain_url, run, roles) -> None:
    payer, receiver = roles.payer.address, DEV_KEYS[1].address
    made = shop(chain_url, roles.payer.secret)

    async def live() -> None:
        chain = await EvmChain.connect(chain_url)
        await chain.faucet(payer, 10**18, 10 * DEPOSIT)

        async def balances() -> tuple[int, int]:
            return (
                await chain.token_balance(DEV_DOLLAR_ADDRESS, payer),
                await chain.token_balance(DEV_DOLLAR_ADDRESS, receiver),
            )

        payer_before, receiver_before = await balances()
        payload = await made.buy(requirements(made))
        config = OurConfig.from_wire(payload.payload["channelConfig"])
        channel_id = config.channel_id(DEV_CHAIN_ID)
        assert (await chain.channel(channel_id)).balance == DEPOSIT
        assert await balances() == (payer_before - DEPOSIT, receiver_before)
        (claimed,) = await made.channels.claim()
        assert claimed.transaction
        assert (await chain.channel(channel_id)).total_claimed == PRICE
        await made.channels.settle()
        assert await balances() == (payer_before - DEPOSIT, receiver_before + PRICE)
        await made.channels.refund()
        assert await balances() == (payer_before - PRICE, receiver_before + PRICE)

    run(live())


def test_a_deposit_that_the_sdks_client_permits_is_read_and_sent(chain_url, run, roles) -> None:
    """By our Permit2 and collector; the SDK's own facilitator sends the same bytes."""
    made = shop(chain_url, roles.payer.secret)
    (eip3009,) = requirements(made)
    extra = {**eip3009.extra, "assetTransferMethod": "permit2"}
    terms = eip3009.model_copy(update={"extra": extra})
    scheme = ClientScheme(EthAccountSigner(Account.from_key(roles.payer.secret)))
    wire = PaymentPayload(payload=scheme.create_payment_payload(terms), accepted=terms)
    ours = parse_payment(encode_payment_signature_header(wire).encode())
    assert isinstance(ours, Payment)
    permit = ours.authorization
    assert isinstance(permit, Permit2Deposit)
    theirs = encoding.build_permit2_collector_data(
        str(permit.nonce), str(permit.deadline_s), to_hex(permit.signature)
    )
    sent: list[bytes] = []

    class Spy(EvmChain):
        async def _settlement(self, name: str, *arguments: object) -> TransactionReceipt:
            sent.append(arguments[3])
            return await super()._settlement(name, *arguments)

    async def live() -> None:
        chain = await Spy.connect(chain_url, sender=DEV_KEYS[2])
        await chain.faucet(roles.payer.address, 10**18, 10 * DEPOSIT)
        payer = chain.with_sender(roles.payer)
        await payer.approve(DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, 2**256 - 1)
        await chain.deposit(ours.config, ours.deposit_amount, permit)
        state = await chain.channel(ours.voucher.channel_id)
        assert state.balance == ours.deposit_amount == DEPOSIT

    run(live())
    assert sent == [theirs]


def paid_by_us(
    channel: PayerChannel, authorizer: Key, request_id: bytes, terms: PaymentRequirements
) -> PaymentPayload:
    """Our header for one request on the SDK server's terms, as the SDK reads it."""
    voucher = channel.authorise(request_id, PRICE, authorizer)
    ours = terms_of(channel, terms)
    header = payment_signature(channel.config, voucher, ours, PRICE)
    found: PaymentPayload = decode_payment_signature_header(header.decode())
    return found


def terms_of(channel: PayerChannel, terms: PaymentRequirements) -> Terms:
    return Terms(
        chain_id=DEV_CHAIN_ID,
        asset=channel.config.token,
        asset_name=terms.extra["name"],
        asset_version=terms.extra["version"],
        asset_decimals=6,
        payee=channel.config.receiver,
        receiver_authorizer=channel.config.receiver_authorizer,
        min_deposit=int(terms.extra["minDeposit"]),
        withdraw_delay_s=channel.config.withdraw_delay_s,
    )


def test_our_payer_pays_the_sdks_server(chain_url, run, roles) -> None:
    """Our deposit, our vouchers, our header; the SDK's server checks, claims and settles them."""
    receiver = DEV_KEYS[1].address
    made = shop(chain_url, roles.payer.secret)
    (terms,) = requirements(made)
    config = OurConfig(
        payer=roles.payer.address,
        payer_authorizer=roles.authorizer.address,
        receiver=receiver,
        receiver_authorizer=from_hex(terms.extra["receiverAuthorizer"].lower(), 20),
        token=DEV_DOLLAR_ADDRESS,
        withdraw_delay_s=int(terms.extra["withdrawDelay"]),
        salt=bytes(31) + b"\1",
    )
    channel_id = config.channel_id(DEV_CHAIN_ID)
    channel = PayerChannel(config, channel_id, DEV_CHAIN_ID, 6)

    async def live() -> None:
        chain = await EvmChain.connect(chain_url, sender=DEV_KEYS[2])
        await chain.faucet(roles.payer.address, 0, DEPOSIT)
        permit = authorize_deposit(
            roles.payer,
            config,
            DEPOSIT,
            chain_id=DEV_CHAIN_ID,
            name="Dev Dollar",
            version="1",
            valid_before_s=2**40,
            salt=1,
        )
        await chain.deposit(config, DEPOSIT, permit)
        channel.balance = DEPOSIT
        before = await chain.token_balance(DEV_DOLLAR_ADDRESS, receiver)
        for number in range(1, 4):
            request_id = bytes([number]) * 32
            payload = paid_by_us(channel, roles.authorizer, request_id, terms)
            verified = await made.server.verify_payment(payload, terms)
            assert verified.is_valid, verified
            settled = await made.server.settle_payment(payload, terms)
            assert settled.success, settled
            # It charges the maximum; its answer is what our side books.
            channel.release(request_id, sent=False)
            channel.total_pico_usd += PRICE * 10**6
        forged = paid_by_us(channel, roles.liar, b"\7" * 32, terms)
        assert not (await made.server.verify_payment(forged, terms)).is_valid
        await made.channels.claim()
        await made.channels.settle()
        assert (await chain.channel(channel_id)).total_claimed == 3 * PRICE
        ours = channel.refund_request(roles.authorizer, terms_of(channel, terms))
        asked = decode_payment_signature_header(ours.decode())
        asked.accepted = terms  # as it was announced, to the last field
        verified = await made.server.verify_payment(asked, terms)
        assert verified.is_valid, verified
        settled = await made.server.settle_payment(asked, terms)
        assert settled.success, settled
        assert await chain.token_balance(DEV_DOLLAR_ADDRESS, roles.payer.address) == (
            DEPOSIT - 3 * PRICE
        ), "what was not used came back at once"
        after = await chain.token_balance(DEV_DOLLAR_ADDRESS, receiver)
        assert after == before + 3 * PRICE

    run(live())


def test_our_digests_are_the_sdks(roles, dev_world) -> None:
    config = dev_world.config()
    sdk_config = ChannelConfig.from_dict(config.to_wire())
    channel_id = utils.compute_channel_id(sdk_config, DEV_CHAIN_ID)
    assert from_hex(channel_id, 32) == config.channel_id(DEV_CHAIN_ID)
    nonce = encoding.build_erc3009_deposit_nonce(channel_id, hex(77))
    assert from_hex(nonce, 32) == deposit_nonce(from_hex(channel_id, 32), 77)
    signer = LocalAuthorizerSigner(to_hex(roles.operator.secret))
    claims = [dev_world.claim(config, 900, 800), dev_world.claim(config, 950, 900)]
    rows = [
        VoucherClaim.from_dict(
            {
                "voucher": {
                    "channel": config.to_wire(),
                    "maxClaimableAmount": str(claim.voucher.max_claimable),
                },
                "signature": to_hex(claim.voucher.signature),
                "totalClaimed": str(claim.total_claimed),
            }
        )
        for claim in claims
    ]
    ours = roles.operator.sign(claim_batch_digest(claims, DEV_CHAIN_ID))
    assert from_hex(sign_claim_batch(signer, rows, NETWORK), 65) == ours
    refund = roles.operator.sign(refund_digest(from_hex(channel_id, 32), 3, 44, DEV_CHAIN_ID))
    assert from_hex(sign_refund(signer, channel_id, "44", "3", NETWORK), 65) == refund
