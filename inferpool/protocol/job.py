"""A client's request as routing and pricing see it, whatever API it came through."""

from __future__ import annotations

from enum import StrEnum

from inferpool.protocol.value import value


class Task(StrEnum):
    """What a service does; each has its own unit of price."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    TENSOR = "tensor"
    TRANSCRIPTION = "transcription"
    IMAGE = "image"

    @property
    def unit(self) -> str:
        """The unit of price: token, row, second or step."""
        return _UNITS[self]

    def serves(self, wanted: Task) -> bool:
        """Whether a service of this task takes a job of that one.

        A model that chats also completes: the prompt goes to it without the template.
        """
        return self is wanted or (self is Task.CHAT and wanted is Task.COMPLETION)


_UNITS = {
    Task.CHAT: "token",
    Task.COMPLETION: "token",
    Task.EMBEDDING: "token",
    Task.TENSOR: "row",
    Task.TRANSCRIPTION: "second",
    Task.IMAGE: "step",
}


@value
class Job:
    """The size of a request, as both sides count it on the body that is sent.

    A job says nothing about content: it is what a price and a route depend on.
    """

    task: Task
    model: str  # the name that the client asked for
    prompt_bytes: int = 0  # UTF-8 bytes of all prompt text, roles and names included
    messages: int = 0  # chat messages, or texts to embed
    resume_units: int = 0  # token ids that an earlier attempt already produced
    max_output: int | None = None  # tokens per choice; None: the service's default
    choices: int = 1
    rows: int = 0
    audio_ms: int = 0
    steps: int = 0
    stream: bool = False
    needs: tuple[str, ...] = ()  # names that a service must take (`parameters`), in order
