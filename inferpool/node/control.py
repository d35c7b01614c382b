"""What the owner may ask and change while the node runs; `app` lets only the owner in.

| route | body | what |
| --- | --- | --- |
| GET /inferpool/control/status | | all that `node status` shows |
| POST /inferpool/control/drain | minutes, why (both optional) | offer nothing, finish what runs |
| POST /inferpool/control/resume | | go on |
| POST /inferpool/control/prices | model, price_in_usd_per_million, price_out_... | new prices |
| POST /inferpool/control/settings | keys of [node] | change what the owner wishes |
| POST /inferpool/control/models | model, serve | take a model out, or put it back |
| GET /inferpool/control/channels | | every channel with its state on chain |
| POST /inferpool/control/refund | channel, base_units | give a payer's unused money back |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from inferpool.node.duty import Duty
from inferpool.node.push import Pusher
from inferpool.node.services import Hosted
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import to_checksum, to_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import CONTROL_BODY_MAX
from inferpool.protocol.units import PICO_USD_PER_USD, parse_usd
from inferpool.transport.asgi import HttpRequest

CONTROL: Final = "/inferpool/control/"
_LATEST: Final = 10
_MINUTES_MAX: Final = 7 * 24 * 60
_WHY_MAX: Final = 200


class Changeable(Protocol):
    """What the owner may change of a running node (`daemon.wishes`)."""

    def told(self) -> dict[str, object]:
        """As it is now."""
        ...

    async def change(self, values: Mapping[str, object]) -> None:
        """Change it. Raises BadRequest, Refused."""
        ...


class Controls:
    """Serves the routes for one node."""

    def __init__(
        self,
        duty: Duty,
        pusher: Pusher,
        channels: Channels | None = None,
        wishes: Changeable | None = None,
    ) -> None:
        self._wishes = wishes
        self._duty, self._pusher, self._node = duty, pusher, duty.node
        self._routes: dict[tuple[str, str], Callable[[bytes], Awaitable[None]]] = {
            ("GET", "status"): self._nothing,
            ("POST", "drain"): self._drain,
            ("POST", "resume"): self._resume,
            ("POST", "prices"): self._prices,
            ("POST", "models"): self._models,
        }
        if wishes is not None:
            self._routes["POST", "settings"] = self._settings
        self._answers: dict[tuple[str, str], Callable[[bytes], Awaitable[dict[str, Any]]]] = {}
        if channels is not None:
            self._answers["GET", "channels"] = channels.listed
            self._answers["POST", "refund"] = channels.refunded

    async def serve(self, request: HttpRequest) -> None:
        """Do it, and answer with the status after it, or with what was asked. Raises BadRequest."""
        action = (request.method, request.path.removeprefix(CONTROL))
        if action in self._answers:
            body = await request.body(CONTROL_BODY_MAX)
            await request.answer_json(await self._answers[action](body))
            return
        act = self._routes.get(action)
        if act is None:
            raise BadRequest(f"{request.method} {request.path} is not served.", code="not_found")
        await act(await request.body(CONTROL_BODY_MAX))
        await request.answer_json(self.status())

    async def _nothing(self, body: bytes) -> None:
        return None

    async def _drain(self, body: bytes) -> None:
        value = _object(body) if body and body != b"null" else {}
        minutes, why = value.get("minutes", 0), value.get("why", "")
        if type(minutes) is not int or not 0 <= minutes <= _MINUTES_MAX:
            message = f"minutes must be a whole number up to {_MINUTES_MAX}."
            raise BadRequest(message, param="minutes")
        if not isinstance(why, str) or len(why) > _WHY_MAX:
            raise BadRequest(f"why must be text of at most {_WHY_MAX} characters.", param="why")
        await self._duty.drain(True, why, 60_000 * minutes)

    async def _resume(self, body: bytes) -> None:
        await self._duty.drain(False)

    async def _prices(self, body: bytes) -> None:
        value = _object(body)
        hosted = self._hosted(value)
        price_in = _price(value, "price_in_usd_per_million", hosted.price_in_pico_usd_per_unit)
        price_out = _price(value, "price_out_usd_per_million", hosted.price_out_pico_usd_per_unit)
        hosted.reprice(price_in, price_out)
        self._node.announce()

    async def _settings(self, body: bytes) -> None:
        assert self._wishes is not None, "the route is there with them"
        await self._wishes.change(_object(body))

    async def _models(self, body: bytes) -> None:
        value = _object(body)
        serve = value.get("serve")
        if not isinstance(serve, bool):
            raise BadRequest("serve must be true or false.", param="serve")
        await self._duty.withhold(self._hosted(value).manifest.name, not serve)

    def _hosted(self, value: dict[str, Any]) -> Hosted:
        for item in self._node.services.hosted:
            if value.get("model") == item.manifest.name:
                return item
        names = ", ".join(item.manifest.name for item in self._node.services.hosted)
        raise BadRequest(f"model must be one of {names}.", code="model_not_found", param="model")

    # -- what is -----------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Everything the owner may see; amounts in the unit of their name."""
        node, duty = self._node, self._duty
        channels = list(node.ledger.channels.values())
        return {
            "node": to_hex(node.key.address),
            "owner": to_hex(node.offers.current().offer.owner),
            "payee": to_hex(node.gate.terms.payee),
            "state": duty.state.value,
            "reason": duty.reason,
            "since_ms": duty.since_ms,
            "running": node.busy,
            "settings": self._wishes.told() if self._wishes is not None else {},
            "others_percent": duty.others_percent,
            "memory_bytes": duty.residents.memory,
            "models": [_model(item) for item in node.services.hosted],
            "lease": orjson.loads(node.lease().encode()),
            "receipts": sum(channel.seq for channel in channels),
            "earned_pico_usd": sum(channel.total_pico_usd for channel in channels),
            "unclaimed_base_units": sum(channel.unclaimed for channel in channels),
            "payers": len({channel.config.payer for channel in channels if channel.seq}),
            "refused": dict(node.metrics.refusals),
            "latest": self._latest(),
            "gateways": {url: told.to_wire() for url, told in self._pusher.told.items()},
        }

    def _latest(self) -> list[dict[str, object]]:
        found = []
        for signed, model in self._node.ledger.latest(_LATEST):
            receipt = signed.receipt
            channel = self._node.ledger.channels[receipt.channel_id]
            found.append(
                {
                    "model": model,
                    "payer": to_checksum(channel.config.payer),
                    "prompt_units": receipt.prompt_units,
                    "output_units": receipt.output_units,
                    "charge_pico_usd": receipt.charge_pico_usd,
                    "outcome": receipt.outcome.name.lower(),
                    "ended_ms": receipt.ended_ms,
                }
            )
        return found


def _model(item: Hosted) -> dict[str, object]:
    return {
        "model": item.manifest.name,
        "class": item.engine.engine_class,
        "ready": item.engine.ready(),
        "withheld": item.withheld,
        "unloaded": item.closed,
        "cold": item.cold,  # for want of memory
        "memory_bytes": item.memory,  # that it took when it was loaded; 0: not known
        "running": item.running,
        "slots": item.slots,
        "unit": item.task.unit,
        "price_in_pico_usd_per_unit": item.price_in_pico_usd_per_unit,
        "price_out_pico_usd_per_unit": item.price_out_pico_usd_per_unit,
        "first_unit_ms": round(item.pace.first_unit_ms, 1),
        "unit_us": round(item.pace.unit_us, 1),
        "restarts": getattr(item.engine, "restarts", 0),
        "last_failure": item.failure or getattr(item.engine, "last_failure", ""),
        "sandbox": getattr(item.engine, "sandbox", ""),  # what holds its reader back, in words
    }


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be an object.")
    return value


def _price(value: dict[str, Any], name: str, current: int) -> int:
    if name not in value:
        return current
    try:
        price = parse_usd(str(value[name]))
    except ValueError as error:
        raise BadRequest(f"{name}: {error}.", param=name) from None
    if price > PICO_USD_PER_USD * 10**6:
        raise BadRequest(f"{name} is over a dollar a unit.", param=name)
    return price // 10**6
