"""A token without EIP-3009: the 402 says so, and our payer deposits by Permit2."""

from __future__ import annotations

import pytest

from inferpool.chain.memory import FailingChain, Failure, MemoryChain
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.voucher import PERMIT2_ADDRESS
from inferpool.sim.parts import key_of
from tests.gateway.parts import SEED, Pool, pool
from tests.gateway.walkers import accepts, chat_body

PAYER = key_of(SEED, "gateway-0/payer").address


async def allowance(made: Pool) -> int:
    token = made.nodes[0].node.gate.terms.asset
    return await made.chain.allowance(token, PAYER, PERMIT2_ADDRESS)


async def test_our_payer_opens_and_tops_up_by_permit2() -> None:
    async with pool(2, plain=True) as made:
        assert await allowance(made) == 0
        for _ in range(8):
            assert (await made.chat(max_tokens=1000)).status == 200
        given = await allowance(made)
        assert given == 2**256 - 1, "once, and without end"
        deposits = [channel.balance for _, channel in made.gateway.gateway.ledger.channels.values()]
        assert max(deposits) > 3000, "one channel was topped up"
        assert sum(deposits) == 10**9 - await made.chain.token_balance(
            made.nodes[0].node.gate.terms.asset, PAYER
        )
        assert made.booked() == made.earned() > 0


async def test_where_the_token_has_eip_3009_nothing_is_allowed() -> None:
    async with pool() as made:
        assert (await made.chat()).status == 200
        assert await allowance(made) == 0


async def test_a_402_names_permit2_where_the_token_needs_it() -> None:
    async with pool(sells=True, plain=True) as made:
        for app in (made.gateway.app, made.nodes[0].app):
            answer = await made.send("POST", "/v1/chat/completions", chat_body(), [], app=app)
            assert answer.status == 402
            (entry,) = accepts(answer)
            assert entry["extra"]["assetTransferMethod"] == "permit2"
            assert entry["scheme"] == "batch-settlement", "and no transfer by signature alone"
            assert "Permit2" in answer.json["error"]["message"]
    async with pool(sells=True) as made:
        answer = await made.send("POST", "/v1/chat/completions", chat_body(), [])
        assert [entry["scheme"] for entry in accepts(answer)] == ["batch-settlement", "exact"]
        assert "assetTransferMethod" not in accepts(answer)[0]["extra"], "eip3009, the default"


@pytest.mark.parametrize("call", ["takes_authorizations", "allowance"])
async def test_a_silent_chain_is_no_answer_about_the_token(call: str) -> None:
    """Else one bad moment would make it ask for an allowance of a token that needs none."""
    async with pool(plain=call == "allowance") as made:
        silent, asked = [True], []

        def decide(name: str) -> Failure | None:
            asked.append(name)
            away = Unavailable("no answer", code="chain_unavailable")
            return Failure(away) if name == call and silent[0] else None

        deposits = made.gateway.gateway.treasury.deposits
        assert isinstance(deposits.chain, MemoryChain)
        deposits.chain = FailingChain(deposits.chain, decide)
        assert (await made.chat()).status == 503
        assert call in asked
        assert await allowance(made) == 0
        silent[0] = False
        assert (await made.chat()).status == 200
