"""What the operator may ask and move while the gateway runs; `app` lets only the operator in.

| route | body | what |
| --- | --- | --- |
| GET /inferpool/control/channels | | every channel, its state on chain, and what lies unused |
| POST /inferpool/control/claim | | claim and settle what walk-ins paid, where they may |
| POST /inferpool/control/refund | channel, base_units | give a walk-in's unused money back |
| POST /inferpool/control/withdraw | channel, ask | start its way back, or ask its node for it |
| POST /inferpool/control/finalize | channel | end it, once the delay is over |
| POST /inferpool/control/release | idle_s | both, for all that were not used for so long |
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from inferpool.gateway.capital import Capital
from inferpool.payments.claims import Claimer
from inferpool.payments.standing import Channels
from inferpool.protocol.encoding import from_hex
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.limits import CONTROL_BODY_MAX
from inferpool.transport.asgi import HttpRequest

CONTROL: Final = "/inferpool/control/"


class CapitalControls:
    """Serves the routes."""

    def __init__(self, capital: Capital) -> None:
        self._capital = capital
        self.sales: Channels | None = None  # of a gateway that sells
        self.claimer: Claimer | None = None

    async def serve(self, request: HttpRequest) -> None:
        """Do it, and answer with the channels that it is about. Raises BadRequest, Refused."""
        action = (request.method, request.path.removeprefix(CONTROL))
        body = await request.body(CONTROL_BODY_MAX)
        if self.sales is not None and action == ("POST", "refund"):
            await request.answer_json(await self.sales.refunded(body))
            return
        if self.claimer is not None and action == ("POST", "claim"):
            await request.answer_json((await self.claimer.claim()).to_wire())
            return
        if action == ("GET", "channels"):
            found = await self._capital.look()
            sales = await self.sales.look() if self.sales is not None else []
            both = [*(item.to_wire() for item in found), *(item.to_wire() for item in sales)]
            await request.answer_json({"channels": both})
            return
        if action == ("POST", "withdraw"):
            ask = _object(body).get("ask") is True
            move = self._capital.ask_back if ask else self._capital.withdraw
            found = [await move(_channel(body))]
        elif action == ("POST", "finalize"):
            found = [await self._capital.finalize(_channel(body))]
        elif action == ("POST", "release"):
            found = await self._capital.release(_seconds(body))
        else:
            raise BadRequest(f"{request.method} {request.path} is not served.", code="not_found")
        await request.answer_json({"channels": [item.to_wire() for item in found]})


def _channel(body: bytes) -> bytes:
    try:
        return from_hex(_object(body).get("channel"), 32)
    except ValueError as error:
        raise BadRequest(f"channel: {error}.", param="channel") from None


def _seconds(body: bytes) -> int:
    idle_s = _object(body).get("idle_s")
    if not isinstance(idle_s, int) or isinstance(idle_s, bool) or idle_s < 0:
        raise BadRequest("idle_s must be a number of seconds.", param="idle_s")
    return idle_s


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be an object.")
    return value
