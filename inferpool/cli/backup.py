"""`inferpool backup` and `restore`: keys, configuration and ledgers in one encrypted file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from inferpool.cli.console import OUT, AsJson, print_json, settings
from inferpool.home import Home

BACKUP_HELP = """Write keys, configuration and ledgers into one encrypted file.

The password is asked for, or taken from INFERPOOL_BACKUP_PASSWORD. Roles may
go on running: each book is copied whole, as it was at one moment.

Example:  inferpool backup /mnt/usb/inferpool.backup"""

RESTORE_HELP = """Restore a backup into an empty INFERPOOL_HOME, or only check it.

Nothing is ever overwritten. Examples:

  inferpool restore /mnt/usb/inferpool.backup --verify

  inferpool restore /mnt/usb/inferpool.backup"""

PASSWORD_VARIABLE = "INFERPOOL_BACKUP_PASSWORD"  # noqa: S105 - its name
_SHOWN = 12


def backup(
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    as_json: AsJson = False,
) -> None:
    """Write the backup."""
    from inferpool import backup as backups

    home = Home.of()
    data, names = backups.make(home, _password(confirm=True))
    backups.write(file, data)
    if as_json:
        print_json({"file": str(file), "bytes": len(data), "holds": names})
        return
    OUT.print(f"{file}: {len(data)} bytes, {len(names)} files")
    for name in names[:_SHOWN]:
        OUT.print(f"  {name}", markup=False)
    OUT.print("[dim]Check it now and then: inferpool restore FILE --verify[/]")
    if settings()[0].gateway.db:
        OUT.print(
            "The gateway's book is in PostgreSQL and not in this file: dump it with pg_dump.",
            style="yellow",
        )


def restore(
    file: Annotated[Path, typer.Argument(help="A backup.", exists=True, dir_okay=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Check it, write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Restore or check."""
    from inferpool import backup as backups

    home = Home.of()
    files = backups.read(file.read_bytes(), _password(confirm=False))
    with tempfile.TemporaryDirectory(prefix="inferpool-verify-") as folder:
        found = backups.verify(files, Path(folder), os.environ.get("INFERPOOL_PASSWORD"))
    if not verify:
        backups.restore(files, home)
    if as_json:
        print_json({"restored": not verify, "home": str(home.root), "found": found})
        return
    for line in found:
        OUT.print(line, markup=False)
    OUT.print("good: it can be restored" if verify else f"restored into {home.root}")


def _password(*, confirm: bool) -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    answer: str = typer.prompt("Password", hide_input=True, confirmation_prompt=confirm)
    return answer
