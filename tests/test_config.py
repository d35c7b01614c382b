"""Configuration: default < file < environment < flag; each value knows its origin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from inferpool.chain.memory import MemoryChain
from inferpool.clock import SystemClock
from inferpool.config import SECTIONS, Config, load
from inferpool.daemon.gateway import directory_of, serve_gateway
from inferpool.daemon.workers import Worker
from inferpool.home import Home
from inferpool.protocol.errors import Refused
from inferpool.transport.base import ConnectFailed


def file(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(*arguments: Any) -> Refused:
    with pytest.raises(Refused) as raised:
        load(*arguments)
    assert raised.value.code == "bad_config"
    return raised.value


def test_without_anything_all_is_default() -> None:
    found = load(None, {})
    assert found.node == Config().node
    assert found.gateway.open is False, "nobody is let in without a key unless told so"
    assert set(found.origins.values()) == {"default"}
    assert {key.split(".")[0] for key in found.origins} == set(SECTIONS)


def test_each_layer_goes_over_the_one_before(tmp_path: Path) -> None:
    path = file(tmp_path, "[node]\nport = 1\nslots = 1\nthreads = 1\n")
    environ = {"INFERPOOL_NODE_PORT": "2", "INFERPOOL_NODE_SLOTS": "2"}
    found = load(path, environ, {"node.port": 3, "node.host": None})
    assert (found.node.port, found.node.slots, found.node.threads) == (3, 2, 1)
    assert found.node.host == "127.0.0.1"
    origins = [found.origins[f"node.{key}"] for key in ("port", "slots", "threads", "host")]
    assert origins == ["flag", "INFERPOOL_NODE_SLOTS", str(path), "default"]


def test_a_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "none.toml", {}).node == Config().node


def test_every_type_from_file_and_environment(tmp_path: Path) -> None:
    path = file(
        tmp_path,
        '[node]\nmodels = ["a", "b"]\nprice_in_usd_per_million = 0.25\nport = 9\n'
        "[gateway]\nopen = true\n",
    )
    found = load(path, {})
    assert found.node.models == ("a", "b")
    assert found.node.price_in_usd_per_million == "0.25", "a number where text is meant"
    assert found.gateway.open is True
    found = load(
        path,
        {
            "INFERPOOL_NODE_MODELS": "c, d,",
            "INFERPOOL_GATEWAY_OPEN": "false",
            "INFERPOOL_NODE_PRICE_IN_USD_PER_MILLION": "0.5",
            "INFERPOOL_CHAIN_URL": "",
        },
    )
    assert found.node.models == ("c", "d")
    assert found.gateway.open is False
    assert found.node.price_in_usd_per_million == "0.5"


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("[node]\nprot = 1\n", "node.prot", "node.port"),
        ("[nodes]\nport = 1\n", "nodes.port", "node.port"),
        ("[gateway]\nopn = true\n", "gateway.opn", "gateway.open"),
        ("port = 1\n", "port", "node.port"),
        ("zzzzzzzz = 1\n", "zzzzzzzz", ""),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    error = refusal(file(tmp_path, text), {})
    assert error.param == key
    assert "config.toml" in error.message
    assert f"did you mean {near}" in error.message if near else "known:" in error.message


def test_an_unknown_variable_is_told_by_its_name() -> None:
    error = refusal(None, {"INFERPOOL_NODE_PROT": "1"})
    assert "INFERPOOL_NODE_PROT" in error.message
    assert "did you mean node.port?" in error.message


def test_variables_that_mean_something_else_are_left_alone() -> None:
    environ = {"INFERPOOL_HOME": "/x", "INFERPOOL_PASSWORD": "x", "PATH": "/bin", "NODE_PORT": "1"}
    assert load(None, environ).node == Config().node


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[node]\nport = "8421"\n', "whole number"),
        ("[node]\nport = 1.5\n", "whole number"),
        ("[node]\nport = true\n", "whole number"),
        ("[gateway]\nopen = 1\n", "true or false"),
        ('[gateway]\nopen = "yes"\n', "true or false"),
        ('[node]\nmodels = "a"\n', "list of strings"),
        ("[node]\nmodels = [1]\n", "list of strings"),
        ("[node]\nhost = []\n", "string"),
        ("[node]\nhost = true\n", "string"),
        ("[node]\nhost = false\n", "string"),
        ("[node]\nhost = 2026-01-01\n", "string"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    error = refusal(file(tmp_path, text), {})
    assert wanted in error.message
    assert error.param is not None
    assert error.param in error.message


@pytest.mark.parametrize("text", ["", "abc", "1.5", "--5", "5-", "\u00b2", "0x10"])
def test_a_number_in_the_environment_that_is_none(text: str) -> None:
    error = refusal(None, {"INFERPOOL_NODE_PORT": text})
    assert "INFERPOOL_NODE_PORT" in error.message
    assert "whole number" in error.message


def test_a_flag_of_another_type_is_refused() -> None:
    assert "flag" in refusal(None, {}, {"node.port": "x"}).message


@pytest.mark.parametrize("data", [b"[node\n", b"a = \xff\n", b"[node]\nport = 1\nport = 2\n"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    assert str(path) in refusal(path, {}).message


@pytest.mark.parametrize(
    ("flags", "private"),
    [
        ({}, True),
        ({"gateway.host": "::1"}, True),
        ({"gateway.host": "0.0.0.0"}, False),
        ({"gateway.host": "127.0.0.2"}, False),
        ({"gateway.endpoint": "https://gateway.example"}, False),
        ({"gateway.host": "0.0.0.0", "gateway.allow_private": True}, True),
        ({"gateway.allow_private": False}, False),
    ],
    ids=repr,
)
def test_who_can_be_reached_calls_no_private_address(
    flags: dict[str, object], private: bool
) -> None:
    """Unless the operator says otherwise; nodes that the operator names are always called."""
    own = "http://127.0.0.1:9"
    config = load(None, {}, {**flags, "gateway.nodes": [own]})
    directory = directory_of(config, MemoryChain(lambda: 0), SystemClock())
    assert directory.allow_private is private

    async def dial(url: str) -> None:
        await directory.open_transport(url, None).request("GET", "/", (), timeout_s=5)

    for url, called in ((own, True), ("http://127.0.0.1:7", private)):
        with pytest.raises(ConnectFailed) as refused:
            asyncio.run(dial(url))
        assert ("private address" in refused.value.message) is not called


@pytest.mark.parametrize("shared", [{"gateway.workers": 2}, {"gateway.db": "postgresql://u@h/x"}])
def test_who_sells_by_x402_shares_its_book_with_no_other_process(
    tmp_path: Path, shared: dict[str, object]
) -> None:
    """Two processes that do not know of each other's answers would take one voucher twice."""
    config = load(None, {}, {"gateway.x402": True, **shared})
    with pytest.raises(Refused, match="a book and a process of its own") as raised:
        asyncio.run(serve_gateway(config, Home(tmp_path), Worker()))
    assert (raised.value.code, raised.value.param) == ("bad_config", "gateway.x402")
