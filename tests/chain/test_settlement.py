"""The settlement contract against those who would take more than was signed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_abi.abi import encode

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.authorization import claim_batch_digest, permit_deposit, refund_digest
from inferpool.chain.base import DepositAuthorization
from inferpool.chain.client import _terms
from inferpool.identity.signing import HALF_ORDER
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.voucher import (
    CHANNELS_ADDRESS,
    COLLECTOR_3009_ADDRESS,
    PERMIT2_ADDRESS,
    WITHDRAW_DELAY_MAX_S,
    WITHDRAW_DELAY_MIN_S,
)

AMOUNT = 1_000_000
ORDER = 2 * HALF_ORDER + 1


def high_s(signature: bytes) -> bytes:
    """The other signature of the same key and digest."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


MALLEABLE = {
    "high s": high_s,
    "v of 0 or 1": lambda signature: signature[:64] + bytes((signature[64] - 27,)),
    "v of 29": lambda signature: signature[:64] + bytes((29,)),
    "64 bytes": lambda signature: signature[:64],
    "compact (EIP-2098)": lambda signature: (
        signature[:32]
        + (int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255).to_bytes(
            32, "big"
        )
    ),
    "empty": lambda signature: b"",
    "zeros": lambda signature: bytes(65),
    "one bit of r": lambda signature: bytes((signature[0] ^ 1,)) + signature[1:],
}


@pytest.fixture
def funded(world):
    config = world.config()
    world.deposit(config, AMOUNT)
    return config


@pytest.mark.parametrize("kind", MALLEABLE)
def test_a_claim_takes_one_form_of_signature(world, funded, refused, kind) -> None:
    claim = world.claim(funded, 5_000)
    altered = replace(claim.voucher, signature=MALLEABLE[kind](claim.voucher.signature))
    reason = refused(world.chain(world.roles.operator).claim([replace(claim, voucher=altered)]))
    assert reason == "InvalidSignature"


@pytest.mark.parametrize("kind", MALLEABLE)
def test_a_batch_takes_one_form_of_signature(world, funded, refused, run, kind) -> None:
    claim = world.claim(funded, 5_000)
    good = world.roles.operator.sign(claim_batch_digest([claim], world.chain_id))
    rows = [((_terms(funded), 5_000), claim.voucher.signature, 5_000)]
    stranger = world.chain(world.roles.stranger)
    work = stranger._settlement("claimWithSignature", rows, MALLEABLE[kind](good))
    assert refused(work) == "InvalidSignature"
    run(stranger._settlement("claimWithSignature", rows, good))


@pytest.mark.parametrize("kind", MALLEABLE)
def test_a_deposit_takes_one_form_of_signature(world, refused, kind) -> None:
    config = world.config()
    good = world.authorization(config, AMOUNT)
    altered = replace(good, signature=MALLEABLE[kind](good.signature))
    reason = refused(world.chain(world.roles.stranger).deposit(config, AMOUNT, altered))
    assert reason == "dollar: invalid signature"


@pytest.mark.parametrize(
    ("ceiling", "total", "signer", "reason"),
    [
        (AMOUNT, AMOUNT, "authorizer", None),
        (AMOUNT + 1, AMOUNT + 1, "authorizer", "ClaimExceedsBalance"),
        (5_000, 5_001, "authorizer", "ClaimExceedsCeiling"),
        (5_000, 5_000, "liar", "InvalidSignature"),
        (5_000, 5_000, "payer", "InvalidSignature"),  # the cold key has handed this over
        (5_000, 5_000, "operator", "InvalidSignature"),
    ],
)
def test_what_a_voucher_allows(world, funded, run, refused, ceiling, total, signer, reason) -> None:
    claim = world.claim(funded, ceiling, total, getattr(world.roles, signer))
    work = world.chain(world.roles.operator).claim([claim])
    if reason is None:
        run(work)
    else:
        assert refused(work) == reason


def test_without_an_authoriser_the_payer_signs_vouchers(world, run, refused) -> None:
    config = world.config(payer_authorizer=bytes(20))
    world.deposit(config, AMOUNT)
    operator = world.chain(world.roles.operator)
    forged = world.claim(config, 5_000, signer=world.roles.liar)
    broken = replace(forged, voucher=replace(forged.voucher, signature=bytes(65)))
    assert refused(operator.claim([forged])) == "InvalidSignature"
    assert refused(operator.claim([broken])) == "InvalidSignature"
    run(operator.claim([world.claim(config, 5_000, signer=world.roles.payer)]))


def test_a_stranger_cannot_claim_or_refund_by_itself(world, funded, refused) -> None:
    claim = world.claim(funded, 5_000)
    rows = [((_terms(funded), 5_000), claim.voucher.signature, 5_000)]
    stranger = world.chain(world.roles.stranger)
    assert refused(stranger._settlement("claim", rows)) == "NotAuthorizedToClaim"
    assert refused(stranger._settlement("refund", _terms(funded), 1)) == "NotAuthorizedToRefund"
    payer = world.chain(world.roles.payer)
    assert refused(payer._settlement("refund", _terms(funded), 1)) == "NotAuthorizedToRefund"


def test_a_batch_of_two_authorisers_is_refused(world, funded, refused) -> None:
    other = world.config(receiver_authorizer=world.roles.liar.address)
    world.deposit(other, AMOUNT)
    stranger = world.chain(world.roles.stranger, world.roles.operator)
    rows = [world.claim(funded, 5_000), world.claim(other, 5_000)]
    assert refused(stranger.claim(rows)) == "NotReceiverAuthorizer"


def test_an_empty_batch_is_refused(world, refused) -> None:
    stranger = world.chain(world.roles.stranger)
    assert refused(stranger._settlement("claim", [])) == "EmptyBatch"
    assert refused(stranger._settlement("claimWithSignature", [], b"")) == "EmptyBatch"


def test_a_signed_refund_is_good_once(world, funded, run, refused) -> None:
    channel_id = funded.channel_id(world.chain_id)
    signature = world.roles.operator.sign(refund_digest(channel_id, 0, 7, world.chain_id))
    stranger = world.chain(world.roles.stranger)
    more = stranger._settlement("refundWithSignature", _terms(funded), 8, 0, signature)
    assert refused(more) == "InvalidSignature"
    run(stranger._settlement("refundWithSignature", _terms(funded), 7, 0, signature))
    again = stranger._settlement("refundWithSignature", _terms(funded), 7, 0, signature)
    assert refused(again) == "InvalidRefundNonce"


def test_a_refund_takes_its_part_off_a_withdrawal(world, funded, run, refused) -> None:
    payer, operator = world.chain(world.roles.payer), world.chain(world.roles.operator)
    channel_id = funded.channel_id(world.chain_id)
    run(payer.initiate_withdraw(funded, 1_000))
    run(operator.refund(funded, 400))
    assert run(operator.channel(channel_id)).withdraw_amount == 600
    run(operator.refund(funded, 600))
    assert run(operator.channel(channel_id)).withdraw_started_s == 0
    assert refused(payer.finalize_withdraw(funded)) == "WithdrawalNotPending"
    assert refused(operator.refund(funded, 0)) == "ZeroRefund"


@pytest.mark.parametrize(
    ("sender", "amount", "reason"),
    [
        ("payer", AMOUNT, None),
        ("payer", AMOUNT + 1, "WithdrawAmountExceedsAvailable"),
        ("payer", 0, "NothingToWithdraw"),
        ("operator", 1, "InvalidChannel"),
        ("liar", 1, "InvalidChannel"),
    ],
)
def test_who_may_start_a_withdrawal(world, funded, run, refused, sender, amount, reason) -> None:
    work = world.chain(getattr(world.roles, sender)).initiate_withdraw(funded, amount)
    if reason is None:
        run(work)
        second = world.chain(world.roles.payer).initiate_withdraw(funded, 1)
        assert refused(second) == "WithdrawalAlreadyPending"
    else:
        assert refused(work) == reason


def test_only_the_payers_side_ends_a_withdrawal(world, funded, run, refused) -> None:
    run(world.chain(world.roles.payer).initiate_withdraw(funded, 1_000))
    world.pass_time(funded.withdraw_delay_s)
    liar = world.chain(world.roles.liar)
    assert refused(liar.finalize_withdraw(funded)) == "NotAuthorizedToFinalizeWithdraw"


def test_a_late_claim_after_a_withdrawal_finds_no_money(world, funded, run, refused) -> None:
    """The race that a receiver must not lose: unclaimed vouchers hold nothing back."""
    payer = world.chain(world.roles.payer)
    run(payer.initiate_withdraw(funded, AMOUNT))
    world.pass_time(funded.withdraw_delay_s)
    run(payer.finalize_withdraw(funded))
    late = world.chain(world.roles.operator).claim([world.claim(funded, 1)])
    assert refused(late) == "ClaimExceedsBalance"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"withdraw_delay_s": WITHDRAW_DELAY_MIN_S}, None),
        ({"withdraw_delay_s": WITHDRAW_DELAY_MAX_S}, None),
        ({"withdraw_delay_s": WITHDRAW_DELAY_MIN_S - 1}, "WithdrawDelayOutOfRange"),
        ({"withdraw_delay_s": WITHDRAW_DELAY_MAX_S + 1}, "WithdrawDelayOutOfRange"),
        ({"receiver": bytes(20)}, "InvalidChannel"),
        ({"receiver_authorizer": bytes(20)}, "InvalidChannel"),
    ],
)
def test_which_terms_can_be_funded(world, run, refused, changes, reason) -> None:
    config = world.config(**changes)
    work = world.chain(world.roles.stranger).deposit(
        config, AMOUNT, world.authorization(config, AMOUNT)
    )
    if reason is None:
        run(work)
    else:
        assert refused(work) == reason


def permitted(world, config, amount=AMOUNT, nonce=1, **changes):
    payer, options = world.roles.payer, {"deadline_s": 2**40, "nonce": nonce} | changes
    return permit_deposit(payer, config, amount, chain_id=world.chain_id, **options)


def test_a_deposit_by_permit2_funds_one_channel_once(world, run, refused) -> None:
    config, other = world.config(), world.config()
    payer, stranger = world.chain(world.roles.payer), world.chain(world.roles.stranger)
    permit = permitted(world, config)
    reason = refused(stranger.deposit(config, AMOUNT, permit))
    assert "allowance" in reason, "Permit2 has none yet"
    run(payer.approve(DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, 10 * AMOUNT))
    for change, why in (
        (lambda: (other, AMOUNT, permit), "InvalidSigner"),
        (lambda: (config, AMOUNT + 1, permit), "InvalidSigner"),
        (lambda: (config, AMOUNT, replace(permit, nonce=2)), "InvalidSigner"),
        (lambda: (config, AMOUNT, permitted(world, config, deadline_s=1)), "SignatureExpired"),
    ):
        assert why in refused(stranger.deposit(*change()))
    before = world.balance(config.payer)
    run(stranger.deposit(config, AMOUNT, permit))
    assert world.balance(config.payer) == before - AMOUNT
    assert run(stranger.channel(config.channel_id(world.chain_id))).balance == AMOUNT
    assert "InvalidNonce" in refused(stranger.deposit(config, AMOUNT, permit))


def test_a_void_nonce_of_permit2_buys_nothing(world, run, refused) -> None:
    config, payer = world.config(), world.chain(world.roles.payer)
    run(payer.approve(DEV_DOLLAR_ADDRESS, PERMIT2_ADDRESS, AMOUNT))
    void = contract("Permit2").call("invalidateUnorderedNonces", 0, 1 << 9)
    run(payer._send(PERMIT2_ADDRESS, void))
    assert "InvalidNonce" in refused(
        payer.deposit(config, AMOUNT, permitted(world, config, nonce=9))
    )


def test_only_the_settlement_contract_collects(world, refused) -> None:
    config = world.config()
    permit: DepositAuthorization = world.authorization(config, AMOUNT)
    data = encode(
        ["uint256", "uint256", "uint256", "bytes"],
        [permit.valid_after_s, permit.valid_before_s, permit.salt, permit.signature],
    )
    call = contract("Erc3009Collector").call(
        "collect", config.payer, config.token, AMOUNT, config.channel_id(world.chain_id), data
    )
    work = world.chain(world.roles.liar)._send(COLLECTOR_3009_ADDRESS, call)
    assert refused(work) == "collector: only the settlement contract"


def test_the_domain_is_this_chains(world) -> None:
    """EIP-5267: what wallets show before they sign."""
    function = contract("BatchSettlement").functions["eip712Domain"]
    call = {"to": to_hex(CHANNELS_ADDRESS), "data": to_hex(function.call())}
    answer = bytes.fromhex(world.rpc("eth_call", call, "latest")[2:])
    fields, name, version, chain_id, at, salt, extensions = function.result(answer)
    assert (fields, name, version, chain_id, at) == (
        b"\x0f", "x402 Batch Settlement", "1", world.chain_id, CHANNELS_ADDRESS,
    )  # fmt: skip
    assert (salt, extensions) == (bytes(32), ())


def test_only_the_owner_mints(world, refused) -> None:
    mint = contract("TestDollar").call("mint", world.roles.liar.address, 1)
    work = world.chain(world.roles.liar)._send(DEV_DOLLAR_ADDRESS, mint)
    assert refused(work) == "dollar: only the owner mints"


WALLET_SAYS_YES = "0x631626ba7e60e01b5f5260205ff3"  # answers EIP-1271's magic to everything
WALLET_SAYS_NO = "0x63ffffffff60e01b5f5260205ff3"
WALLET_IS_MUTE = "0x5f5ff3"
WALLET_IS_SHORT = "0x631626ba7e60e01b5f5260045ff3"  # the magic, but no word of 32 bytes


def test_a_wallet_contract_signs_by_eip_1271(world, run, refused) -> None:
    wallet = b"\x31" * 20
    at = to_hex(wallet)
    world.rpc("anvil_setCode", at, WALLET_SAYS_YES)
    run(world.chain(world.roles.payer).transfer(DEV_DOLLAR_ADDRESS, wallet, AMOUNT))
    config = world.config(payer=wallet, payer_authorizer=bytes(20))
    permit = DepositAuthorization(0, 2**40, 1, b"whatever the wallet takes")
    run(world.chain(world.roles.stranger).deposit(config, AMOUNT, permit))
    operator = world.chain(world.roles.operator)
    claim = world.claim(config, 5_000, signer=world.roles.liar)
    for refusing in (WALLET_SAYS_NO, WALLET_IS_MUTE, WALLET_IS_SHORT):
        world.rpc("anvil_setCode", at, refusing)
        assert refused(operator.claim([claim])) == "InvalidSignature"
    world.rpc("anvil_setCode", at, WALLET_SAYS_YES)
    run(operator.claim([claim]))
