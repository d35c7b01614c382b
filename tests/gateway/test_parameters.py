"""Parameters that not every node takes: told with the offer, kept by the router, never dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferpool.engines.fake import _told
from inferpool.transport.base import ConnectionCut
from tests.gateway.parts import CHAT, Answer, Pool, expected_text, pool, url_of


def first(made: Pool) -> None:
    """Make the first node the one that is tried first."""
    for known in made.known:
        known.blocked_until_ms = 0 if known.url == url_of(0) else 2**60


def tokens_of(answer: Answer) -> list[Any]:
    """What was told of each token, streamed or not."""
    if answer.body.startswith(b"{"):
        told = answer.json["choices"][0]["logprobs"]
        return list(told["content"])
    choices = [e["choices"][0] for e in answer.events if isinstance(e, dict) and e.get("choices")]
    return [
        token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]
    ]


def cut_after(made: Pool, tokens: int) -> None:
    """Cut the first node's pipe after so many tokens, once."""
    left = [tokens]

    def on_event(event: bytes) -> list[bytes]:
        if b'"ids"' in event:
            left[0] -= 1
            if left[0] < 0:
                made.liar.on_event = None
                raise ConnectionCut("cut by the test")
        return [event]

    made.liar.on_event = on_event


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("tokens", [0, 1, 7])
async def test_log_probabilities_go_on_at_another_node(tokens: int, stream: bool) -> None:
    async with pool(2) as made:
        whole = tokens_of(await made.chat(max_tokens=12, logprobs=True, top_logprobs=2))
        assert len(whole) == 12
        assert [token["top_logprobs"][0]["token"] for token in whole] == [t["token"] for t in whole]
        first(made)
        cut_after(made, tokens)
        answer = await made.chat(stream=stream, max_tokens=12, logprobs=True, top_logprobs=2)
        assert answer.proof["legs"] == 2
        assert tokens_of(answer) == whole
        assert "".join(token["token"] for token in whole) == expected_text("hello", 5, 12)


async def test_only_nodes_that_take_a_parameter_are_asked() -> None:
    async with pool(2) as made:
        made.nodes[0].engine.parameters = frozenset()
        made.nodes[0].node.services.hosted[0]._service = None
        made.nodes[0].node.announce()
        await made.gateway.gateway.directory.refresh()
        for known in made.known:
            service = known.offer.service("fake-chat")
            assert service is not None
            assert bool(service.parameters) == (known.url == url_of(1))
        for _ in range(8):
            assert (await made.chat(logprobs=True)).status == 200
        assert CHAT not in made.liars[url_of(0)].asked
        for _ in range(8):
            assert (await made.chat()).status == 200
        assert CHAT in made.liars[url_of(0)].asked


async def test_what_no_node_takes_is_refused_by_name() -> None:
    async with pool() as made:
        known = made.known[0]
        made.nodes[0].engine.parameters = frozenset()
        made.nodes[0].node.services.hosted[0]._service = None
        made.nodes[0].node.announce()
        await made.gateway.gateway.directory.look(known)
        answer = await made.chat(logprobs=True)
        assert (answer.status, answer.code) == (400, "unsupported_parameter")
        assert answer.json["error"]["param"] == "logprobs"
        assert made.nodes[0].node.ledger.channels == {}
        models = (await made.send("GET", "/v1/models")).json["data"]
        (chat,) = [model for model in models if model["id"] == "fake-chat"]
        assert "temperature" in chat["inferpool"]["supported_parameters"]
        assert "logprobs" not in chat["inferpool"]["supported_parameters"]


async def test_parameters_that_the_node_did_not_sign_are_no_offer() -> None:
    """Who passes a node's offer on cannot say that it takes more, or less."""
    async with pool(start=False) as made:
        made.pipe(url_of(0))

        def altered(data: bytes) -> bytes:
            assert b'"parameters":["' in data
            return data.replace(b"logit_bias,", b"logic_bias,", 1)

        made.liar.on_offer = altered
        await made.gateway.start()
        try:
            assert made.known == []
        finally:
            await made.gateway.gateway.close()


@pytest.mark.parametrize(
    "alter",
    [
        lambda told: told["content"].clear(),
        lambda told: told["content"].append(dict(told["content"][0])),
        lambda told: told["content"][0].update(logprob=1.5),
        lambda told: told["content"][0].update(logprob="-1"),
        lambda told: told["content"][0].update(bytes=[256]),
        lambda told: told["content"][0].pop("top_logprobs"),
        lambda told: told["content"][0].update(top_logprobs=[dict(told["content"][0])] * 21),
    ],
)
async def test_log_probabilities_that_are_none_are_a_bad_answer(alter: Any) -> None:
    def on_event(event: bytes) -> list[bytes]:
        value = json.loads(event[6:])
        told = value["choices"][0]["logprobs"]
        if told and told["content"]:
            alter(told)
        return [b"data: " + json.dumps(value).encode()]

    async with pool() as made:
        made.liar.on_event = on_event
        answer = await made.chat(logprobs=True, max_tokens=3)
        assert answer.status == 502


def test_the_fake_engine_leads_its_alternatives() -> None:
    told = _told(7, 3)
    assert told.top[0] == (told.text, told.logprob)
