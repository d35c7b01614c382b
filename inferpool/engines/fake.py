"""Engines that invent their answers, always the same: for tests, simulation and first contact.

A token id is a pure function of (prompt text, seed, position), and its text is ` w<id>`, so that
text and ids determine each other and any lost, repeated or altered token is seen. Answers that are
held to a form are made of characters, whose ids come after those of the words.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import orjson

from inferpool.engines.base import (
    Embeddings,
    FinishReason,
    Phase,
    Progress,
    Tensor,
    TensorSpec,
    TextCall,
    TextChunk,
)
from inferpool.engines.invention import invent
from inferpool.engines.png import grey_png
from inferpool.engines.slots import Slots
from inferpool.engines.stop_text import StopText
from inferpool.engines.tensor_check import check_inputs
from inferpool.protocol import parameters
from inferpool.protocol.errors import Unavailable
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.text import BIAS_MAX

VOCABULARY: Final = 50_000
_ROW: Final = 4


def prompt_text(call: TextCall) -> str:
    """All of a call's prompt text: the plain prompt, or the messages as one JSON text."""
    if call.messages is None:
        return call.prompt or ""
    pairs = [[message.get("role"), message.get("content")] for message in call.messages]
    return orjson.dumps(pairs).decode()


def token_id(prompt: str, seed: int, position: int) -> int:
    """The id at a position (from 0) of the one answer to this prompt with this seed."""
    digest = hashlib.blake2b(f"{seed}/{position}/{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % VOCABULARY


def token_text(token: int) -> str:
    """The text of an id: a word's, or after those a character's."""
    return f" w{token}" if token < VOCABULARY else chr(token - VOCABULARY)


class FakeTextEngine:
    """A `TextEngine`. Faults are attributes and may be set while it runs.

    `answer_tokens`: the length at which an answer ends by itself (`stop`); None: only `max_output`
    ends it. `fail_after`, `hang_after`: after that many tokens of a call it raises
    Unavailable(engine_failed) or goes silent. `up`: False refuses calls, as while loading.
    """

    def __init__(
        self,
        engine_class: str = "fake@1/none/none",
        slots: int = 4,
        *,
        token_delay_s: float = 0.0,
        prefill_delay_s: float = 0.0,
        answer_tokens: int | None = None,
    ) -> None:
        self.engine_class = engine_class
        self.slots = slots
        self.token_delay_s, self.prefill_delay_s = token_delay_s, prefill_delay_s
        self.answer_tokens = answer_tokens
        self.fail_after: int | None = None
        self.hang_after: int | None = None
        self.up = False
        self.parameters = frozenset(
            {
                parameters.LOGIT_BIAS,
                parameters.LOGPROBS,
                parameters.RESPONSE_FORMAT,
                parameters.TOOLS,
            }
        )
        self._slots = Slots(slots)

    @property
    def free(self) -> int:
        """Slots that are free now."""
        return self._slots.free

    async def start(self) -> None:
        """Ready at once."""
        self.up = True

    async def close(self) -> None:
        """Take no more calls."""
        self.up = False

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self.up

    async def generate(self, call: TextCall, progress: Progress) -> AsyncGenerator[TextChunk, None]:
        """One chunk per token. Raises Unavailable: engine_unavailable, engine_failed."""
        if not self.up:
            raise Unavailable("the engine is not running", code="engine_unavailable")
        async with self._slots.hold(progress):
            prompt = prompt_text(call)
            units = -(-len(prompt.encode()) // 4) + len(call.resume)
            progress.phase, progress.count = Phase.PREFILL, 0
            await asyncio.sleep(self.prefill_delay_s)
            progress.count = progress.prompt_units = units
            answer = StopText(call.stop)
            position = len(call.resume)
            script = _script(call, prompt)
            for produced in range(1, call.max_output + 1):
                await self._pace(produced - 1)
                token = _next(script, call, prompt, position)
                position += 1
                progress.phase, progress.count = Phase.TOKENS, produced
                text, stopped = answer.take(token_text(token))
                finish: FinishReason | None = "stop" if stopped else None
                ended = position == (len(script) if script else self.answer_tokens)
                if not stopped and ended:
                    finish, text = "stop", text + answer.rest()
                elif not stopped and produced == call.max_output:
                    finish, text = "length", text + answer.rest()
                last = units if finish else None
                told = () if call.top_logprobs is None else (_told(token, call.top_logprobs),)
                yield TextChunk(text, (token,), (_logprob(token),), finish, last, tokens=told)
                if finish:
                    return

    async def _pace(self, produced: int) -> None:
        if self.fail_after is not None and produced >= self.fail_after:
            raise Unavailable("the engine was told to fail", code="engine_failed")
        if self.hang_after is not None and produced >= self.hang_after:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.token_delay_s)
        if not self.up:
            raise Unavailable("the engine was closed", code="engine_failed")


class _Ready:
    """What the fakes that answer whole have in common."""

    def __init__(self, engine_class: str = "fake@1/f32/none") -> None:
        self.engine_class = engine_class
        self.up = False

    async def start(self) -> None:
        """Ready at once."""
        self.up = True

    async def close(self) -> None:
        """Take no more calls."""
        self.up = False

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        return self.up

    def _check(self) -> None:
        if not self.up:
            raise Unavailable("the engine is not running", code="engine_unavailable")


class FakeEmbeddingEngine(_Ready):
    """An `EmbeddingEngine`: eight numbers of a text's hash, brought to length 1."""

    dimensions = 8

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector a text. A token is four bytes, and two marks. Raises Unavailable."""
        self._check()
        units = sum(2 - (-len(text.encode()) // 4) for text in texts)
        return Embeddings(tuple(self._vector(text) for text in texts), units)

    def _vector(self, text: str) -> bytes:
        digest = hashlib.blake2b(text.encode(), digest_size=self.dimensions).digest()
        numbers = [byte - 127.5 for byte in digest]
        length = math.hypot(*numbers)
        return struct.pack(f"<{self.dimensions}f", *(number / length for number in numbers))


class FakeImageEngine(_Ready):
    """An `ImageEngine`: grey noise of the prompt and the seed."""

    slots = 4
    size = (16, 16)

    async def draw(self, prompt: str, count: int, seed: int) -> list[bytes]:
        """PNG files; image i is drawn from seed + i. Raises Unavailable."""
        self._check()
        return [self._image(prompt, seed + i) for i in range(count)]

    def _image(self, prompt: str, seed: int) -> bytes:
        width, height = self.size
        pixels = hashlib.shake_128(f"{seed}/{prompt}".encode()).digest(width * height)
        return grey_png(width, height, pixels)


class FakeTensorEngine(_Ready):
    """A `TensorEngine`: the FP32 sum of each row of four FP32 numbers. `fail`: raise instead."""

    inputs = (TensorSpec("x", "FP32", (-1, _ROW)),)
    outputs = (TensorSpec("sum", "FP32", (-1, 1)),)

    def __init__(self, engine_class: str = "fake@1/f32/none", *, delay_s: float = 0.0) -> None:
        super().__init__(engine_class)
        self.delay_s = delay_s
        self.fail = False

    async def infer(self, inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Row sums. Raises BadRequest(invalid_tensor), Unavailable."""
        self._check()
        (tensor,) = check_inputs(self.inputs, inputs, rows)
        await asyncio.sleep(self.delay_s)
        if self.fail:
            raise Unavailable("the engine was told to fail", code="engine_failed")
        numbers = struct.unpack(f"<{rows * _ROW}f", tensor.data)
        sums = [sum(numbers[at : at + _ROW]) for at in range(0, len(numbers), _ROW)]
        return [Tensor("sum", "FP32", (rows, 1), struct.pack(f"<{rows}f", *sums))]


def _script(call: TextCall, prompt: str) -> list[int]:
    """The ids of an answer that is held to a form; none where the answer is words."""
    if call.shape is None:
        return []
    text = invent(call.shape, call.sampling.seed, prompt) or ""
    return [VOCABULARY + ord(char) for char in text]


def _next(script: list[int], call: TextCall, prompt: str, position: int) -> int:
    """The id at a position; a bias of 100 takes its id always, one of -100 never."""
    if script:
        return script[position]
    forced = [token for token, bias in call.logit_bias if bias >= BIAS_MAX]
    token = forced[0] if forced else token_id(prompt, call.sampling.seed, position)
    while (token, -float(BIAS_MAX)) in call.logit_bias:
        token = (token + 1) % VOCABULARY
    return token


def _told(token: int, alternatives: int) -> TokenLogprob:
    """The token with its next neighbours as alternatives, itself first."""
    top = [(token + i) % VOCABULARY for i in range(alternatives)]
    return TokenLogprob(
        token_text(token).encode(),
        _logprob(token),
        tuple((token_text(other).encode(), _logprob(token) - i) for i, other in enumerate(top)),
    )


def _logprob(token: int) -> float:
    return -(token % 1000) / 500
