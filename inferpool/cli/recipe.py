"""`inferpool recipe` and `inferpool recipes`: real uses, end to end, with their figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from inferpool.cli.console import ERR, OUT, AsJson, print_json
from inferpool.protocol.errors import Refused
from inferpool.recipes import registry

if TYPE_CHECKING:  # a recipe brings numpy and more: not for every command's start
    from inferpool.recipes.kit.audit import Replay
    from inferpool.recipes.kit.case import Recipe
    from inferpool.recipes.kit.deciding import Decision
    from inferpool.recipes.kit.running import Listener
    from inferpool.recipes.kit.use import Use

HELP = """List the recipes: real uses on real data, end to end.

Examples:

  inferpool recipes

  inferpool recipes --json"""

app = typer.Typer(
    help="""Run, evaluate or train a recipe: a real use on real data, end to end.

Examples:

  inferpool recipe run spam

  inferpool recipe eval spam --json

  inferpool recipe train spam --write""",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="A recipe's name; see `inferpool recipes`.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names; all if none is given.")]


def recipes(as_json: AsJson = False) -> None:
    """List."""
    found = [recipe.facts() for recipe in registry.all()]
    if as_json:
        print_json(found)
        return
    for item in found:
        OUT.print(f"[bold]{item['name']:12}[/] {item['title']}: {', '.join(item['models'])}")
        OUT.print(f"{'':12} {item['summary']}", style="dim")


@app.command("eval")
def evaluate(names: Names = None, as_json: AsJson = False) -> None:
    """Score the held-out cases through the pool and in this process; exit code 1 if they differ
    or a figure is not reached.

    Example:  inferpool recipe eval crm
    """
    from inferpool.recipes.kit.case import Recipe
    from inferpool.recipes.kit.running import evaluate as evaluate_case
    from inferpool.recipes.kit.use import Use

    chosen = [registry.load(name) for name in names or registry.NAMES]
    chosen = [
        item for item in chosen if isinstance(item, Recipe) or _can_run(item, named=bool(names))
    ]
    cases = [case for recipe in chosen for case in recipe.cases]
    with _scorers(_models(chosen)) as (pool, engine), _listening(as_json) as listener:
        results = [evaluate_case(case, pool, engine, None, listener) for case in cases]
        with TemporaryDirectory() as folder:
            for item in chosen:
                if isinstance(item, Use):
                    results += item.run(pool, True, listener.progress, Path(folder) / item.name)
                elif item.play:
                    results += item.play(pool, False, listener.progress)
    if as_json:
        print_json(results)
    else:
        _print_cases(results)
    _exit(results)


@app.command("run")
def run(
    names: Names = None,
    *,
    small: Annotated[bool, typer.Option("--small", help="Few cases, for a first look.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the report and audits.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run whole recipes through one pool: figures, drift, decisions with audits, latency, cost.

    Example:  inferpool recipe run crm --small
    """
    from inferpool.recipes.kit import report, whole
    from inferpool.recipes.kit.case import Recipe
    from inferpool.recipes.kit.running import run_case
    from inferpool.recipes.kit.use import Use

    begun, stamp = time.monotonic(), time.strftime("%Y%m%d-%H%M%S")
    loaded = [registry.load(name) for name in names or registry.NAMES]
    chosen = [
        item for item in loaded if isinstance(item, Recipe) or _can_run(item, named=bool(names))
    ]
    models = _models(chosen)
    results = []
    with _scorers(models) as (pool, engine), _listening(as_json) as listener:
        for recipe in chosen:
            started = time.monotonic()
            folder = out or Path(f"recipe-{stamp}")
            folder = folder / recipe.name if len(chosen) > 1 else folder
            if isinstance(recipe, Use):
                cases = recipe.run(pool, small, listener.progress, folder)
            else:
                cases = [
                    run_case(recipe, case, pool, engine, folder, small=small, listener=listener)
                    for case in recipe.cases
                ]
                cases += recipe.play(pool, small, listener.progress) if recipe.play else []
            facts = {
                **recipe.facts(),
                "made": time.strftime("%Y-%m-%d"),
                "small": small,
                "seconds": round(time.monotonic() - started, 1),
                "cases": cases,
            }
            if recipe.whole:
                shown = whole.shown if isinstance(recipe, Recipe) else whole.shown_together
                facts["shown"] = shown(cases, small=small)
            page, _ = report.write(facts, folder)
            results.append(facts | {"report": str(page)})
    if as_json:
        print_json(results if len(results) > 1 else results[0])
    else:
        _print_cases([case for facts in results for case in facts["cases"]])
        for facts in results:
            OUT.print(f"report: {facts['report']} ({facts['seconds']} s)", markup=False)
        total = time.monotonic() - begun
        OUT.print(f"{len(chosen)} recipes, {len(models)} models in {total:.0f} s", markup=False)
    lacking = [(facts["name"], *item) for facts in results for item in _lacking(facts)]
    for name, demand, models in lacking:
        ERR.print(f"{name} does not show: {demand} ({', '.join(models)})", markup=False)
    if lacking:
        raise typer.Exit(1)
    # The bars are for all held-out cases; a few say little about them.
    _exit([case for facts in results for case in facts["cases"]], bars=not small)


@app.command("train")
def train(
    name: Name,
    write: Annotated[
        bool, typer.Option("--write", help="Replace the committed model, card and cases.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild the models from the data (dependency group `train`); seeded, through the parity gate.

    Example:  inferpool recipe train crm
    """
    from dataclasses import asdict

    from inferpool.recipes.kit import card
    from inferpool.recipes.kit.running import train as train_case

    recipe, results = _trained(name), []
    for case in recipe.cases:
        with ERR.status(f"training {case.model}"):
            trained, figures, parity = train_case(case)
        results.append(
            {
                "model": case.model,
                "bytes": len(trained.model),
                "parity": parity,
                "figures": [asdict(item) | {"reached": item.reached} for item in figures],
                "agrees": True,
            }
        )
        if not as_json:
            _print_cases(results[-1:])
        if write and all(item.reached for item in figures):
            for path in card.write(recipe, case, trained, figures, parity):
                OUT.print(f"wrote {path}", markup=False) if not as_json else None
    if as_json:
        print_json(results)
    _exit(results)


@app.command("example")
def example(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("examples"),
    count: Annotated[int, typer.Option(min=1, max=50, help="Cases of each model.")] = 3,
) -> None:
    """Write held-out cases as files of the kind that `decide` reads, about made-up people.

    Example:  inferpool recipe example healthcare --out examples
    """
    from inferpool.recipes.kit.take import example as write_example

    for case in _trained(name).cases:
        for path in write_example(case, out, count):
            OUT.print(f"{path} ({case.model})", markup=False)


@app.command("decide")
def decide(
    name: Name,
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Files; see `recipe example`.")
    ],
    model: Annotated[str | None, typer.Option(help="Which of the recipe's models.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the audit records.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decide your own cases through a pool. What identifies a person stays here; each decision is
    written to an audit record, and one about a DICOM picture also to a DICOM SR report.

    Example:  inferpool recipe decide healthcare examples/xray-1.dcm
    """
    from dataclasses import asdict

    from inferpool.recipes import dicom
    from inferpool.recipes.kit import take
    from inferpool.recipes.kit.data import heldout
    from inferpool.recipes.kit.deciding import Desk

    recipe = _trained(name)
    folder = out or Path(f"decisions-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    chosen = [(path, take.choose(recipe, path, model)) for path in files]
    taken = [(path, case, take.take(case, path)) for path, case in chosen]
    results = []
    with _scorers([case.model for _, case in chosen]) as (pool, engine):
        for path, case, items in taken:
            sample, desk = heldout(case.model), Desk(recipe, case, pool, engine, folder)
            for item in items:
                (decision,), (record,), _ = desk.decide([item], sample)
                report = None
                if path.suffix.lower() == ".dcm":
                    file = folder / f"{path.stem}-report.dcm"
                    report = str(dicom.write(path, record, file))
                results.append({"source": str(path), **asdict(decision), "report": report})
                if not as_json:
                    _print_decision(results[-1])
    if as_json:
        print_json(results)
    elif results:
        OUT.print(f"\naudit records: {folder}", markup=False)


def _print_decision(item: dict[str, Any]) -> None:
    by = f"node {item['node'][:14]}" if not item["late"] else "this process, as the pool was late,"
    again = "bit for bit" if item["bitwise"] else "the same" if item["replayed"] else "DIFFERENT"
    OUT.print(
        f"[bold]{item['source']}[/]: [bold]{item['verdict']}[/] (score {item['score']:.4g})\n"
        f"  because of: {item['why'] or 'nothing in particular'}\n"
        f"  stayed here: {', '.join(item['left_out']) or 'nothing; none was found'}"
        f"\n  after {item['ms']:.0f} ms by {by} for {item['charge_pico_usd']} pico-USD;"
        f" made again here: {again}"
    )
    if item["report"]:
        OUT.print(f"  DICOM SR: {item['report']}", markup=False)


@app.command("replay")
def replay(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="Audit records or reports.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make decisions again from their audit files; exit code 1 where one comes out differently.

    Example:  inferpool recipe replay out/decisions/churn/*.json
    """
    from dataclasses import asdict

    import orjson

    from inferpool.recipes import dicom
    from inferpool.recipes.kit import audit
    from inferpool.recipes.kit.scorer import EngineScorer

    results = []
    with EngineScorer() as engine:
        for file in files:
            in_report = file.suffix.lower() == ".dcm"
            record = dicom.audit_of(file) if in_report else orjson.loads(file.read_bytes())
            again = audit.replay(record, engine) if "input" in record else _by_its_recipe(record)
            results.append({"file": str(file), **asdict(again)})
    if as_json:
        print_json(results)
    else:
        for item in results:
            how = "bit for bit" if item["bitwise"] else f"difference {item['difference']:.2g}"
            proof = {True: "signed by its node", False: "NOT SIGNED BY ITS NODE", None: "no proof"}
            about = "" if item["about_this"] is not False else ", ABOUT ANOTHER REQUEST"
            OUT.print(
                f"{'same' if item['same'] else 'DIFFERENT'}, {how}; {proof[item['signed']]}{about}:"
                f" {item['file']}",
                soft_wrap=True,
            )
    bad = [item for item in results if not item["same"] or item["signed"] is False]
    if bad or any(item["about_this"] is False for item in results):
        raise typer.Exit(1)


def _by_its_recipe(record: dict[str, Any]) -> Replay:
    """A decision made again by the recipe that wrote it down in a form of its own."""
    from inferpool.recipes.kit.use import Use

    found = registry.load(str(record.get("recipe")))
    if isinstance(found, Use) and found.replay:
        return found.replay(record)
    raise Refused("this is no audit record of a recipe", code="bad_encoding")


def _models(recipes: Sequence[Recipe | Use]) -> list[str]:
    return [model for item in recipes for model in item.facts()["models"]]


def _can_run(use: Use, *, named: bool) -> bool:
    """Whether what it needs is installed; a use that was named and cannot run is an error."""
    if use.missing and named:
        raise Refused(f"{use.name}: {use.missing}.")
    if use.missing:
        ERR.print(f"left out: {use.name}, {use.missing}", markup=False)
    return not use.missing


def _trained(name: str) -> Recipe:
    """A recipe with models of its own. Raises Refused, BadRequest."""
    from inferpool.recipes.kit.use import Use

    found = registry.load(name)
    if isinstance(found, Use):
        raise Refused(f"{name} trains no model and decides no cases; run it or eval it.")
    return found


@contextmanager
def _scorers(models: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    from inferpool.recipes.kit.pool import open_pool
    from inferpool.recipes.kit.scorer import EngineScorer

    # A recipe that asks nothing of a pool, such as `driving`, starts none.
    opened = open_pool(models) if models else nullcontext()
    with EngineScorer() as engine, opened as pool:
        yield pool, engine


@contextmanager
def _listening(quiet: bool) -> Iterator[Listener]:
    """A progress bar for the held-out cases and a table that grows by each decision."""
    from inferpool.recipes.kit.running import Listener

    if quiet or not ERR.is_terminal:
        yield Listener()
        return
    table = Table("model", "score", "verdict", "what moved it", "node", "replay")
    bars = Progress(console=ERR)
    tasks: dict[str, Any] = {}

    def progress(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done)

    def decision(item: Decision) -> None:
        node, again = item.node[:12], "same" if item.replayed else "DIFFERENT"
        table.add_row(item.case, f"{item.score:.4g}", item.verdict, item.why, node, again)

    with Live(console=ERR, get_renderable=lambda: _stack(bars, table)):
        yield Listener(progress, decision)


def _stack(bars: Progress, table: Table) -> Table:
    screen = Table.grid()
    screen.add_row(bars.get_renderable())
    if table.row_count:
        screen.add_row(table)
    return screen


def _print_cases(cases: Sequence[dict[str, Any]]) -> None:
    for case in cases:
        if "n" in case:
            who = case.get("compared_with", "the engine in this process")
            said = f"{who} {'agrees' if case['agrees'] else '[red]differs[/]'}"
            OUT.print(
                f"\n[bold]{case['model']}[/]: {case['n']} cases by {case['scored_by']}; {said}"
                f" ({case['difference_to_engine']:.1g})"
            )
        else:
            OUT.print(
                f"\n[bold]{case['model']}[/]: {case['bytes']:,} bytes, parity {case['parity']:.1g}"
            )
        for item in case["figures"]:
            wanted = ""
            if item["bar"] is not None:
                sign = ">=" if item["more_is_better"] else "<="
                colour = "green" if item["reached"] else "red"
                wanted = f"; [{colour}]wanted {sign} {item['bar']:g}[/]"
            OUT.print(
                f"  {item['name']}: {item['value']:.4f} ({item['low']:.4f} to {item['high']:.4f},"
                f" n = {item['n']}); {item['baseline_name']} {item['baseline']:.4f}{wanted}"
            )
        _print_service(case)


def _print_service(case: dict[str, Any]) -> None:
    if "band" in case:
        band = case["band"]
        OUT.print(
            f"  to a person: {band['share']:.1%}; errors {band['error_all']:.2%} on all,"
            f" {band['error']:.2%} on the others"
        )
    if "latency" not in case:
        return
    for name, item in case["latency"].items():
        OUT.print(
            f"  one row, {name}: p50 {item['p50_ms']} ms, p99 {item['p99_ms']} ms, n = {item['n']}"
        )
    same = sum(item["replayed"] for item in case["decisions"])
    bits = sum(item["bitwise"] for item in case["decisions"])
    again, wait = case["drift"]["rehearsal"], case["waiting"]
    OUT.print(
        f"  1,000 decisions {case['cost']['per_1000_decisions']}; {same} of"
        f" {len(case['decisions'])} audits replay the same, {bits} bit for bit\n"
        f"  late for {wait['deadline_ms']:g} ms, decided here: {wait['late']} of {wait['n']}\n"
        f"  drift: {case['drift']['alarms']} alarms; rehearsal on {again['shifted']}: PSI"
        f" {again['psi']:.2f}, {'alarm' if again['alarm'] else 'NO ALARM'}"
    )
    if "trace" in case:
        stays, leaks = ", ".join(case["trace"]["left_out"]), len(case["trace"]["leaks"])
        OUT.print(f"  stays here: {stays}; {leaks} of them in what is sent", markup=False)
    if "failover" in case:
        down = case["failover"]
        OUT.print(
            f"  one of two nodes killed: {down['answered']} of {down['sent']} answered,"
            f" {down['by_pool']} by the pool, slowest {down['slowest_ms']:.0f} ms"
        )


def _lacking(facts: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """What a whole recipe has to show and did not."""
    return [(demand, models) for demand, models in facts.get("shown", {}).items() if models]


def _exit(cases: Sequence[dict[str, Any]], *, bars: bool = True) -> None:
    reached = all(item["reached"] for case in cases for item in case["figures"])
    if not all(case["agrees"] for case in cases) or (bars and not reached):
        raise typer.Exit(1)
