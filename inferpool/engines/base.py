"""The seam to an engine. A text engine yields tokens, a tensor engine answers tensors.

Implementations: `llamacpp.LlamaCppEngine` (child process), `onnx.OnnxEngine`,
`embedding.MiniLmEngine`, `whisper.WhisperEngine`, `terrain.TerrainEngine` (in process),
`openai.OpenAiEngine` and `oip.OipEngine` (another server, by URL), and
`fake.FakeTextEngine`, `fake.FakeTensorEngine` (deterministic, for tests and the simulator).

Everything that reaches an engine was validated before: engines answer 200 to nonsense.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Protocol

from inferpool.protocol.calls import CallDelta
from inferpool.protocol.logprobs import TokenLogprob
from inferpool.protocol.shape import Shape
from inferpool.protocol.transcription import Transcript

FinishReason = Literal["stop", "length", "tool_calls"]  # the last is the node's: engines tell text

# In place of a log-probability that the engine did not tell: above any real one, and finite, so
# that evidence can carry it. Within a character no engine tells it; elsewhere it is told where the
# call asks for `top_logprobs`, since it can cost a sort of the vocabulary at each token.
UNKNOWN_LOGPROB: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every sampler number of a call, always sent explicitly; the seed fixes the draw."""

    seed: int  # 0 to 2**32-1
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class TextCall:
    """One generation. `messages` for chat (OpenAI's objects, text content), else `prompt`."""

    messages: tuple[dict[str, object], ...] | None
    prompt: str | None
    max_output: int  # tokens, at least 1
    sampling: Sampling
    stop: tuple[str, ...] = ()
    resume: tuple[int, ...] = ()  # token ids already produced: go on after them, repeat none
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, each with what its logit gains
    shape: Shape | None = None  # what the answer must look like; calls come as text, in their tags
    top_logprobs: int | None = None  # tell `tokens`, each with so many alternatives
    # The messages with calls and their results as OpenAI's objects, for a server that writes them
    # and the shape's functions into a prompt itself; in `messages` they are text.
    conversation: tuple[dict[str, object], ...] | None = None


@dataclass(frozen=True, slots=True)
class TextChunk:
    """What the engine produced since the last chunk.

    `ids` and `logprobs` have the same length; the text may be empty (half a character). The last
    chunk has a `finish_reason` and the prompt's token count, `resume` ids included. An engine that
    tells no ids counts in `output_units`: tokens so far, 0 where the ids count.
    """

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_units: int | None = None
    output_units: int = 0
    calls: tuple[CallDelta, ...] = ()  # that the node read out of the text
    tokens: tuple[TokenLogprob, ...] = ()  # of the ids, where the call asks for them


class Phase(StrEnum):
    """Where a call is in the engine; the node's heartbeat repeats it (`: prefill 40`)."""

    QUEUED = "queued"
    PREFILL = "prefill"
    TOKENS = "tokens"


@dataclass(slots=True)
class Progress:
    """The engine's own word on one call, read by the heartbeat each second.

    `count` is the place in the queue, the prompt tokens done, or the tokens produced. An adapter
    sets it only when the engine told it so: a front end can beat while its engine hangs.
    """

    phase: Phase = Phase.QUEUED
    count: int = 0
    prompt_units: int | None = None  # as soon as the engine told it: a call that is cut is metered


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the Open Inference Protocol, V2.

    `data` is the little-endian raw content (for BYTES: each element preceded by its length as a
    4-byte little-endian integer), as in the binary tensor extension.
    """

    name: str
    datatype: str  # BOOL, UINT8..UINT64, INT8..INT64, FP16, FP32, FP64, BYTES
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output that a model declares; -1 in the shape: any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Engine(Protocol):
    """What every engine has."""

    engine_class: str  # design D5, e.g. "llamacpp@2026.10.11549/q4_1/cpu-avx2"

    async def start(self) -> None:
        """Load the model; returns when it can serve. Raises Unavailable(engine_unavailable)."""
        ...

    async def close(self) -> None:
        """Unload; no process, thread or socket stays behind."""
        ...

    def ready(self) -> bool:
        """Whether a call would be taken now."""
        ...


class TextEngine(Engine, Protocol):
    """An engine that generates text."""

    slots: int  # calls that run at once
    parameters: frozenset[str]  # what it takes beyond the common (`protocol.parameters`)

    def generate(self, call: TextCall, progress: Progress) -> AsyncIterator[TextChunk]:
        """Generate; closing the iterator frees the slot within one engine batch.

        Raises Unavailable: engine_unavailable before the first chunk, engine_failed after it.
        """
        ...


class TensorEngine(Engine, Protocol):
    """An engine that maps tensors to tensors; the first dimension of each is the row."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    async def infer(self, inputs: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Run one batch. Raises BadRequest(invalid_tensor), Unavailable(engine_failed)."""
        ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of little-endian 32-bit floats, one for each text, and the tokens they took."""

    vectors: tuple[bytes, ...]
    prompt_units: int


class EmbeddingEngine(Engine, Protocol):
    """An engine that maps texts to vectors of length 1."""

    dimensions: int

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector a text, in order; a text's vector does not depend on its neighbours.

        Raises BadRequest(context_length_exceeded) for a text that is too long: none is cut.
        """
        ...


class TranscriptionEngine(Engine, Protocol):
    """An engine that writes down what is said."""

    slots: int  # calls that run at once

    async def transcribe(self, audio: bytes, language: str | None, audio_ms: int) -> Transcript:
        """Transcribe a file of a measured length. Cancelling ends the work at its next window.

        Raises BadRequest: audio that cannot be decoded or is longer than `audio_ms`.
        """
        ...


class ImageEngine(Engine, Protocol):
    """An engine that draws."""

    slots: int
    size: tuple[int, int]  # width and height in pixels

    async def draw(self, prompt: str, count: int, seed: int) -> list[bytes]:
        """PNG files; image i is drawn from seed + i. Raises BadRequest for another prompt."""
        ...
