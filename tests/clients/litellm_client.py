"""litellm as a client, in its own environment: chat whole and streamed, embeddings, errors.

It reads the gateway's URL and key from the environment; prints a line for each check, and fails
with the first that does not hold. Beside it lies no code of this project.
"""

from __future__ import annotations

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches one when it is imported

import litellm

litellm.suppress_debug_info = True
GATEWAY, KEY = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]
CHAT = "openai/smollm2-135m-instruct"
EMBED = "openai/all-minilm-l6-v2"
THERE = {"api_base": f"{GATEWAY}/v1", "api_key": KEY, "num_retries": 0}
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def whole() -> str:
    answer = litellm.completion(
        model=CHAT, messages=QUESTION, max_tokens=24, temperature=0, seed=1, **THERE
    )
    text = answer.choices[0].message.content
    assert "Paris" in text, text
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens > 0
    assert answer.system_fingerprint.startswith("fp_")
    return str(text)


def streamed(expected: str) -> None:
    chunks = list(
        litellm.completion(
            model=CHAT,
            messages=QUESTION,
            max_tokens=24,
            temperature=0,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
            **THERE,
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected, (text, expected)
    assert chunks[-1].usage.completion_tokens > 0


def embedded() -> None:
    """Near in meaning is near in space."""
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Rates of interest rose."]
    data = litellm.embedding(model=EMBED, input=texts, **THERE).data
    near, far = (
        sum(a * b for a, b in zip(data[0]["embedding"], data[i]["embedding"], strict=True))
        for i in (1, 2)
    )
    assert near > 0.5 > far + 0.2, (near, far)


def formed() -> None:
    """JSON by a schema. (For calls this release wants a package that it does not name.)"""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": True}}
    asked = {"model": CHAT, "messages": QUESTION, "max_tokens": 120, **THERE}
    answer = litellm.completion(**asked, response_format=form)
    assert list(json.loads(answer.choices[0].message.content)) == ["city"], answer


def refused() -> None:
    """Each error is the class that litellm has for its status, with our own words."""
    for kind, words, change in (
        (litellm.NotFoundError, "no-such-model", {"model": "openai/no-such-model"}),
        (litellm.AuthenticationError, "API key", {"api_key": "wrong"}),
        (litellm.BadRequestError, "each bias", {"logit_bias": {"7": 101}}),
    ):
        asked = {"model": CHAT, "messages": QUESTION, "max_tokens": 4, **THERE, **change}
        try:
            litellm.completion(**asked)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{change} was served")


text = whole()
print(f"litellm {litellm._version.version}: whole answer {text!r}")
streamed(text)
print("litellm: the same, streamed, with usage")
embedded()
print("litellm: embeddings")
formed()
print("litellm: JSON by a schema")
refused()
print("litellm: errors by class")
