"""What a gateway tells of itself: models for everyone, money for its operator."""

from __future__ import annotations

from typing import Any, Final

from inferpool.gateway.gateway import Gateway
from inferpool.gateway.nodes import KnownNode
from inferpool.payments.payer_ledger import AttemptRecord
from inferpool.protocol.encoding import to_hex
from inferpool.protocol.job import Task
from inferpool.protocol.offer import Service
from inferpool.protocol.parameters import supported
from inferpool.protocol.receipt import SignedReceipt

ATTEMPTS_SHOWN: Final = 100


def model_object(
    service: Service, nodes: list[KnownNode], created_s: int, fee_bps: int = 0
) -> dict[str, object]:
    """A model for `GET /v1/models`: OpenAI's members, and under `inferpool` what we add."""
    offered = [found for node in nodes if (found := node.offer.service(service.model))]
    return {
        "id": service.model,
        "object": "model",
        "created": created_s,
        "owned_by": "inferpool",
        "inferpool": {
            "task": service.task.value,
            "unit": service.task.unit,
            "manifest": to_hex(service.manifest),
            "context": min(item.context for item in offered),  # that every node takes
            "context_most": max(item.context for item in offered),
            **_modalities(service.task),
            "default_max_output": service.default_max_output,
            "classes": sorted({item.engine_class for item in offered}),
            "price_in_pico_usd_per_unit": _range(
                [item.price_in_pico_usd_per_unit for item in offered]
            ),
            "price_out_pico_usd_per_unit": _range(
                [item.price_out_pico_usd_per_unit for item in offered]
            ),
            "fee_bps": fee_bps,  # of this gateway, on top of the prices
            "nodes": len(nodes),
            **_parameters(offered),
        },
    }


_MODALITIES: Final = {
    Task.CHAT: ("text", "text"),
    Task.COMPLETION: ("text", "text"),
    Task.EMBEDDING: ("text", "embeddings"),
    Task.TRANSCRIPTION: ("audio", "text"),
    Task.IMAGE: ("text", "image"),
    Task.TENSOR: ("tensors", "tensors"),
}


def _modalities(task: Task) -> dict[str, list[str]]:
    """What goes in and comes out, in OpenRouter's words where it has one."""
    goes_in, comes_out = _MODALITIES[task]
    return {"input_modalities": [goes_in], "output_modalities": [comes_out]}


def _parameters(offered: list[Service]) -> dict[str, object]:
    """What some node takes, for text."""
    if offered[0].task not in (Task.CHAT, Task.COMPLETION):
        return {}
    names = {name for service in offered for name in service.parameters}
    return {"supported_parameters": supported(names)}


def _range(prices: list[int]) -> dict[str, int]:
    ordered = sorted(prices)
    most = len(ordered) - 1
    return {
        "min": ordered[0],
        "p50": ordered[-(-most * 50 // 100)],
        "p90": ordered[-(-most * 90 // 100)],
        "max": ordered[-1],
    }


def status(gateway: Gateway) -> dict[str, Any]:
    """Everything the operator may see; amounts in the unit of their name."""
    now = gateway.clock.now_ms()
    channels = [
        {
            "node": to_hex(node),
            "channel": to_hex(channel.channel_id),
            "balance_base_units": channel.balance,
            "charged_base_units": channel.charged,
            "charged_pico_usd": channel.total_pico_usd,
            "held_base_units": channel.held_total,
            "unresolved_base_units": channel.unresolved_total,
            "signed_base_units": channel.signed_max,
            "receipts": channel.next_seq - 1 + len(channel.booked_ahead),
        }
        for node, channel in gateway.ledger.channels.values()
    ]
    accounts = [
        {
            "name": account.name,
            "limit_pico_usd": account.limit_pico_usd,
            "spent_pico_usd": account.spent_pico_usd,
            "held_pico_usd": account.held_pico_usd,
        }
        for account in gateway.ledger.accounts.values()
    ]
    nodes = [
        {
            "node": to_hex(node.address),
            "url": node.url,
            "alive": node.alive(now),
            "models": [service.model for service in node.offer.services],
            "in_flight": node.in_flight,
            "failures": round(node.failures, 4),
            "reasons": node.reasons,
            "asked": node.asked,
            "chosen": node.chosen,
            "lost": node.lost,
        }
        for node in gateway.directory.nodes.values()
    ]
    attempts = [attempt_object(item) for item in gateway.ledger.attempts(ATTEMPTS_SHOWN)]
    return {"nodes": nodes, "channels": channels, "accounts": accounts, "attempts": attempts}


def together(own: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """What several processes of one gateway tell, as one: each has its own channels and its own
    requests under way; accounts and attempts are common to all."""
    for other in others:
        own["channels"] += other["channels"]
        running = {item["node"]: item for item in other["nodes"]}
        for node in own["nodes"]:
            found = running.get(node["node"], {})
            for count in ("in_flight", "asked", "chosen"):
                node[count] += found.get(count, 0)
    return own


async def explained(gateway: Gateway, request_id: str) -> tuple[str, dict[str, object]] | None:
    """The account of a request, and everything about where it went; None where it is not known."""
    found = await gateway.routes.find(request_id)
    if found is None:
        return None
    account, choices = found
    attempts = [attempt_object(item) for item in gateway.ledger.attempts_of(request_id)]
    return account, {
        "request_id": request_id,
        "account": account,
        "choices": choices,
        "attempts": attempts,
    }


def attempt_object(record: AttemptRecord) -> dict[str, object]:
    """One attempt for people and scripts."""
    return {
        "request_id": to_hex(record.request_id),
        "client_request_id": record.client_request_id,
        "account": record.account,
        "node": to_hex(record.node),
        "model": record.model,
        "task": record.task,
        "state": record.state.value,
        "charge_pico_usd": record.charge_pico_usd,
        "billed_pico_usd": record.billed_pico_usd,
        "fee_pico_usd": record.fee_pico_usd,
        "maximum_pico_usd": record.maximum_pico_usd,
        "prompt_units": record.prompt_units,
        "output_units": record.output_units,
        "started_ms": record.started_ms,
        "first_ms": record.first_ms,
        "ended_ms": record.ended_ms,
        "error_code": record.error_code,
        "proof": SignedReceipt.unpack(record.receipt).to_wire() if record.receipt else None,
    }
