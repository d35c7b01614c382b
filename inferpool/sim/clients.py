"""Clients of the simulated gateways: they ask, check what they get, and sometimes leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import orjson

from inferpool.engines.base import Sampling, TextCall
from inferpool.engines.fake import prompt_text, token_id, token_text
from inferpool.engines.invention import invent
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.tools import CALL_CLOSE, CALL_OPEN
from inferpool.sim.parts import API_KEY, SimGateway
from inferpool.transport.base import Response, TransportError
from inferpool.transport.sse import Event, events

_HEADERS = (
    (b"authorization", b"Bearer " + API_KEY.encode()),
    (b"content-type", b"application/json"),
)
_HEDGE = ((b"inferpool-hedge", b"1"),)
_TIMEOUT_S = 120.0
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "null"}}},
    "required": ["a", "b"],
}
_FORM = {"name": "f", "strict": True, "schema": _SCHEMA}
_JSON = {"response_format": {"type": "json_schema", "json_schema": _FORM}}
_CALLS = {
    "tools": [{"type": "function", "function": {"name": "look", "parameters": _SCHEMA}}],
    "tool_choice": "required",
}


class BrokenAnswer(AssertionError):
    """A clean end with wrong content: the one thing that must never happen."""


@dataclass(slots=True)
class Client:
    """One client of one gateway. `outcomes` counts how its requests ended."""

    gateway: SimGateway
    random: Random
    outcomes: Counter[str] = field(default_factory=Counter)
    told: dict[str, int] = field(default_factory=dict)  # prices of whole answers, by request

    async def run(self, until_s: float) -> None:
        """Ask again and again until virtual time `until_s`."""
        loop = asyncio.get_running_loop()
        while loop.time() < until_s:
            await asyncio.sleep(self.random.expovariate(4.0))
            try:
                outcome = await self._one()
            except TransportError as error:
                outcome = f"transport:{type(error).__name__}"
            self.outcomes[outcome] += 1

    async def _one(self) -> str:
        kind = self.random.random()
        if kind < 0.4:
            return await self._tensor()
        if kind < 0.5:
            return await self._leave()
        if kind < 0.6:
            return await self._formed()
        if kind < 0.65:
            return await self._several()
        return await self._chat()

    async def _send(self, path: str, body: dict[str, object], *, hedge: bool = False) -> Response:
        pipe, headers = self.gateway.transport(), (*_HEADERS, *_HEDGE[:hedge])
        return await pipe.request("POST", path, headers, orjson.dumps(body), timeout_s=_TIMEOUT_S)

    def _chat_body(self) -> tuple[str, dict[str, object]]:
        text = f"say {self.random.randrange(1000)}"
        return text, {
            "model": "fake-chat",
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.random.randint(1, 40),
            "seed": self.random.getrandbits(32),
            "stream": True,
        }

    async def _chat(self) -> str:
        text, body = self._chat_body()
        response = await self._send("/v1/chat/completions", body)
        try:
            if response.status != 200:
                return await _error_code(response)
            return await self._read_stream(response, text, body)
        finally:
            await response.close()

    async def _read_stream(self, response: Response, text: str, body: dict[str, object]) -> str:
        got, proof, done = "", None, False
        async for item in events(response):
            if not isinstance(item, Event):
                continue
            if item.data == b"[DONE]":
                done = True
                continue
            value = orjson.loads(item.data)
            if "error" in value:
                return f"error:{value['error']['code']}"
            got += value["choices"][0]["delta"].get("content", "")
            proof = value.get("inferpool", proof)
        if not done:
            return "cut"
        if proof is None:
            raise BrokenAnswer("a clean end without a proof")
        if proof["receipt"] is None and proof["cost_pico_usd"]:
            raise BrokenAnswer("a charge without a receipt")
        self._check_text(got, text, body)
        if proof["receipt"] is not None:  # else it may come late
            self._told(response, proof["cost_pico_usd"])
        return "chat" if proof["legs"] == 1 else "continued"

    def _told(self, response: Response, cost_pico_usd: int) -> None:
        named = response.header(b"x-request-id")
        assert named is not None, "every answer has a name"
        self.told[named.decode()] = cost_pico_usd

    @staticmethod
    def _check_text(got: str, text: str, body: dict[str, object]) -> None:
        seed = int(str(body["seed"]))
        call = TextCall(({"role": "user", "content": text},), None, 1, Sampling(seed))
        prompt = prompt_text(call)
        wanted = "".join(
            token_text(token_id(prompt, seed, at)) for at in range(int(str(body["max_tokens"])))
        )
        if got != wanted:
            raise BrokenAnswer(f"wanted {wanted!r}, got {got!r}")

    async def _formed(self) -> str:
        """JSON by a schema, or calls: whole or not at all, whoever dies."""
        text, body = self._chat_body()
        body |= {"max_tokens": 400} | self.random.choice((_JSON, _CALLS))
        parsed = ChatRequest.parse(orjson.dumps(body))
        assert parsed.shape is not None
        wanted = invent(parsed.shape, int(str(body["seed"])), text)
        response = await self._send("/v1/chat/completions", body)
        try:
            if response.status != 200:
                return await _error_code(response)
            got, _, done = await _read(response)
        finally:
            await response.close()
        if not done:
            if any(got.values()):
                raise BrokenAnswer(f"a part of what must be whole: {got!r}")
            return "cut"
        if got[0] != wanted:
            raise BrokenAnswer(f"wanted {wanted!r}, got {got!r}")
        return "formed"

    async def _several(self) -> str:
        """Two answers to one request."""
        text, body = self._chat_body()
        response = await self._send("/v1/chat/completions", {**body, "n": 2})
        try:
            if response.status != 200:
                return await _error_code(response)
            got, error, done = await _read(response)
        finally:
            await response.close()
        if not done:
            return f"error:{error}" if error else "cut"
        for index in (0, 1):
            seed = (int(str(body["seed"])) + index) % 2**32
            self._check_text(got[index], text, {**body, "seed": seed})
        return "several"

    async def _leave(self) -> str:
        """Read some of a stream and hang up."""
        _, body = self._chat_body()
        response = await self._send("/v1/chat/completions", body)
        left = self.random.randint(0, 8)
        try:
            if response.status != 200:
                return await _error_code(response)
            async for _ in events(response):
                left -= 1
                if left <= 0:
                    break
        finally:
            await response.close()
        return "left"

    async def _tensor(self) -> str:
        rows = self.random.randint(1, 8)
        data = [float(self.random.randrange(100)) for _ in range(4 * rows)]
        tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": data}
        hedge = self.random.random() < 0.5
        body: dict[str, object] = {"inputs": [tensor]}
        response = await self._send("/v2/models/fake-tensor/infer", body, hedge=hedge)
        try:
            if response.status != 200:
                return await _error_code(response)
            value = orjson.loads(await response.read(1 << 20))
            cost = response.header(b"inferpool-cost")
            if cost is not None and not hedge:  # what a second node charges all the same comes late
                self._told(response, int(cost))
        finally:
            await response.close()
        wanted = [sum(data[4 * i : 4 * i + 4]) for i in range(rows)]
        if value["outputs"][0]["data"] != wanted:
            raise BrokenAnswer("wrong sums")
        return "tensor"


async def _read(response: Response) -> tuple[dict[int, str], str, bool]:
    """Text of each choice with its calls as an engine writes them, an error's code, and whether
    the stream ended cleanly."""
    got: dict[int, str] = {0: ""}
    async for item in events(response):
        if not isinstance(item, Event):
            continue
        if item.data == b"[DONE]":
            return got, "", True
        value = orjson.loads(item.data)
        if "error" in value:
            return got, str(value["error"]["code"]), False
        for choice in value["choices"]:
            delta = choice["delta"]
            said = got.get(choice["index"], "") + (delta.get("content") or "")
            for call in delta.get("tool_calls") or ():
                named, arguments = call["function"]["name"], call["function"]["arguments"]
                said += (
                    f'{CALL_OPEN}\n{{"name": "{named}", "arguments": {arguments}}}\n{CALL_CLOSE}'
                )
            got[choice["index"]] = said
    return got, "", False


async def _error_code(response: Response) -> str:
    value = orjson.loads(await response.read(1 << 20))
    error = value["error"]
    return f"error:{error['code'] if isinstance(error, dict) else value['code']}"
