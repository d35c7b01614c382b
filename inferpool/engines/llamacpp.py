"""llama.cpp in a child process: continuous batching on a plain CPU, from one wheel or by the
`llama-server` that a machine has.

The child serves HTTP on loopback with a random key; it is restarted with growing pauses when it
dies, and killed when it hangs. Calls are validated before they come here: the server answers 200
to nonsense.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import secrets
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any, Final

import orjson

from inferpool.engines import sandbox
from inferpool.engines.base import Progress, TextCall, TextChunk
from inferpool.engines.child import Child, start_child
from inferpool.engines.control_text import ControlText
from inferpool.engines.llama_server import Program
from inferpool.engines.llamacpp_wire import (
    CompletionReader,
    completion_body,
    refusal,
    template_messages,
)
from inferpool.engines.slots import Slots
from inferpool.engines.watch import EngineSilent
from inferpool.protocol import parameters
from inferpool.protocol.errors import BadRequest, Unavailable
from inferpool.protocol.limits import ENGINE_SILENCE_S
from inferpool.transport.base import AnswerInvalid, AnswerTimeout, Response, TransportError
from inferpool.transport.http import HttpTransport

_LOG = logging.getLogger("inferpool.engines")
CHILD_SCRIPT: Final = Path(__file__).with_name("llamacpp_child.py")
SERVER_SCRIPT: Final = Path(__file__).with_name("llama_server_child.py")
BATCH: Final = 256  # prompt tokens between two looks at who has left
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
STABLE_S: Final = 60.0  # a child that lived this long starts with the first pause again
# The head comes with the first word on prefill. A slot that was left may take one batch to free.
FIRST_WORD_S: Final = 60.0
SHORT_CALL_S: Final = 30.0  # templates and tokens: 1 ms; more only beside a full prefill
_STAND_INS: Final = 4  # control tokens that are tried as a marker; the first is good in practice
MAX_PROMPT_BYTES: Final = 16 * 1024 * 1024  # an answer with a template or ids; bounds memory


class LlamaCppEngine:
    """A `TextEngine` for one GGUF file. `context`: tokens per slot, prompt and answer together."""

    def __init__(
        self,
        path: Path,
        alias: str,
        quant: str,
        *,
        slots: int = 4,
        context: int = 2048,
        threads: int = 2,
        silence_s: float = ENGINE_SILENCE_S,
        program: Program | None = None,
    ) -> None:
        self._silence_s = silence_s
        self._program = program  # None: the wheel
        self.path, self.alias = Path(path), alias
        self.slots, self.context, self.threads = slots, context, threads
        # A program chooses among all that the processor has; the wheel ends at AVX2.
        version, isa = _version(), cpu_isa()
        if program is not None:
            version, isa = program.version, cpu_isa(most="avx512")
        self.engine_class = f"llamacpp@{version}/{quant.lower()}/cpu-{isa}"
        self.parameters = frozenset(parameters.ALL)
        self._slots = Slots(slots)
        self._child: Child | None = None
        self._transport: HttpTransport | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._retry_at_s = 0.0  # loop time
        self._control = ControlText(())  # known once it is started
        self.restarts = 0
        self.sandbox = sandbox.NONE  # what holds the running child back, in words
        self.last_failure = ""

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the child and load the model. Raises Unavailable(engine_unavailable)."""
        assert self._supervisor is None, "start() once"
        child = await self._launch()
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(child))

    async def close(self) -> None:
        """Stop the child; calls under way fail."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        child = self._child
        await self._drop()
        if child is not None:
            await child.stop()

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self._transport is not None

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        """See `base.TextEngine`. Raises BadRequest: context_length_exceeded, invalid_request."""
        self._running()
        async with self._slots.hold(progress):
            transport, started = self._running(), False
            response: Response | None = None
            try:
                body = completion_body(call, await self._prompt(transport, call))
                response = await transport.request(
                    "POST", "/completion", self._headers, body, timeout_s=FIRST_WORD_S
                )
                if response.status != 200:
                    raise await refusal(response)

                async def tokenize(text: str) -> list[int]:
                    return await self._tokens(transport, text, special=False)

                reader = CompletionReader(
                    call.stop, progress, tokenize, call.top_logprobs, self._silence_s
                )
                async with aclosing(reader.chunks(response)) as chunks:
                    async for chunk in chunks:
                        started = True
                        yield chunk
            except EngineSilent:
                self._kick(transport)
                raise
            except TransportError as error:
                if isinstance(error, AnswerTimeout):
                    self._kick(transport)
                code = "engine_failed" if started else "engine_unavailable"
                raise Unavailable(f"the engine went away: {error}", code=code) from error
            finally:
                if response is not None:  # cut in the middle: the engine frees the slot
                    await response.close()

    # -- prompts ---------------------------------------------------------------------------------

    async def _prompt(self, transport: HttpTransport, call: TextCall) -> str | list[int]:
        """The prompt as the engine is to see it: text, or ids where an answer is continued.

        Ids, not text: the answer's own ids are what was produced, and text cut anew may differ.
        """
        prompt: str | list[int] = call.prompt or ""
        if call.messages is None:
            self._refuse_crowd([call.prompt or ""])
        else:
            messages = template_messages(call.messages)
            if self._refuse_crowd(text for m in messages for text in m.values()):
                prompt = await self._literal(transport, messages)
            else:
                prompt = await self._template(transport, messages)
        if not prompt:
            raise BadRequest("the prompt is empty", param="prompt")
        if not call.resume:
            return prompt
        if isinstance(prompt, str):
            prompt = await self._tokens(transport, prompt, special=True)
        return [*prompt, *call.resume]

    def _refuse_crowd(self, texts: Iterable[str]) -> int:
        """How many control tokens texts have. More than fit are refused here: the server takes
        time by their square, 17 s for 100,000, and would be taken for hung."""
        count = self._control.count(texts)
        if count > self.context:
            raise BadRequest(
                f"the prompt has {count} control tokens, and the context is of {self.context}",
                code="context_length_exceeded",
            )
        return count

    async def _literal(self, transport: HttpTransport, messages: list[dict[str, str]]) -> list[int]:
        """The prompt of messages that have control tokens in their text: see `control_text`."""
        nonce = secrets.token_hex(8)
        prompt = await self._template(transport, self._control.marked(messages, nonce))
        for stand_in in islice(self._control.unused(prompt), _STAND_INS):
            text, stands_for = self._control.unmarked(prompt, nonce, stand_in)
            place = await self._tokens(transport, stand_in, special=True, begin=False)
            found = await self._tokens(transport, text, special=True)
            if len(place) == 1 and found.count(place[0]) == len(stands_for):
                break
        else:
            raise BadRequest("the messages have control tokens of this model", param="messages")
        plain = {t: await self._plain(transport, t) for t in set(stands_for)}
        rest = iter(stands_for)
        pieces = (plain[next(rest)] if token == place[0] else [token] for token in found)
        return [token for piece in pieces for token in piece]

    async def _plain(self, transport: HttpTransport, text: str) -> list[int]:
        """A control token's text as text. One that its file calls user-defined is read as that
        token wherever it stands whole, so that its first character is cut off."""
        ids = await self._tokens(transport, text, special=False)
        if ids != await self._tokens(transport, text, special=True, begin=False):
            return ids
        parts = [await self._tokens(transport, t, special=False) for t in (text[:1], text[1:]) if t]
        return [token for part in parts for token in part]

    async def _template(self, transport: HttpTransport, messages: list[dict[str, str]]) -> str:
        body = {"messages": messages}
        return str((await self._ask(transport, "/apply-template", body))["prompt"])

    async def _tokens(
        self, transport: HttpTransport, text: str, *, special: bool, begin: bool | None = None
    ) -> list[int]:
        """`special`: control tokens are read as such, and a prompt's beginning has its own."""
        starts = special if begin is None else begin
        body = {"content": text, "add_special": starts, "parse_special": special}
        ids: list[int] = (await self._ask(transport, "/tokenize", body))["tokens"]
        return ids

    async def _ask(self, transport: HttpTransport, path: str, body: object) -> Any:
        response = await transport.request(
            "POST", path, self._headers, orjson.dumps(body), timeout_s=SHORT_CALL_S
        )
        try:
            if response.status != 200:
                raise await refusal(response)
            return orjson.loads(await response.read(MAX_PROMPT_BYTES))
        except AnswerInvalid as error:  # the caller's fault and not the engine's
            message = f"the prompt is too long: {error.message}"
            raise BadRequest(message, code="context_length_exceeded") from error
        finally:
            await response.close()

    # -- the child -------------------------------------------------------------------------------

    def _running(self) -> HttpTransport:
        if self._transport is not None:
            return self._transport
        wait_s = max(1, ceil(self._retry_at_s - asyncio.get_running_loop().time()))
        message = "the engine is not running" + (f": {self.last_failure}" * bool(self.last_failure))
        raise Unavailable(message, code="engine_unavailable", retry_after_s=wait_s)

    async def _launch(self) -> Child:
        key = secrets.token_urlsafe(32)
        sizes = {
            "slots": self.slots,
            "context": self.context,
            "batch": BATCH,
            "threads": self.threads,
        }
        config: dict[str, object] = {"path": str(self.path), "key": key}
        if self._program is None:
            child = await start_child(CHILD_SCRIPT, {**config, "alias": self.alias, **sizes})
        else:
            flags = self._program.flags(self.path, self.alias, sizes)
            config |= {"program": str(self._program.path), "flags": flags}
            child = await start_child(SERVER_SCRIPT, config)
        self._headers = [
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {key}".encode()),
        ]
        self._child = child
        self._control = ControlText(child.answer["control"])
        self.sandbox = child.answer["sandbox"]
        if self.sandbox.startswith(sandbox.NONE):
            _LOG.warning("no sandbox for the engine of %s: %s", self.alias, self.sandbox)
        self._transport = HttpTransport(child.answer["url"])
        return child

    async def _supervise(self, child: Child) -> None:
        """Wait for the child's death and start another, after 0.5 s, 1 s, ... 30 s."""
        loop = asyncio.get_running_loop()
        pause_s = BACKOFF_FIRST_S
        while True:
            started_s = loop.time()
            status = await child.wait()
            self.last_failure = f"it ended with status {status}"
            if loop.time() - started_s > STABLE_S:
                pause_s = BACKOFF_FIRST_S
            self._retry_at_s = loop.time() + pause_s
            await self._drop()
            await child.stop()
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, BACKOFF_MAX_S)
                try:
                    child = await self._launch()
                except Unavailable as error:
                    self.last_failure = error.message
                    self._retry_at_s = loop.time() + pause_s
                else:
                    self.restarts += 1
                    break

    def _kick(self, transport: HttpTransport) -> None:
        """End a child that hangs, unless another took its place; `_supervise` starts the next."""
        if self._child is not None and transport is self._transport:
            _LOG.warning("the engine of %s hangs and is started again", self.alias)
            self._child.kill()

    async def _drop(self) -> None:
        transport, self._transport, self._child = self._transport, None, None
        if transport is not None:
            await transport.close()


def cpu_isa(cpuinfo: Path = Path("/proc/cpuinfo"), most: str = "avx2") -> str:
    """The instruction set that is used here, which decides the rounding.

    The wheel is built without AVX-512, so that a machine that has it computes like one with AVX2.
    """
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return machine or "unknown"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return "x86_64"
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if most == "avx512" and "avx512f" in flags:
        return most
    if {"avx2", "fma", "f16c"} <= set(flags):
        return "avx2"
    return "avx" if "avx" in flags else "sse42"


def _version() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return "none"
