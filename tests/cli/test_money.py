"""The operator's and the owner's money by commands, on a pool of real processes of its own."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import poolkit
import pytest
from typer.testing import CliRunner

from inferpool.cli.main import app
from inferpool.daemon.pool import ROLES, Pool
from inferpool.home import Home
from inferpool.identity.keys import Role
from inferpool.protocol.errors import InferpoolError

pytestmark = pytest.mark.timeout(240)

FLAGS: dict[str, object] = {
    **poolkit.FREE_PORTS,
    "node.models": ("fake-tensor",),
    "node.price_row_usd_per_million": "1",
}


class Purse:
    """A pool with a tensor model that needs no weights, and its commands."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.pool = Pool(self.home, dict(FLAGS))
        for role in ROLES:
            self.pool.start(role)

    def invoke(self, *arguments: str) -> Any:
        """A command in this process: a fresh one takes seconds."""
        env = {name: None for name in os.environ if name.startswith("INFERPOOL_")}
        return CliRunner().invoke(
            app, arguments, env={**env, "INFERPOOL_HOME": str(self.home.root)}
        )

    def run(self, *arguments: str) -> str:
        done = self.invoke(*arguments)
        assert done.exit_code == 0, repr(done.exception)
        return done.stdout

    def fails(self, *arguments: str) -> str:
        done = self.invoke(*arguments)
        assert isinstance(done.exception, InferpoolError), (done.stdout, done.exception)
        return done.exception.message

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.run(*arguments, "--json"))

    def infer(self, rows: int = 3) -> int:
        tensor = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [1.0] * (4 * rows)}
        key = {"authorization": f"Bearer {self.home.secret('api-key')}"}
        url = f"{self.pool.running['gateway'].url}/v2/models/fake-tensor/infer"
        answer = httpx.post(url, json={"inputs": [tensor]}, headers=key, timeout=30)
        return answer.status_code

    def serves(self) -> None:
        poolkit.until("the pool serves", lambda: self.infer() == 200, 30)

    def sides(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {"payer": [], "payee": []}
        for item in self.json("channels")["channels"]:
            found[item["side"]].append(item)
        return found

    def rpc(self, method: str, *parameters: object) -> Any:
        url = str(self.pool.running["chain"].url)
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = orjson.loads(response.read())
        assert "error" not in answer, answer
        return answer["result"]

    def address(self, side: str, key: Role) -> str:
        return "0x" + self.home.keys(side).addresses()[key].hex()


@pytest.fixture(scope="module")
def purse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Purse]:
    made = Purse(tmp_path_factory.mktemp("purse"))
    yield made
    made.pool.close()


def test_money_goes_into_channels_and_comes_out_again(purse: Purse) -> None:
    """While both roles run: list, claim, withdraw, finalise, refund, and work goes on."""
    purse.serves()
    sides = purse.sides()
    (payer,), (payee,) = sides["payer"], sides["payee"]
    assert payer["channel"] == payee["channel"]
    assert payer["deposited_base_units"] == payee["deposited_base_units"] == 2_000_000
    assert payee["unclaimed_base_units"] == payer["unclaimed_base_units"] == 3
    text = purse.run("channels")
    for shown in (payer["channel"], "$2", "$0.000003", "at rest with nodes: $2"):
        assert shown in text
    assert "claimed $0.000003 from 1 channels, settled $0.000003" in purse.run("claim")
    assert purse.sides()["payer"][0]["claimed_base_units"] == 3

    first = payer["channel"]
    (moved,) = purse.json("channels", "withdraw", first[:12])["channels"]
    assert (moved["way_back"], moved["way_back_base_units"]) == ("pending", 1_999_997)
    assert "pending" in purse.fails("channels", "finalize", first)
    assert "0 channels" in purse.fails("channels", "withdraw", "0xffffff")
    purse.serves()
    assert len(purse.sides()["payer"]) == 2, "the node is used on, through another channel"

    purse.rpc("evm_increaseTime", 901)
    purse.rpc("evm_mine")
    assert "ready: $1.999997" in purse.run("channels")
    (moved,) = purse.json("channels", "finalize", first)["channels"]
    assert (moved["free_base_units"], moved["way_back"]) == (0, "none")

    (second,) = [item["channel"] for item in purse.sides()["payer"] if item["channel"] != first]
    (moved,) = purse.json("channels", "refund", second, "--usd", "0.5")["channels"]
    assert moved["deposited_base_units"] == 1_500_000
    assert "0.0000001" in purse.fails("channels", "refund", second, "--usd", "0.0000001")
    purse.serves()


def test_stake_goes_in_and_out(purse: Purse) -> None:
    owner = purse.address("node", Role.OWNER)
    purse.rpc("inferpool_faucet", owner, hex(10**18), hex(7_000_000))
    state = purse.json("wallet", "stake", "5")
    assert (state["stake_base_units"], state["registered"]) == (5_000_000, True)
    state = purse.json("wallet", "unstake", "2")
    assert (state["stake_base_units"], state["unbonding_base_units"]) == (3_000_000, 2_000_000)
    assert "still unbonding" in purse.fails("wallet", "withdraw-stake")
    purse.rpc("evm_increaseTime", 7 * 86_400)
    purse.rpc("evm_mine")
    assert purse.json("wallet", "withdraw-stake")["unbonding_base_units"] == 0
    assert "at stake $3" in purse.run("wallet", "stake")
    assert "end it first" in purse.fails("wallet", "deregister")


def test_hot_keys_are_replaced_and_no_voucher_is_lost(purse: Purse) -> None:
    """With both roles down: claims, new keys, a way back for what the old key signed for."""
    purse.serves()
    assert "runs" in purse.fails("wallet", "rotate", "node", "node")
    assert "no hot key" in purse.fails("wallet", "rotate", "gateway", "payer")
    for role in ("gateway", "node"):
        purse.pool.stop(role)
    owed = sum(item["unclaimed_base_units"] for item in purse.sides()["payee"])
    assert owed > 0

    done = purse.json("wallet", "rotate", "node", "node")
    assert done["claimed_base_units"] == owed
    assert done["new"].lower() == purse.address("node", Role.NODE)
    kept = purse.home.root / "keys" / "node" / f"node.{done['old'][2:].lower()}.json"
    assert kept.exists()
    purse.run("wallet", "rotate", "gateway", "payer_authorizer")
    gas = purse.json("wallet", "rotate", "gateway", "gas")
    assert int(purse.rpc("eth_getBalance", gas["new"], "latest"), 16) == gas["moved_wei"] > 0
    assert "claimed $0 from 0 channels" in purse.run("claim")

    # Only what the old voucher key signed for comes back at once: nothing was used for long.
    before = len(purse.sides()["payer"])
    moved = purse.json("channels", "release", "--idle-days", "30")["channels"]
    assert moved
    assert {item["way_back"] for item in moved} == {"pending"}
    for role in ("node", "gateway"):
        purse.pool.start(role)
    purse.serves()
    assert len(purse.sides()["payer"]) == before + 1, "the new keys have a channel of their own"
    registered = purse.json("wallet", "stake")
    assert (registered["registered"], registered["stake_base_units"]) == (True, 3_000_000)


def test_a_backup_has_the_retired_keys_too(purse: Purse, tmp_path: Path) -> None:
    for role in ("gateway", "node"):
        purse.pool.stop(role)
    purse.pool.stop("chain")
    file, password = str(tmp_path / "all.backup"), {"INFERPOOL_BACKUP_PASSWORD": "correct horse"}
    made = poolkit.inferpool("backup", file, "--json", home=purse.home, **password)
    names = orjson.loads(made.stdout)["holds"]
    assert sum(name.startswith("keys/node/node.") for name in names) == 2
    there = Home(tmp_path / "there")
    checked = poolkit.inferpool("restore", file, "--verify", home=there, **password)
    assert checked.returncode == 0, checked.stderr
    assert "good: it can be restored" in checked.stdout
    assert not there.root.exists(), "a check writes nothing"
