"""Plain completions: each parameter served, refused or known to do nothing; both answer forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from inferpool.protocol import forms
from inferpool.protocol.chat import ChatRequest
from inferpool.protocol.completion import NO_OPS, CompletionRequest
from inferpool.protocol.errors import BadRequest
from inferpool.protocol.job import Task
from inferpool.protocol.usage import Usage
from tests.protocol import junk

LEAST: dict[str, Any] = {"model": "m", "prompt": "hello"}
FULL: dict[str, Any] = {
    **LEAST,
    "max_tokens": 5,
    "stop": ["\n"],
    "seed": 3,
    "temperature": 0.5,
    "top_k": 40,
    "stream": True,
    "stream_options": {"include_usage": True},
    "inferpool": {"resume": [1, 2, 3]},
    "n": 1,
    "echo": False,
}


def parse(**changes: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps(LEAST | changes).encode())


def test_job() -> None:
    job = parse(prompt="é", max_tokens=7, stream=True).job
    assert (job.task, job.prompt_bytes, job.messages) == (Task.COMPLETION, 2, 1)
    assert (job.max_output, job.stream) == (7, True)


def test_what_is_sent_on_parses_to_the_same() -> None:
    request = CompletionRequest.parse(json.dumps(FULL).encode())
    assert CompletionRequest.parse(request.encode()) == request
    assert request.resume == (1, 2, 3)


@pytest.mark.parametrize("prompt", ["hello", ["hello"]])
def test_a_prompt_is_one_text(prompt: object) -> None:
    assert parse(prompt=prompt).prompt == "hello"


@pytest.mark.parametrize("prompt", [None, "", [], [""], ["a", "b"], [1], [[1, 2]], 5, {}])
def test_other_prompts_are_refused(prompt: object) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("name", sorted(NO_OPS))
def test_no_ops_are_taken_and_others_refused_by_name(name: str) -> None:
    for usual in NO_OPS[name]:
        assert parse(**{name: usual}) == parse()
    with pytest.raises(BadRequest) as caught:
        parse(**{name: 77})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


def test_chats_name_for_the_maximum_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(max_completion_tokens=5)
    assert caught.value.param == "max_completion_tokens"


@given(junk.raw | junk.mutated(FULL))
def test_any_bytes(data: bytes) -> None:
    request = junk.answer(CompletionRequest.parse, data)
    if isinstance(request, CompletionRequest):
        assert request.job.prompt_bytes == len(request.prompt.encode()) > 0
        assert CompletionRequest.parse(request.encode()) == request


def test_a_chat_model_takes_completions_and_not_the_reverse() -> None:
    assert Task.CHAT.serves(Task.COMPLETION)
    assert not Task.COMPLETION.serves(Task.CHAT)
    assert all(task.serves(task) for task in Task)
    assert not Task.CHAT.serves(Task.EMBEDDING)


@pytest.mark.parametrize("form", [forms.CHAT, forms.COMPLETION], ids=["chat", "completion"])
def test_a_form_reads_what_it_writes(form: forms.Form) -> None:
    head = forms.head(form, "1", "m", 5)
    assert head["object"] == form.chunk_object
    choice: Any = form.piece(head, "text")["choices"]
    assert form.text_of(choice[0]) == "text"
    last: Any = form.last(head, "stop")["choices"]
    assert not form.text_of(last[0])
    assert last[0]["finish_reason"] == "stop"
    whole: Any = form.whole(head, "text", "length", Usage(2, 3))
    assert whole["usage"]["total_tokens"] == 5
    assert whole["object"] in ("chat.completion", "text_completion")


def test_a_request_knows_its_form() -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert forms.form_of(parse()) is forms.COMPLETION
    assert forms.form_of(ChatRequest.parse(json.dumps(chat).encode())) is forms.CHAT
