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

from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson

from inferpool.gateway.capital import Capital, Lying
from inferpool.gateway.neighbours import Neighbours
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

    async def serve(self, request: HttpRequest, others: Neighbours | None = None) -> None:
        """Do it, and answer with the channels that it is about; those of other processes of this
        gateway are moved by these. Raises BadRequest, Refused."""
        action = (request.method, request.path.removeprefix(CONTROL))
        body = await request.body(CONTROL_BODY_MAX)
        if self.sales is not None and action == ("POST", "refund"):
            await request.answer_json(await self.sales.refunded(body))
            return
        if self.claimer is not None and action == ("POST", "claim"):
            await request.answer_json((await self.claimer.claim()).to_wire())
            return
        if action == ("GET", "channels"):
            ours = await self._capital.look()
            sales = await self.sales.look() if self.sales is not None else []
            both = [*(item.to_wire() for item in ours), *(item.to_wire() for item in sales)]
            await self._answer(request, body, both, others)
            return
        found: list[Lying] | None
        if action == ("POST", "withdraw"):
            ask = _object(body).get("ask") is True
            move = self._capital.ask_back if ask else self._capital.withdraw
            found = await self._moved(move, request, body, others)
        elif action == ("POST", "finalize"):
            found = await self._moved(self._capital.finalize, request, body, others)
        elif action == ("POST", "release"):
            found = await self._capital.release(_seconds(body))
        else:
            raise BadRequest(f"{request.method} {request.path} is not served.", code="not_found")
        wide = others if action[1] == "release" else None
        if found is not None:
            await self._answer(request, body, [item.to_wire() for item in found], wide)

    @staticmethod
    async def _moved(
        move: Callable[[bytes], Awaitable[Lying]],
        request: HttpRequest,
        body: bytes,
        others: Neighbours | None,
    ) -> list[Lying] | None:
        """The channel as it is then; None where another process has it, and has answered."""
        try:
            return [await move(_channel(body))]
        except BadRequest as error:
            if error.code != "not_found" or others is None:
                raise
            if not await others.answer(request, body, error.status):
                raise
            return None

    @staticmethod
    async def _answer(
        request: HttpRequest, body: bytes, own: list[dict[str, Any]], others: Neighbours | None
    ) -> None:
        said = await others.all_say(request, body) if others is not None else []
        await request.answer_json(
            {"channels": own + [one for each in said for one in each["channels"]]}
        )


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
