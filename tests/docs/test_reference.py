"""What the code has, the reference tells; what the reference tells, the code has."""

from __future__ import annotations

import ast
import asyncio
import re
from random import Random

import orjson
import pytest
import typer
from pages import PACKAGE, REFERENCE, generator, rows, sections
from typer.testing import CliRunner

from inferpool.chain.memory import MemoryChain
from inferpool.cli.main import app
from inferpool.clock import LoopClock
from inferpool.config import load
from inferpool.protocol import body, chat, headers, text
from inferpool.protocol.errors import CODES
from inferpool.sim.loop import run_virtual
from inferpool.sim.parts import SimGateway, SimNode
from inferpool.transport.base import Transport


def read(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


# -- generated parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(generator().PARTS))
def test_generated_parts_are_fresh(name: str) -> None:
    path, old, new = generator().page(name)
    assert old == new, f"{path.name} is stale: run `make docs`"


def test_every_error_code_has_its_status_and_a_remedy() -> None:
    table = {row[1].strip("`"): row for row in rows(read("errors.md")) if row[0].isdigit()}
    assert table.keys() == CODES.keys()
    for code, (status, kind, means) in CODES.items():
        assert table[code][0] == str(status)
        assert table[code][2] == f"`{kind}`"
        assert table[code][3] == means
        assert len(table[code][4]) > 10, f"{code} says nothing of what to do"


def test_every_configuration_key_has_its_default_and_variable() -> None:
    table = {row[0].strip("`"): row for row in rows(read("configuration.md")) if len(row) == 4}
    keys = generator().configuration_keys()
    assert keys.keys() == {key for key in table if "." in key}
    for key, value in keys.items():
        assert table[key][1] == f"`{generator().default_of(value)}`"
        # The variable in the page is the one that the code reads: set it, and the value is there.
        variable = table[key][2].strip("`")
        assert load(None, {variable: _text_of(value)}).origins[key] == variable
        assert len(table[key][3]) > 10


def _text_of(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value).lower()


def test_every_limit_has_its_value_and_a_reason() -> None:
    table = {row[0].strip("`"): row for row in rows(read("limits.md"))}
    values = generator().limit_values()
    assert values
    for name, value in values.items():
        assert table[name][1] == f"{value:,}"
        assert len(table[name][3]) > 10


# -- command line -------------------------------------------------------------------------------

COMMANDS = dict(generator().commands())


def words(page: str) -> list[str]:
    """Without frames, line breaks and marks: what the two forms of a help have in common."""
    return re.sub(r"[│╭╮╰╯─|`]", " ", page).split()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_as_its_help_says(name: str) -> None:
    section = sections(read("cli.md"))[f"`{name}`"]
    result = CliRunner().invoke(
        app, [*name.split()[1:], "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    )
    assert result.exit_code == 0
    shown = words(result.output)
    options = {word.rstrip(",") for word in shown if word.startswith("--")} - {"--help"}
    inside = _options_in_texts(name)
    documented = set(re.findall(r"--[a-z][a-z0-9-]*", section))
    assert options - inside <= documented, f"{name}: not in cli.md"
    assert documented <= options | inside, f"{name}: not in the help"
    for item in COMMANDS[name].params:
        if item.help:
            assert " ".join(words(item.help)) in " ".join(shown)
            assert " ".join(words(item.help)) in " ".join(words(section))
    for child in getattr(COMMANDS[name], "commands", {}):
        assert f"`{child}`" in section


def _options_in_texts(name: str) -> set[str]:
    """Options that a help only talks about, in its examples."""
    return set(re.findall(r"--[a-z][a-z0-9-]*", COMMANDS[name].help or ""))


def test_the_page_has_no_command_too_many() -> None:
    documented = {name.strip("`") for name in sections(read("cli.md"))}
    assert documented == set(COMMANDS)
    assert typer.main.get_command(app).name == "inferpool"


# -- routes -------------------------------------------------------------------------------------


def routes_of(role: str) -> set[str]:
    """Every route that a role's app knows: its table, its docstring, and what it compares with."""
    tree = ast.parse((PACKAGE / role / "app.py").read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2:
            values = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            if len(values) == 2 and values[0] in ("GET", "POST", "PUT", "DELETE"):
                found.add(" ".join(str(value) for value in values))
    return found


def compared_paths(role: str) -> set[str]:
    tree = ast.parse((PACKAGE / role / "app.py").read_text("utf-8"))
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"/(v1|v2|inferpool|health|\.well-known)[a-z0-9/._-]*", node.value)
    }


def documented_routes(role: str) -> list[str]:
    section = sections(read("http.md"))[role.capitalize()]
    cells = [row[0] for row in rows(section)]
    return [route for cell in cells for route in re.findall(r"`((?:GET|POST) [^`]+)`", cell)]


@pytest.mark.parametrize("role", ["gateway", "node"])
def test_every_route_is_documented(role: str) -> None:
    documented = documented_routes(role)
    plain = {route.partition("?")[0] for route in documented}
    assert routes_of(role) <= plain
    for path in compared_paths(role):
        assert any(path in route for route in plain), f"{role} knows {path}, http.md does not"


class World:
    """A node and a gateway in memory, for what the page says that they answer."""

    def __init__(self) -> None:
        clock = LoopClock(1_800_000_000_000)
        chain = MemoryChain(lambda: clock.now_ms() // 1000)
        self.node = SimNode("node", 1, "http://node.sim", clock, chain, Random(1))
        self.gateway = SimGateway("gateway", 1, clock, chain, Random(2), self.pipe)

    def pipe(self, url: str, spki: bytes | None) -> Transport:
        return self.node.transport()

    async def start(self) -> None:
        await self.node.start()
        self.gateway.open_transport = self.pipe
        await self.gateway.start()
        signed = self.node.node.offers.current()
        directory = self.gateway.gateway.directory
        directory._bound = {signed.offer.node: signed.offer.owner}  # as the registry would
        await directory.accept(signed, "http://node.sim")

    async def close(self) -> None:
        await self.gateway.gateway.close()


async def ask(pipe: Transport, route: str) -> tuple[int, str]:
    """Status and error code of a documented route, asked with nothing right about it."""
    method, path = route.split(" ", 1)
    path = path.replace("/M", "/fake-tensor").replace("/V", "/1").replace("/ID", "/0x00")
    response = await pipe.request(method, path, (), b"{}" if method == "POST" else b"", timeout_s=5)
    if path == "/inferpool/lease":
        await response.close()
        return response.status, ""
    body = await response.read(1 << 20)
    await response.close()
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return response.status, ""
    error = value.get("error") if isinstance(value, dict) else None
    code = error.get("code") if isinstance(error, dict) else value.get("code")
    return response.status, str(code or "")


@pytest.mark.parametrize("role", ["gateway", "node"])
def test_every_documented_route_is_served_under_its_method_and_access(role: str) -> None:
    section = sections(read("http.md"))[role.capitalize()]
    access = {
        route: row[1]
        for row in rows(section)
        for route in re.findall(r"`((?:GET|POST) [^`]+)`", row[0])
    }

    async def main() -> dict[str, tuple[int, str]]:
        world = World()
        await world.start()
        try:
            pipe = (world.gateway if role == "gateway" else world.node).transport()
            return {route: await ask(pipe, route) for route in access}
        finally:
            await world.close()
            await asyncio.sleep(1)

    for route, (status, code) in run_virtual(main()).items():
        assert code not in ("not_found", "method_not_allowed"), f"{route} is not served"
        if access[route] == "open":
            assert status == 200 or "/v1/models/" in route, (route, status, code)
        elif access[route] in ("API key", "control token"):
            assert (status, code) == (401, "invalid_api_key"), route
        elif access[route] == "signed offer":
            assert (status, code) == (422, "bad_encoding"), route
        else:
            assert status in (400, 402), (route, status, code)


# -- headers, parameters, types -----------------------------------------------------------------


def test_every_header_is_documented() -> None:
    page = sections(read("http.md"))["Headers that a hop adds"].lower()
    names = [
        value.decode()
        for name, value in vars(headers).items()
        if isinstance(value, bytes) and name != "VERSION_SPOKEN"
    ]
    assert len(names) >= 11
    for name in names:
        assert f"`{name}`" in page, name


def test_every_chat_parameter_is_documented() -> None:
    section = sections(read("http.md"))["Chat parameters"]
    for name in [*text.SAMPLERS, *body.IGNORED, *chat.ROLES]:
        assert f"`{name}`" in section, name
    table = {row[0].strip("`"): row[1] for row in rows(section)}
    for name, usual in chat.NO_OPS.items():
        shown = [orjson.loads(value) for value in re.findall(r"`([^`]+)`", table[name])]
        assert shown == [value for value in usual if value is not None], name
        assert None in usual, "the page says that null is accepted for each"


def signed_types() -> set[str]:
    """Every EIP-712 type string in the protocol's sources."""
    found = set()
    for path in (PACKAGE / "protocol").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                value = node.value.decode() if isinstance(node.value, bytes) else node.value
                if re.fullmatch(r"[A-Z]\w*\(\w+(\[\])? \w+(,\w+(\[\])? \w+)*\)", value):
                    found.add(value)
    return found


def test_every_signed_type_is_documented_exactly() -> None:
    types = signed_types()
    assert len(types) >= 9
    page = read("wire.md")
    for signed in types:
        assert f"\n{signed}\n" in page, signed


# -- contracts ----------------------------------------------------------------------------------


CONTRACTS = PACKAGE / "chain" / "contracts"
DEPLOYABLE = sorted(path.stem for path in CONTRACTS.glob("[A-Z]*.vy"))


def test_there_are_contracts() -> None:
    assert {"Registry", "BatchSettlement"} <= set(DEPLOYABLE)


@pytest.mark.parametrize("name", DEPLOYABLE)
def test_every_function_and_event_of_a_contract_is_documented(name: str) -> None:
    source = (CONTRACTS / f"{name}.vy").read_text("utf-8")
    section = sections(read("contracts.md"))[name]
    external = re.findall(r"(?m)^@external\n(?:@\w+\n)*def (\w+)\(", source)
    public = re.findall(r"(?m)^(\w+): public\((?:HashMap|constant|immutable)", source)
    assert external
    for item in [*external, *public, *re.findall(r"(?m)^event (\w+):", source)]:
        if item == "owner":  # the deployer of worthless money; the page says so in words
            assert "deployer" in section
        elif name != "TestDollar" or item not in ERC20:
            assert re.search(rf"\b{item}\b", section), f"{name}.{item}"


ERC20 = {"name", "symbol", "version", "decimals", "balanceOf", "allowance", "totalSupply", "nonces"}
