"""OpenAI's plain completions request: one prompt, one text that goes on from it.

`best_of`, `echo` and `suffix` are served only where they ask for nothing. Source:
OpenAI's API reference, `POST /v1/completions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inferpool.protocol.body import fail, integer, read_json, refuse_rest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import BODY_CHAT_MAX, COMPLETION_LOGPROBS_MAX
from inferpool.protocol.text import TextRequest, take_shared

# Accepted and without effect here, with the values that mean "as usual".
NO_OPS: Final[dict[str, tuple[object, ...]]] = {
    "best_of": (1, None),
    "echo": (False, None),
    "suffix": ("", None),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(TextRequest):
    """A valid request."""

    prompt: str

    @property
    def job(self) -> Job:
        """The request's size. The one message pays for what a tokenizer puts before a text."""
        return Job(
            task=Task.COMPLETION,
            model=self.model,
            prompt_bytes=len(self.prompt.encode()),
            messages=1,
            resume_units=len(self.resume),
            max_output=self.max_output,
            choices=self.choices,
            stream=self.stream,
            needs=self.needs,
        )

    def encode(self) -> bytes:
        """The body that a gateway sends to a node: every value explicit."""
        asked: dict[str, object] = {"prompt": self.prompt}
        if self.top_logprobs is not None:
            asked["logprobs"] = self.top_logprobs
        return self.encode_with(asked)

    @classmethod
    def parse(cls, data: bytes) -> CompletionRequest:
        """Validate a body. Raises BadRequest with a stable code and the parameter's name."""
        body = read_json(data, BODY_CHAT_MAX)
        prompt = _prompt(body.pop("prompt", None))
        if "max_completion_tokens" in body:
            fail(
                "max_completion_tokens",
                "The parameter 'max_completion_tokens' is chat's; send max_tokens.",
                "unsupported_parameter",
            )
        most = integer(body.pop("logprobs", None), "logprobs", 0, COMPLETION_LOGPROBS_MAX)
        request = cls(prompt=prompt, top_logprobs=most, **take_shared(body))
        refuse_rest(body, NO_OPS)
        return request


def _prompt(value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value:
        fail("prompt", "prompt must be a string that is not empty, or a list with one such string.")
    return value
