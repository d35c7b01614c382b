"""OpenAI's image generation request and answer, for small models.

Served: `prompt`, `n`, `size`, `response_format: b64_json`, and `seed`, which OpenAI does not have.
Source: OpenAI's API reference, `POST /v1/images/generations`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from inferpool.protocol.body import fail, flag, integer, model_name, read_json, refuse_rest, seed_of
from inferpool.protocol.job import Job, Task
from inferpool.protocol.limits import BODY_IMAGE_MAX, IMAGES_MAX, PROMPT_IMAGE_MAX
from inferpool.protocol.preferences import NO_PREFERENCES, RoutePreferences, take_preferences

# Accepted and without effect here, with the values that mean "as usual".
NO_OPS: Final[dict[str, tuple[object, ...]]] = {
    "background": ("auto", "opaque", None),
    "moderation": ("auto", None),
    "output_compression": (None,),
    "output_format": ("png", None),
    "partial_images": (0, None),
    "quality": ("auto", "standard", None),
    "style": (None,),
}
STEPS: Final = 1  # for each image, until a model needs more than one
_SIZE: Final = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}")


@dataclass(frozen=True, slots=True)
class ImagesRequest:
    """A valid request. `size`: "WIDTHxHEIGHT", or None for the model's own.

    `model`: "" where the client leaves it to the gateway, as OpenAI's API allows here alone.
    `stream`: each image as an event, once it is whole; between client and gateway only.
    """

    model: str
    prompt: str
    images: int = 1
    size: str | None = None
    seed: int | None = None  # 0 to 2**32-1; image i of a request is drawn from seed + i
    stream: bool = False
    preferences: RoutePreferences = NO_PREFERENCES  # for the gateway, and never sent on

    @property
    def job(self) -> Job:
        """The request's size."""
        return Job(task=Task.IMAGE, model=self.model, choices=self.images, steps=STEPS)

    def encode(self) -> bytes:
        """The body that a gateway sends to a node: every value explicit."""
        body: dict[str, object] = {"prompt": self.prompt, "n": self.images}
        if self.model:
            body["model"] = self.model
        if self.stream:
            body["stream"] = True
        if self.size is not None:
            body["size"] = self.size
        if self.seed is not None:
            body["seed"] = self.seed
        return orjson.dumps({**body, "response_format": "b64_json"})

    @classmethod
    def parse(cls, data: bytes) -> ImagesRequest:
        """Validate a body. Raises BadRequest with a stable code and the parameter's name."""
        body = read_json(data, BODY_IMAGE_MAX)
        if body.pop("response_format", None) not in ("b64_json", None):
            fail(
                "response_format",
                "Only response_format b64_json is served: a node keeps no images.",
                "unsupported_parameter",
            )
        request = cls(
            model="" if body.get("model") is None else model_name(body["model"]),
            prompt=_prompt(body.pop("prompt", None)),
            images=integer(body.pop("n", None), "n", 1, IMAGES_MAX) or 1,
            size=_size(body.pop("size", None)),
            seed=seed_of(body.pop("seed", None)),
            stream=flag(body.pop("stream", None), "stream"),
            preferences=take_preferences(body),
        )
        body.pop("model", None)
        refuse_rest(body, NO_OPS)
        return request


def _prompt(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= PROMPT_IMAGE_MAX:
        fail("prompt", f"prompt must be a string of 1 to {PROMPT_IMAGE_MAX} characters.")
    return value


def _size(value: object) -> str | None:
    if value in (None, "auto"):
        return None
    if not isinstance(value, str) or not _SIZE.fullmatch(value):
        fail("size", "size must be auto or WIDTHxHEIGHT in pixels, such as 128x128.")
    return value


def answer(created_s: int, images: Sequence[bytes]) -> bytes:
    """The body of an answer. `images`: PNG files."""
    data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
    return orjson.dumps({"created": created_s, "data": data, "output_format": "png"})


def events(answer: bytes) -> list[dict[str, object]]:
    """A whole answer as the events of a stream: one for each image, and none before it is whole."""
    whole = orjson.loads(answer)
    return [
        {
            "type": "image_generation.completed",
            "b64_json": image["b64_json"],
            "created_at": whole["created"],
            "output_format": whole["output_format"],
        }
        for image in whole["data"]
    ]
