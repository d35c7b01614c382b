"""`inferpool keys` and `inferpool teams`: who may use this gateway, and how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Final

import typer

from inferpool.cli.console import OUT, AsJson, print_json, print_table, settings

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="""API keys of the gateway on this machine: budgets, rate limits, what each may use.

A running gateway takes a change at once; without one it is written to the gateway's book.

Example:  inferpool keys create web --budget-month 20""",
)
teams = typer.Typer(
    name="teams",
    no_args_is_help=True,
    help="""Teams of API keys, with a budget and limits that their keys share.

Example:  inferpool teams create research --budget-month 100""",
)

Name = Annotated[str, typer.Argument(help="Name of the key.")]
TeamName = Annotated[str, typer.Argument(help="Name of the team.")]
Rules = dict[str, object]  # in place of which `ruled` puts their options
Expires = Annotated[
    str | None,
    typer.Option(
        help="When the key ends: 30d, 12h, or a day such as 2027-01-31 (UTC); 'none': never."
    ),
]
InTeam = Annotated[str | None, typer.Option("--team", help="Team that it belongs to.")]


def _option(about: str) -> Any:
    return Annotated[str | None, typer.Option(help=about)]


# Parameter -> the rule that it sets, and the option that gives it.
RULES: Final[dict[str, tuple[str, Any]]] = {
    "budget": ("budget_usd", _option("USD in all; 'none' takes the limit away.")),
    "budget_month": ("budget_month_usd", _option("USD in a calendar month (UTC).")),
    "budget_day": ("budget_day_usd", _option("USD on a day (UTC).")),
    "requests": ("requests_per_minute", _option("Requests a minute.")),
    "tokens": ("tokens_per_minute", _option("Tokens a minute, prompt and output.")),
    "concurrent": ("concurrent", _option("Requests at once.")),
    "model": (
        "models",
        Annotated[list[str] | None, typer.Option("--model", help="A model it may use; repeat.")],
    ),
    "max_in": (
        "max_in_usd_per_million",
        _option("Dearest price in, USD per million units."),
    ),
    "max_out": (
        "max_out_usd_per_million",
        _option("Dearest price out, USD per million units."),
    ),
    "max_request": ("max_request_usd", _option("Most that one request may cost, USD.")),
    "min_trust": (
        "min_trust_percent",
        _option("Least trust in a node, 0 to 100, by this gateway's experience."),
    ),
}
_COUNTS: Final = {"requests_per_minute", "tokens_per_minute", "concurrent", "min_trust_percent"}


def ruled(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all rules; it gets what was given as `rules`."""

    @wraps(command)
    def with_rules(**given: Any) -> None:
        command(rules=rules_of({name: given.pop(name) for name in RULES}), **given)

    parameters: list[Parameter] = []
    for own in signature(command, eval_str=True).parameters.values():
        if own.name != "rules":
            parameters.append(own)
            continue
        parameters += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, (_, option) in RULES.items()
        ]
    kept = [item.replace(kind=Parameter.KEYWORD_ONLY) for item in parameters]
    vars(with_rules)["__signature__"] = Signature(kept)
    with_rules.__annotations__ = {item.name: item.annotation for item in kept}
    return with_rules


def rules_of(given: Mapping[str, str | list[str] | None]) -> dict[str, object]:
    """The rules that were given; 'none' becomes null, which takes a limit away."""
    found: dict[str, object] = {}
    for name, value in given.items():
        rule, _ = RULES[name]
        if value in ("none", ["none"]):
            found[rule] = None
        elif value is not None and value != []:
            found[rule] = _count(rule, str(value)) if rule in _COUNTS else value
    return found


def _count(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        option = "--" + name.removesuffix("_per_minute").removesuffix("_percent").replace("_", "-")
        raise typer.BadParameter(f"{option} must be a whole number, not {text!r}") from None


def _ask(method: str, path: str, body: object = None) -> Any:
    from inferpool.cli.admin import administer

    return administer(*settings(), method, path, body)


def _part(name: str) -> str:
    from inferpool.cli.admin import part

    return part(name)


CREATE = """Make a key. It is printed once; the gateway keeps its hash alone.

Examples:

  inferpool keys create web --budget-month 20 --requests 600

  inferpool keys create guest --expires 30d --budget 5

  inferpool keys create bot --team research --model smollm2-135m-instruct --json"""


@app.command("create", help=CREATE)
@ruled
def create(
    name: Name,
    *,
    team: InTeam = None,
    expires: Expires = None,
    rules: Rules,
    as_json: AsJson = False,
) -> None:
    """Make one."""
    body = {"name": name, **({"team": team} if team else {}), **_ends(expires), **rules}
    _new_key(_ask("POST", "keys", body), as_json)


def _ends(expires: str | None) -> dict[str, object]:
    return {} if expires is None else {"expires": None if expires == "none" else expires}


def _new_key(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    OUT.print(made["key"], markup=False)
    OUT.print("Keep it: it is not shown again.", style="dim")


@app.command("list", help="List the keys.\n\nExample:  inferpool keys list --json")
def list_(as_json: AsJson = False) -> None:
    """List them."""
    found = _ask("GET", "keys")
    if as_json:
        print_json(found)
        return
    _table(found["keys"], "team")


def _table(items: list[dict[str, Any]], column: str) -> None:
    ends = ("expires",) if column == "team" else ()
    print_table(
        ("name", column, "spent", "this month", "today", *ends, "limits"),
        [
            (
                item["name"] + _state(item),
                ", ".join(item[column]) if isinstance(item[column], list) else item[column],
                f"${item['spent_usd']}",
                f"${item['spent_month_usd']}",
                f"${item['spent_day_usd']}",
                *((_time(item["expires_ms"]),) if "expires_ms" in item else ()),
                limits_of(item["rules"]),
            )
            for item in items
        ],
    )


def _state(item: dict[str, Any]) -> str:
    return " (revoked)" if item.get("revoked") else " (expired)" if item.get("expired") else ""


def _time(at_ms: int | None) -> str:
    from inferpool.payments.expiry import told_time

    return told_time(at_ms) if at_ms else ""


def limits_of(rules: dict[str, Any]) -> str:
    """The limits that are set, in one line."""
    shown = {name: value for name, value in rules.items() if value not in (None, [], 0)}
    return ", ".join(
        f"{name}={' '.join(value) if isinstance(value, list) else value}"
        for name, value in shown.items()
    )


@app.command("show", help="Show one key.\n\nExample:  inferpool keys show web --json")
def show(name: Name, as_json: AsJson = False) -> None:
    """Show one."""
    _shown(_ask("GET", f"keys/{_part(name)}"), as_json)


def _shown(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows: list[tuple[object, object]] = []
    for name, value in found.items():
        if name == "rules":
            rows += [(rule, given) for rule, given in value.items() if given not in (None, [], 0)]
        elif name == "keys" and value and isinstance(value[0], dict):
            rows += [("key", item["shown"] + _ended(item)) for item in value]
        elif name == "expires_ms":
            rows.append(("expires", _time(value) or "never"))
        else:
            rows.append((name, ", ".join(value) if isinstance(value, list) else value))
    print_table(("", "value"), rows)


def _ended(key: dict[str, Any]) -> str:
    until = f" until {_time(key['expires_ms'])}" if key["expires_ms"] else ""
    return " revoked" if key["revoked"] else " expired" if key["expired"] else until


@app.command(
    "revoke", help="End a key; its spending stays known.\n\nExample:  inferpool keys revoke web"
)
def revoke(name: Name, as_json: AsJson = False) -> None:
    """End one."""
    _shown(_ask("POST", f"keys/{_part(name)}/revoke", {}), as_json)


ROTATE = """Give a new key to an account and end the old one; budget and usage go on.

The new one lives as long as the old one was given, unless you say otherwise.

Examples:

  inferpool keys rotate web

  inferpool keys rotate web --keep-old 24h --expires 90d"""


@app.command("rotate", help=ROTATE)
def rotate(
    name: Name,
    *,
    keep_old: Annotated[
        str | None, typer.Option(help="For how long the old key works still, such as 24h.")
    ] = None,
    expires: Expires = None,
    as_json: AsJson = False,
) -> None:
    """Replace one."""
    body = {**({"keep_old": keep_old} if keep_old else {}), **_ends(expires)}
    _new_key(_ask("POST", f"keys/{_part(name)}/rotate", body), as_json)


LIMIT = """Change what a key may do; what is not given stays, 'none' takes a limit away.

Examples:

  inferpool keys limit web --budget-day 1.50 --concurrent 8

  inferpool keys limit web --budget-day none --team none"""


@app.command("limit", help=LIMIT)
@ruled
def limit(
    name: Name,
    *,
    team: InTeam = None,
    expires: Expires = None,
    rules: Rules,
    as_json: AsJson = False,
) -> None:
    """Change one."""
    rules |= _ends(expires)
    if team is not None:
        rules["team"] = None if team == "none" else team
    _shown(_ask("POST", f"keys/{_part(name)}/limit", rules), as_json)


# -- teams ----------------------------------------------------------------------------------------


@teams.command(
    "create",
    help="Make a team.\n\nExample:  inferpool teams create research --budget-month 100",
)
@ruled
def create_team(
    name: TeamName,
    rules: Rules,
    as_json: AsJson = False,
) -> None:
    """Make one."""
    _shown(_ask("POST", "teams", {"name": name, **rules}), as_json)


@teams.command("list", help="List the teams.\n\nExample:  inferpool teams list --json")
def list_teams(as_json: AsJson = False) -> None:
    """List them."""
    found = _ask("GET", "teams")
    if as_json:
        print_json(found)
        return
    _table(found["teams"], "keys")


@teams.command(
    "show", help="Show one team with its keys.\n\nExample:  inferpool teams show research"
)
def show_team(name: TeamName, as_json: AsJson = False) -> None:
    """Show one."""
    _shown(_ask("GET", f"teams/{_part(name)}"), as_json)


@teams.command(
    "limit",
    help="Change a team's limits; 'none' takes one away.\n\n"
    "Example:  inferpool teams limit research --budget-month 200",
)
@ruled
def limit_team(
    name: TeamName,
    rules: Rules,
    as_json: AsJson = False,
) -> None:
    """Change one."""
    _shown(_ask("POST", f"teams/{_part(name)}/limit", rules), as_json)
