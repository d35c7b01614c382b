"""A transfer by signature is found again by its nonce, and known by its sender and its call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS, DOLLAR_NAME, DOLLAR_VERSION
from inferpool.chain.authorization import sign_transfer
from inferpool.chain.base import Transfer
from inferpool.protocol.errors import Unavailable
from tests.chain.conftest import FOREVER_S, World


def transfer_of(world: World, nonce: bytes, amount: int = 300) -> Transfer:
    payer, to = world.roles.payer, world.roles.receiver.address
    draft = Transfer(payer.address, to, amount, 0, FOREVER_S, nonce)
    return sign_transfer(
        payer,
        draft,
        DEV_DOLLAR_ADDRESS,
        chain_id=world.chain_id,
        name=DOLLAR_NAME,
        version=DOLLAR_VERSION,
    )


def test_only_our_own_and_only_this_one_is_found(world, run) -> None:
    ours, stranger = world.chain(world.roles.operator), world.chain(world.roles.stranger)
    sent = transfer_of(world, b"\1" * 32)
    assert run(ours.transferred(DEV_DOLLAR_ADDRESS, sent)) is None, "not yet"
    mined = run(ours.transfer_authorized(DEV_DOLLAR_ADDRESS, sent))
    assert run(ours.transferred(DEV_DOLLAR_ADDRESS, sent)) == mined
    assert run(stranger.transferred(DEV_DOLLAR_ADDRESS, sent)) is None
    other = transfer_of(world, b"\1" * 32, amount=301)
    assert run(ours.transferred(DEV_DOLLAR_ADDRESS, other)) is None
    holder = replace(sent, holder=world.roles.liar.address)
    assert run(ours.transferred(DEV_DOLLAR_ADDRESS, holder)) is None
    theirs = transfer_of(world, b"\2" * 32)
    run(stranger.transfer_authorized(DEV_DOLLAR_ADDRESS, theirs))
    assert run(ours.transferred(DEV_DOLLAR_ADDRESS, theirs)) is None


def test_it_counts_once_it_is_deep_enough(world, run) -> None:
    sent = transfer_of(world, b"\3" * 32)
    mined = run(world.chain(world.roles.operator).transfer_authorized(DEV_DOLLAR_ADDRESS, sent))
    deep = world.chain(world.roles.operator, finality_blocks=2)
    with pytest.raises(Unavailable, match="deep enough"):
        run(deep.transferred(DEV_DOLLAR_ADDRESS, sent))
    for _ in range(2):
        world.rpc("evm_mine")
    assert run(deep.transferred(DEV_DOLLAR_ADDRESS, sent)) == mined
