"""`inferpool keys` and `inferpool teams`: who may use this gateway, and how much."""

from __future__ import annotations

from typing import Annotated, Any

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
Budget = Annotated[str | None, typer.Option(help="USD in all; 'none' takes the limit away.")]
BudgetMonth = Annotated[str | None, typer.Option(help="USD in a calendar month (UTC).")]
BudgetDay = Annotated[str | None, typer.Option(help="USD on a day (UTC).")]
Requests = Annotated[str | None, typer.Option(help="Requests a minute.")]
Tokens = Annotated[str | None, typer.Option(help="Tokens a minute, prompt and output.")]
Concurrent = Annotated[str | None, typer.Option(help="Requests at once.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="A model it may use; repeat.")]
MaxIn = Annotated[str | None, typer.Option(help="Dearest price in, USD per million units.")]
MaxOut = Annotated[str | None, typer.Option(help="Dearest price out, USD per million units.")]
MaxRequest = Annotated[str | None, typer.Option(help="Most that one request may cost, USD.")]
MinTrust = Annotated[
    str | None, typer.Option(help="Least trust in a node, 0 to 100, by this gateway's experience.")
]
InTeam = Annotated[str | None, typer.Option("--team", help="Team that it belongs to.")]


def rules_of(
    budget: str | None,
    budget_month: str | None,
    budget_day: str | None,
    requests: str | None,
    tokens: str | None,
    concurrent: str | None,
    models: list[str] | None,
    max_in: str | None,
    max_out: str | None,
    max_request: str | None,
    min_trust: str | None,
) -> dict[str, object]:
    """The members that were given; 'none' becomes null, which takes a limit away."""
    texts = {
        "budget_usd": budget,
        "budget_month_usd": budget_month,
        "budget_day_usd": budget_day,
        "max_in_usd_per_million": max_in,
        "max_out_usd_per_million": max_out,
        "max_request_usd": max_request,
    }
    counts = {
        "requests_per_minute": requests,
        "tokens_per_minute": tokens,
        "concurrent": concurrent,
        "min_trust_percent": min_trust,
    }
    found: dict[str, object] = {
        name: None if text == "none" else text for name, text in texts.items() if text is not None
    }
    for name, text in counts.items():
        if text is not None:
            found[name] = None if text == "none" else _count(name, text)
    if models:
        found["models"] = None if models == ["none"] else models
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

  inferpool keys create bot --team research --model smollm2-135m-instruct --json"""


@app.command("create", help=CREATE)
def create(
    name: Name,
    team: InTeam = None,
    budget: Budget = None,
    budget_month: BudgetMonth = None,
    budget_day: BudgetDay = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    model: Models = None,
    max_in: MaxIn = None,
    max_out: MaxOut = None,
    max_request: MaxRequest = None,
    min_trust: MinTrust = None,
    as_json: AsJson = False,
) -> None:
    """Make one."""
    rules = rules_of(
        budget, budget_month, budget_day, requests, tokens, concurrent, model, max_in, max_out,
        max_request, min_trust,
    )  # fmt: skip
    body = {"name": name, **({"team": team} if team else {}), **rules}
    _new_key(_ask("POST", "keys", body), as_json)


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
    print_table(
        ("name", column, "spent", "this month", "today", "limits"),
        [
            (
                item["name"] + (" (revoked)" if item.get("revoked") else ""),
                ", ".join(item[column]) if isinstance(item[column], list) else item[column],
                f"${item['spent_usd']}",
                f"${item['spent_month_usd']}",
                f"${item['spent_day_usd']}",
                limits_of(item["rules"]),
            )
            for item in items
        ],
    )


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
            rows += [("key", item["shown"] + " revoked" * item["revoked"]) for item in value]
        else:
            rows.append((name, ", ".join(value) if isinstance(value, list) else value))
    print_table(("", "value"), rows)


@app.command(
    "revoke", help="End a key; its spending stays known.\n\nExample:  inferpool keys revoke web"
)
def revoke(name: Name, as_json: AsJson = False) -> None:
    """End one."""
    _shown(_ask("POST", f"keys/{_part(name)}/revoke", {}), as_json)


@app.command(
    "rotate",
    help="Give a new key to an account and end the old one; budget and usage go on.\n\n"
    "Example:  inferpool keys rotate web",
)
def rotate(name: Name, as_json: AsJson = False) -> None:
    """Replace one."""
    _new_key(_ask("POST", f"keys/{_part(name)}/rotate", {}), as_json)


LIMIT = """Change what a key may do; what is not given stays, 'none' takes a limit away.

Examples:

  inferpool keys limit web --budget-day 1.50 --concurrent 8

  inferpool keys limit web --budget-day none --team none"""


@app.command("limit", help=LIMIT)
def limit(
    name: Name,
    team: InTeam = None,
    budget: Budget = None,
    budget_month: BudgetMonth = None,
    budget_day: BudgetDay = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    model: Models = None,
    max_in: MaxIn = None,
    max_out: MaxOut = None,
    max_request: MaxRequest = None,
    min_trust: MinTrust = None,
    as_json: AsJson = False,
) -> None:
    """Change one."""
    rules = rules_of(
        budget, budget_month, budget_day, requests, tokens, concurrent, model, max_in, max_out,
        max_request, min_trust,
    )  # fmt: skip
    if team is not None:
        rules["team"] = None if team == "none" else team
    _shown(_ask("POST", f"keys/{_part(name)}/limit", rules), as_json)


# -- teams ----------------------------------------------------------------------------------------


@teams.command(
    "create",
    help="Make a team.\n\nExample:  inferpool teams create research --budget-month 100",
)
def create_team(
    name: TeamName,
    budget: Budget = None,
    budget_month: BudgetMonth = None,
    budget_day: BudgetDay = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    model: Models = None,
    max_in: MaxIn = None,
    max_out: MaxOut = None,
    max_request: MaxRequest = None,
    min_trust: MinTrust = None,
    as_json: AsJson = False,
) -> None:
    """Make one."""
    rules = rules_of(
        budget, budget_month, budget_day, requests, tokens, concurrent, model, max_in, max_out,
        max_request, min_trust,
    )  # fmt: skip
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
def limit_team(
    name: TeamName,
    budget: Budget = None,
    budget_month: BudgetMonth = None,
    budget_day: BudgetDay = None,
    requests: Requests = None,
    tokens: Tokens = None,
    concurrent: Concurrent = None,
    model: Models = None,
    max_in: MaxIn = None,
    max_out: MaxOut = None,
    max_request: MaxRequest = None,
    min_trust: MinTrust = None,
    as_json: AsJson = False,
) -> None:
    """Change one."""
    rules = rules_of(
        budget, budget_month, budget_day, requests, tokens, concurrent, model, max_in, max_out,
        max_request, min_trust,
    )  # fmt: skip
    _shown(_ask("POST", f"teams/{_part(name)}/limit", rules), as_json)
