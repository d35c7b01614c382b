"""A dollar without EIP-3009 on the development chain: the unmodified SDK pays our node by Permit2
as its 402 says, and our payer's deposits by Permit2 are the SDK's."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import httpx
import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.http.utils import encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement.client import BatchSettlementEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_CHAIN_ID, DEV_DOLLAR_ADDRESS
from inferpool.chain.authorization import permit_deposit
from inferpool.chain.base import Permit2Deposit
from inferpool.chain.client import EvmChain
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.rpc import Rpc
from inferpool.clock import SystemClock
from inferpool.gateway.deposits import WITHOUT_END, Deposits
from inferpool.identity.signing import Key
from inferpool.payments.payer import PayerChannel
from inferpool.payments.x402 import Payment, parse_payment
from inferpool.protocol.encoding import from_hex, to_hex
from inferpool.protocol.errors import Refused, Unavailable
from inferpool.protocol.voucher import PERMIT2_ADDRESS, ChannelConfig
from inferpool.sim.parts import SimNode
from tests.chain.test_x402 import DEPOSIT, NETWORK, PRICE, paid_by_us, requirements, shop, terms_of
from tests.chain.test_x402 import chain_url as chain_url
from tests.gateway.walkers import chat_body

BY_SIGNATURE = ("authorizationState", "transferWithAuthorization", "receiveWithAuthorization")
OWNER = DEV_KEYS[5]


def plain_dollar() -> bytes:
    """The test dollar's code, in whose table of functions EIP-3009's are not found any more."""
    code = contract("TestDollar").runtime
    for name in BY_SIGNATURE:
        selector = contract("TestDollar").functions[name].selector
        assert code.count(selector) == 1, name
        code = code.replace(selector, b"\xff" * 3 + selector[3:])
    return code


@pytest.fixture
def plain_url(chain_url: str, run) -> Iterator[str]:
    """A chain whose test dollar has no EIP-3009."""

    async def cut() -> None:
        chain = await EvmChain.connect(chain_url)
        assert await chain.takes_authorizations(DEV_DOLLAR_ADDRESS)
        await chain.rpc.call("anvil_setCode", to_hex(DEV_DOLLAR_ADDRESS), to_hex(plain_dollar()))
        assert not await chain.takes_authorizations(DEV_DOLLAR_ADDRESS)
        with pytest.raises(Refused, match="no contract"):
            await chain.takes_authorizations(OWNER.address)

    run(cut())
    return chain_url


async def funded(url: str, payer: Key) -> EvmChain:
    chain = await EvmChain.connect(url, sender=DEV_KEYS[2])
    await chain.faucet(payer.address, 10**18, 10 * DEPOSIT)
    return chain


async def allow(chain: EvmChain, payer: Key) -> None:
    await chain.with_sender(payer).approve(DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, WITHOUT_END)


def test_the_sdk_pays_our_node_by_permit2_as_its_402_says(plain_url, run, roles) -> None:
    async def live() -> None:
        chain = await funded(plain_url, roles.payer)
        await chain.faucet(OWNER.address, 10**18, 0)
        node = SimNode("node", 7, "http://node.test", SystemClock(), chain, Random(7))
        # The node's key sends deposits and claims, and takes gas for it.
        await node.start()
        await chain.faucet(node.node.key.address, 10**18, 0)
        client = x402Client()
        scheme = BatchSettlementEvmScheme(
            EthAccountSigner(Account.from_key(to_hex(roles.payer.secret)))
        )
        client.register(NETWORK, scheme)
        client.set_spend_controls(False)
        transport = x402AsyncTransport(client, httpx.ASGITransport(app=node.app))
        async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as http:
            refused = await http.post("/v1/chat/completions", json=chat_body())
            assert refused.status_code == 402, "Permit2 has no allowance yet"
            assert "allowance" in refused.json()["error"]["message"]
            await allow(chain, roles.payer)
            for _ in range(2):
                answer = await http.post("/v1/chat/completions", json=chat_body())
                assert answer.status_code == 200, answer.text
        (channel,) = node.node.ledger.channels.values()
        state = await chain.channel(channel.channel_id)
        assert state.balance == channel.balance > 0
        left = await chain.token_balance(DEV_DOLLAR_ADDRESS, roles.payer.address)
        assert left == 10 * DEPOSIT - state.balance
        report = await node.claimer.claim()
        assert report.claimed == channel.earned > 0

    run(live())


def config_of(roles, terms, salt: int) -> ChannelConfig:
    return ChannelConfig(
        payer=roles.payer.address,
        payer_authorizer=roles.authorizer.address,
        receiver=DEV_KEYS[1].address,
        receiver_authorizer=from_hex(terms.extra["receiverAuthorizer"].lower(), 20),
        token=DEV_DOLLAR_ADDRESS,
        withdraw_delay_s=int(terms.extra["withdrawDelay"]),
        salt=salt.to_bytes(32, "big"),
    )


def test_our_payers_deposit_by_permit2_pays_the_sdks_server(plain_url, run, roles) -> None:
    """Deposited by us, with an allowance that is given when the first one needs it."""
    made = shop(plain_url, roles.payer.secret)
    (terms,) = requirements(made)
    config = config_of(roles, terms, 1)
    channel = PayerChannel(config, config.channel_id(DEV_CHAIN_ID), DEV_CHAIN_ID, 6)

    async def live() -> None:
        chain = await funded(plain_url, roles.payer)
        allowed: list[bytes] = []

        async def give(token: bytes) -> None:
            allowed.append(token)
            await allow(chain, roles.payer)

        deposits = Deposits(chain, roles.payer, give)
        for salt in (1, 2):
            now_s = await chain.now_s()
            permit = await deposits.authorise(
                config, DEPOSIT, terms_of(channel, terms), salt, now_s
            )
            await chain.deposit(config, DEPOSIT, permit)
        assert allowed == [DEV_DOLLAR_ADDRESS], "once"
        channel.balance = (await chain.channel(channel.channel_id)).balance
        assert channel.balance == 2 * DEPOSIT
        payload = paid_by_us(channel, roles.authorizer, b"\1" * 32, terms)
        verified = await made.server.verify_payment(payload, terms)
        assert verified.is_valid, verified
        settled = await made.server.settle_payment(payload, terms)
        assert settled.success, settled
        await made.channels.claim()
        assert (await chain.channel(channel.channel_id)).total_claimed == PRICE

    run(live())


def test_our_payer_signs_what_the_sdks_client_signs(plain_url, run, roles) -> None:
    """Byte for byte, for the same nonce and time."""
    (eip3009,) = requirements(shop(plain_url, roles.payer.secret))
    extra = {**eip3009.extra, "assetTransferMethod": "permit2"}
    terms = eip3009.model_copy(update={"extra": extra})
    scheme = BatchSettlementEvmScheme(EthAccountSigner(Account.from_key(roles.payer.secret)))
    payload = scheme.create_payment_payload(terms)
    wire = PaymentPayload(payload=payload, accepted=terms)
    theirs = parse_payment(encode_payment_signature_header(wire).encode())
    assert isinstance(theirs, Payment)
    permit = theirs.authorization
    assert isinstance(permit, Permit2Deposit)
    ours = permit_deposit(
        roles.payer,
        theirs.config,
        theirs.deposit_amount,
        chain_id=DEV_CHAIN_ID,
        deadline_s=permit.deadline_s,
        nonce=permit.nonce,
    )
    assert ours == permit


def test_trouble_is_not_taken_for_a_token_without_eip_3009(run) -> None:
    async def busy(url: str, body: bytes) -> bytes:
        return b'{"jsonrpc":"2.0","id":1,"error":{"code":-32016,"message":"over rate limit"}}'

    chain = EvmChain(Rpc("http://busy.test", busy), DEV_CHAIN_ID)
    with pytest.raises((Refused, Unavailable), match="rate limit"):
        run(chain.takes_authorizations(DEV_DOLLAR_ADDRESS))
