"""What must hold at every step, whoever crashed: the money rules of the design, section 7."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from sqlalchemy import select

from inferpool.chain.memory import MemoryChain
from inferpool.gateway.route_book import read_choice
from inferpool.payments.payee import PayeeChannel
from inferpool.payments.schema import (
    ATTEMPTS,
    PAYEE_CHANNELS,
    PAYEE_RECEIPTS,
    PAYER_CHANNELS,
    ROUTES,
)
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.job import Task
from inferpool.protocol.lifecycle import AttemptState
from inferpool.sim.parts import SimGateway, SimNode


class Violated(AssertionError):
    """An invariant does not hold; the message says which and where."""


def require(condition: bool, rule: str, **facts: object) -> None:
    """Raise Violated with the facts."""
    if not condition:
        raise Violated(f"{rule}: {facts}")


def check_node(node: SimNode) -> None:
    """A node never works without cover, and never signs twice."""
    for channel in node.node.ledger.channels.values():
        # After a restart the balance is 0 until the chain was asked, before any new work. What was
        # given back was covered by a voucher once.
        covered = channel.best
        if channel.channel_id in node.node.ledger.refunds:
            covered = channel.reported + channel.held_total
        require(
            covered <= channel.balance or not channel.balance,
            "a voucher is within the deposit",
            covered=covered,
            balance=channel.balance,
        )
        require(
            channel.reported + channel.held_total <= channel.best or not channel.best,
            "the best voucher covers what was charged and what is in flight",
            best=channel.best,
            reported=channel.reported,
            held=channel.held_total,
        )
        require(channel.claimed <= channel.best, "claims stay within vouchers", node=node.name)
        require(sum(channel.held.values()) == channel.held_total, "holds add up", node=node.name)


def check_node_disk(node: SimNode) -> None:
    """On disk: a channel's total is the sum of its receipts, numbered without gaps."""
    read = node.journal.read
    for row in read(select(PAYEE_CHANNELS)):
        charges = [
            (item.seq, int(item.charge_pico_usd))
            for item in read(
                select(PAYEE_RECEIPTS).where(PAYEE_RECEIPTS.c.channel_id == row.channel_id)
            )
        ]
        total = sum(charge for _, charge in charges)
        require(total == int(row.total_pico_usd), "receipts add up to the total", node=node.name)
        seqs = sorted(seq for seq, _ in charges)
        require(seqs == list(range(1, row.seq + 1)), "receipts have no gap", seqs=seqs[-3:])
        require(total // 10**6 <= int(row.best), "what was earned is covered", node=node.name)


def check_gateway(gateway: SimGateway, refunded: Container[bytes] = ()) -> None:
    """A payer signs for no more than what was in flight, and no budget is overdrawn. `refunded`:
    channels out of which it had money back, that a voucher was for once."""
    for _, channel in gateway.gateway.ledger.channels.values():
        within = channel.signed_max <= channel.balance or channel.channel_id in refunded
        require(within, "vouchers within the deposit")
        require(sum(channel.held.values()) == channel.held_total, "holds add up")
        require(sum(channel.unresolved.values()) == channel.unresolved_total, "holds add up")
    for account in gateway.gateway.ledger.accounts.values():
        require(sum(account.held.values()) == account.held_pico_usd, "budget holds add up")
        if account.limit_pico_usd is not None:
            require(
                account.held_pico_usd + account.spent_pico_usd <= account.limit_pico_usd,
                "held + spent never exceeds a budget",
                held=account.held_pico_usd,
                spent=account.spent_pico_usd,
            )


def check_exposure(gateway: SimGateway, nodes: Iterable[SimNode], peaks: dict[bytes, int]) -> None:
    """A node can take no more than what was in flight at once, and of the window's slack no more
    than the payer allows and the node has earned.

    Measured against the node's own receipts, since a payer that crashed may not have booked them
    yet; `peaks` remembers over crashes what each channel had in flight.
    """
    for _, channel in gateway.gateway.ledger.channels.values():
        peak = max(peaks.get(channel.channel_id, 0), channel.peak)
        peaks[channel.channel_id] = peak
        theirs = _theirs(channel.channel_id, nodes)
        charged = max(channel.charged, theirs.earned if theirs else 0)
        caps = gateway.gateway.treasury.caps
        slack = min(caps.window_units, charged) if caps.window > 1 else 0
        require(
            channel.signed_max - charged <= peak + slack,
            "a node can take no more than what was in flight, and the window's slack",
            signed=channel.signed_max,
            charged=charged,
            peak=peak,
            slack=slack,
        )


async def check_thefts(
    chain: MemoryChain,
    gateways: Iterable[SimGateway],
    nodes: dict[str, SimNode],
    peaks: dict[bytes, int],
) -> None:
    """On chain: whatever a node claims, a payer loses no more than what was in flight at once, and
    the window's slack."""
    for gateway in gateways:
        caps = gateway.gateway.treasury.caps
        for _, channel in gateway.gateway.ledger.channels.values():
            theirs = _theirs(channel.channel_id, nodes.values())
            charged = max(channel.charged, theirs.earned if theirs else 0)
            slack = min(caps.window_units, charged) if caps.window > 1 else 0
            peak = max(peaks.get(channel.channel_id, 0), channel.peak)
            claimed = (await chain.channel(channel.channel_id)).total_claimed
            require(
                claimed - charged <= peak + slack,
                "a thief gets no more than what was in flight, and the window's slack",
                claimed=claimed,
                charged=charged,
                peak=peak,
            )


def _theirs(channel_id: bytes, nodes: Iterable[SimNode]) -> PayeeChannel | None:
    """The payee's side of a channel, wherever it is."""
    for node in nodes:
        found = node.node.ledger.channels.get(channel_id)
        if found is not None:
            return found
    return None


def check_both_disks(gateway: SimGateway, nodes: Iterable[SimNode]) -> None:
    """No charge without a receipt: all that a payer booked is on the node's disk, equal."""
    receipts = {
        row.request_id: row for node in nodes for row in node.journal.read(select(PAYEE_RECEIPTS))
    }
    read = gateway.journal.read
    for row in read(select(PAYER_CHANNELS)):
        booked = read(
            select(ATTEMPTS).where(
                ATTEMPTS.c.channel_id == row.channel_id,
                ATTEMPTS.c.state == AttemptState.SETTLED.value,
            )
        )
        total = 0
        for attempt in booked:
            receipt = receipts.get(attempt.request_id)
            require(receipt is not None, "what is booked has a receipt at the node")
            require(
                receipt is not None and receipt.charge_pico_usd == attempt.charge_pico_usd,
                "both sides book the same charge",
            )
            require(
                int(attempt.charge_pico_usd) <= int(attempt.maximum_pico_usd),
                "a charge is within its maximum",
            )
            total += int(attempt.charge_pico_usd)
        require(total == int(row.total_pico_usd), "receipts add up to the payer's total")


def check_chain(chain: MemoryChain, minted: int) -> None:
    """Money is neither made nor lost on chain."""
    held = chain.supply()
    require(held == minted, "tokens are conserved", held=held, minted=minted)


async def check_wallets(chain: MemoryChain, gateways: Iterable[SimGateway], funds: int) -> None:
    """At rest: what a payer had is in its wallet, in its channels, or was claimed from these."""
    for gateway in gateways:
        treasury = gateway.gateway.treasury
        channels = [channel for _, channel in treasury.ledger.channels.values()]
        states = [await chain.channel(channel.channel_id) for channel in channels]
        (token,) = {channel.config.token for channel in channels} or {b""}
        wallet = await chain.token_balance(token, treasury.payer.address) if channels else funds
        inside = sum(state.balance for state in states)
        require(
            wallet + inside == funds, "no money of a payer is lost", wallet=wallet, inside=inside
        )


def check_agreed(gateways: Iterable[SimGateway], nodes: Iterable[SimNode]) -> None:
    """At rest, after the late receipts were fetched: nothing in flight, both totals equal."""
    for gateway in gateways:
        for _, channel in gateway.gateway.ledger.channels.values():
            theirs = _theirs(channel.channel_id, nodes)
            require(theirs is not None or channel.total_pico_usd == 0, "the node knows the channel")
            if theirs is not None:
                facts: dict[str, Any] = {
                    "payer": channel.total_pico_usd,
                    "payee": theirs.total_pico_usd,
                    "unresolved": len(channel.unresolved),
                }
                require(
                    channel.total_pico_usd == theirs.total_pico_usd, "both totals agree", **facts
                )
            require(not channel.unproved.count, "every receipt is signed at rest")
            require(not channel.unresolved, "nothing is unresolved at rest")
            require(not channel.held, "nothing is held at rest")
        for account in gateway.gateway.ledger.accounts.values():
            require(account.held_pico_usd == 0, "no budget is held at rest")
            spent = sum(
                int(row.billed_pico_usd)
                for row in gateway.journal.read(
                    select(ATTEMPTS).where(ATTEMPTS.c.account == account.name)
                )
            )
            require(
                account.spent_pico_usd == spent,
                "an account spent what it was billed",
                spent=account.spent_pico_usd,
                attempts=spent,
            )


def check_prices(gateway: SimGateway, told: dict[str, int]) -> None:
    """At rest: who got a whole answer was billed what it was told, whatever came late from the
    nodes that failed it; and nobody was billed more than one answer may cost."""
    billed: dict[str, int] = {}
    most: dict[str, int] = {}
    for row in gateway.journal.read(select(ATTEMPTS)):
        client, maximum = row.client_request_id, int(row.maximum_pico_usd)
        billed[client] = billed.get(client, 0) + int(row.billed_pico_usd)
        hedged = most.get(client, 0) if row.task == Task.TENSOR.value else 0
        most[client] = max(most.get(client, 0), hedged + maximum)
    for client, price in told.items():
        facts = {"client": client, "told": price, "billed": billed.get(client)}
        require(billed.get(client) == price, "a whole answer is billed as told", **facts)
    for client, price in billed.items():
        require(price <= most[client] or not client, "one answer, one price", client=client)


def check_routes(gateway: SimGateway) -> None:
    """At rest: no node is thought busy, and each attempt went to a node that its trace priced.

    A crash may lose the last second's traces; what is kept must be right.
    """
    for node in gateway.gateway.directory.nodes.values():
        require(node.in_flight == 0, "no node is busy at rest", busy=node.in_flight)
        require(not node.probing, "no probe is on its way at rest")
        require(0 <= node.failures <= 1, "a share is a share", failures=node.failures)
    priced: dict[str, set[str]] = {}
    for row in gateway.journal.read(select(ROUTES)):
        candidates: Any = read_choice(row.data)["candidates"]
        costs = [item["cost_pico_usd"] for item in candidates]
        require(all(cost >= 0 for cost in costs), "costs are never negative", costs=costs)
        nodes = {item["node"] for item in candidates}
        priced.setdefault(row.client_request_id, set()).update(nodes)
    for row in gateway.journal.read(select(ATTEMPTS)):
        known = priced.get(row.client_request_id)
        if known is not None:
            require(to_hex(row.node) in known, "a node that is tried was priced", known=known)
