"""Runs clients that nobody here wrote against a real pool, each in a process of its own.

    python tests/clients/run.py ENVIRONMENT [CLIENT ...]

ENVIRONMENT: a folder with the clients installed, as `scripts/clients.sh` makes it. Answers come
from real models and are looked at; Schemathesis asks models that invent theirs at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inferpool.daemon.pool import start_pool
from inferpool.home import Home
from inferpool.models import catalogue
from inferpool.models.pull import preferred, pull_model
from inferpool.models.store import Store

HERE = Path(__file__).parent
REAL = ["smollm2-135m-instruct", "all-minilm-l6-v2"]
# Task -> a model that answers at once. Two of them are the openai suite's.
INVENTED = {
    "chat": "fake-chat",
    "tensor": "fake-tensor",
    "embedding": "text-embedding-3-small",
    "image": "gpt-image-1.5",
}
CLIENTS = ("openai-node", "litellm", "llm", "schemathesis")
PATIENCE_S = 900


def main() -> int:
    """Print what each client found, and fail with the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("clients", nargs="*", choices=[[], *CLIENTS])
    given = parser.parse_args()
    for name in REAL:
        pull_model(Store(), catalogue.load(name), prefer=preferred())
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "pool")
        pool = start_pool(
            home,
            {
                "chain.port": 0,
                "node.port": 0,
                "gateway.port": 0,
                "node.models": [*REAL, *INVENTED.values()],
                "node.manifests": str(HERE.parent / "openai_suite" / "models"),
            },
        )
        try:
            for name in given.clients or CLIENTS:
                scratch = Path(folder) / name
                scratch.mkdir()
                environment = {
                    "GATEWAY_URL": pool.running["gateway"].url,
                    "GATEWAY_KEY": home.secret("api-key"),
                    "MODELS": json.dumps(INVENTED),
                    "SCRATCH": str(scratch),
                }
                if not run(name, given.environment.absolute(), scratch, environment):
                    failed.append(name)
        finally:
            pool.close()
    print(f"clients: {'all passed' if not failed else 'failed: ' + ', '.join(failed)}")
    return 1 if failed else 0


def run(name: str, environment: Path, scratch: Path, variables: dict[str, str]) -> bool:
    """Run one client to its end."""
    programs = environment / "bin"
    command = {
        "openai-node": [str(programs / "node"), str(environment / "node" / "client.mjs")],
        "litellm": [str(programs / "python"), str(HERE / "litellm_client.py")],
        "llm": ["sh", str(HERE / "llm_client.sh")],
        "schemathesis": [str(programs / "python"), str(HERE / "schema_client.py")],
    }[name]
    # Beside its package, which is how a module finds one.
    shutil.copy(HERE / "node" / "client.mjs", environment / "node")
    kept = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
    begun = time.monotonic()
    done = subprocess.run(
        command,
        cwd=scratch,
        env={**kept, **variables, "PATH": f"{programs}{os.pathsep}{kept['PATH']}"},
        timeout=PATIENCE_S,
        check=False,
    )
    ended = "ok" if done.returncode == 0 else f"FAILED with {done.returncode}"
    print(f"{name}: {ended} in {time.monotonic() - begun:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
