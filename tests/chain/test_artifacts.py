"""The committed artifacts are what the sources compile to, and the sources keep their promises."""

from __future__ import annotations

import re

import pytest

from inferpool.chain import build
from inferpool.chain.abi import contract
from inferpool.chain.addresses import FIXED

SOURCES = sorted(build.CONTRACTS.glob("*.vy"))
DEPLOYABLE = [path for path in SOURCES if path.stem in FIXED]


@pytest.mark.timeout(180)  # all of the compiler, on a busy machine
def test_artifacts_are_what_the_sources_compile_to() -> None:
    assert build.ARTIFACTS.read_text(encoding="utf-8") == build.to_json(build.build())


def test_every_fixed_contract_has_a_source() -> None:
    assert {path.stem for path in DEPLOYABLE} == set(FIXED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_function_has_natspec(path: build.Path) -> None:
    text = path.read_text(encoding="utf-8")
    functions = re.findall(r"^def \w+\(", text, re.MULTILINE)
    bodies = re.split(r"^def ", text, flags=re.MULTILINE)[1:]
    documented = [body for body in bodies if re.search(r":\n    \"\"\"\s*@dev", body)]
    interfaces = len(re.findall(r"^    def \w+\(", text, re.MULTILINE))
    assert functions, f"{path.stem} has no function"
    assert len(documented) == len(functions), f"{interfaces} interface functions are exempt"


@pytest.mark.parametrize("path", DEPLOYABLE, ids=lambda path: path.stem)
def test_every_deployable_says_how_it_can_be_stopped(path: build.Path) -> None:
    assert "@custom:kill Cannot be stopped" in path.read_text(encoding="utf-8")


def test_the_registry_is_small_and_has_no_admin() -> None:
    source = (build.CONTRACTS / "Registry.vy").read_text(encoding="utf-8")
    assert source.count("\n") < 250
    changing = {
        entry["name"]
        for entry in contract("Registry").abi
        if entry["type"] == "function" and entry["stateMutability"] == "nonpayable"
    }
    assert changing == {
        "register", "replace_key", "set_endpoint", "deregister",
        "add_stake", "unstake", "withdraw_stake", "slash",
    }  # fmt: skip


def test_the_court_is_small_and_can_only_judge() -> None:
    source = (build.CONTRACTS / "Disputes.vy").read_text(encoding="utf-8")
    assert source.count("\n") < 250
    changing = {
        entry["name"]
        for entry in contract("Disputes").abi
        if entry["type"] == "function" and entry["stateMutability"] != "view"
    }
    judging = {"report_two_receipts", "report_overcharge", "report_other_manifest"}
    assert changing == judging | {"service_hash", "offence_of"}
    assert contract("Disputes").layout.keys() == {"judged"}


@pytest.mark.parametrize("name", sorted(FIXED))
def test_code_fits_the_limit_of_a_chain(name: str) -> None:
    assert len(contract(name).runtime) <= 24_576  # EIP-170
