"""`inferpool models`: what can be served, and the files of it."""

from __future__ import annotations

from typing import Annotated

import typer

from inferpool.cli.console import OUT, AsJson, print_json, print_table, progress_bars
from inferpool.models import catalogue
from inferpool.models.manifest import Manifest
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store
from inferpool.protocol.errors import InferpoolError

app = typer.Typer(
    help="""List, fetch and check models. A model is data; its hash decides, wherever it came from.

Examples:

  inferpool models list

  inferpool models pull smollm2-135m-instruct

  inferpool models verify""",
    no_args_is_help=True,
)

Names = Annotated[list[str] | None, typer.Argument(help="Names or ids; all if none is given.")]


def _chosen(names: list[str] | None) -> list[Manifest]:
    return [catalogue.load(name) for name in names] if names else list(catalogue.all())


def _facts(manifest: Manifest, store: Store) -> dict[str, object]:
    return {
        "name": manifest.name,
        "id": manifest.id,
        "task": manifest.task,
        "engine": manifest.engine,
        "quant": manifest.quant,
        "licence": manifest.licence,
        "size_bytes": manifest.size,
        "present": not store.missing(manifest),
        "description": manifest.description,
    }


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the catalogue.

    Example:  inferpool models list --json
    """
    store = Store()
    facts = [_facts(manifest, store) for manifest in catalogue.all()]
    if as_json:
        print_json(facts)
        return
    rows = []
    for item in facts:
        size = f"{int(str(item['size_bytes'])) / 1e6:.1f} MB"
        here = "yes" if item["present"] else "no"
        rows.append((item["name"], item["task"], item["engine"], size, here, item["licence"]))
    print_table(("name", "task", "engine", "size", "here", "licence"), rows)


@app.command("pull")
def pull(names: Names = None) -> None:
    """Fetch a model's files, with a progress bar; what is there already is kept.

    Example:  inferpool models pull smollm2-135m-instruct
    """
    store = Store()
    with progress_bars() as on_progress:
        for manifest in _chosen(names):
            paths = pull_model(store, manifest, prefer=preferred(), on_progress=on_progress)
            OUT.print(f"{manifest.name}: {len(paths)} files, {manifest.size / 1e6:.1f} MB")


@app.command("verify")
def verify(names: Names = None, as_json: AsJson = False) -> None:
    """Hash the files that are here and compare; exit code 1 where one is wrong.

    Example:  inferpool models verify spam
    """
    store, results = Store(), []
    for manifest in _chosen(names):
        for file in manifest.files:
            if not store.has(file):
                results.append({"model": manifest.name, "file": file.name, "state": "absent"})
                continue
            state = "good"
            try:
                store.verify(file)
            except InferpoolError as error:
                state = error.message
            results.append({"model": manifest.name, "file": file.name, "state": state})
    if as_json:
        print_json(results)
    else:
        for item in results:
            OUT.print(f"{item['model']}: {item['file']}: {item['state']}", markup=False)
    if any(item["state"] not in ("good", "absent") for item in results):
        raise typer.Exit(1)
