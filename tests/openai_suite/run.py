"""Runs openai-python's own tests, as its source distribution has them, against a real pool.

    python tests/openai_suite/run.py SOURCES PYTHON [-k WORDS]

SOURCES: the unpacked source distribution. PYTHON: an interpreter with the same release of the
package and what its tests need. The pool is three processes; its models invent their answers, and
bear the names that the tests ask for because `models/` says so, not because a route knows them.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from inferpool.daemon.pool import start_pool
from inferpool.home import Home

HERE = Path(__file__).parent
FILES = [
    f"tests/api_resources/{name}.py"
    for name in (
        "chat/test_completions",
        "test_completions",
        "test_embeddings",
        "test_images",
        "test_models",
        "audio/test_transcriptions",
    )
]
LEAST = 120  # tests that have to pass


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Patterns of test ids that are left out, and why."""

    patterns: tuple[str, ...]
    reason: str


def exclusions() -> list[Exclusion]:
    """The committed list."""
    listed = tomllib.loads((HERE / "exclusions.toml").read_text())["exclude"]
    return [Exclusion(tuple(item["tests"]), item["reason"]) for item in listed]


def main() -> int:
    """Print what passed, what failed, and what was left out and why."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("-k", default="", help="only tests whose id has these words")
    given = parser.parse_args()
    sources = given.sources.resolve()
    # Not resolved: a link in a virtual environment is what makes it one.
    pytest = [
        str(given.python.absolute()),
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
    ]
    found = collect(pytest, sources)
    kept, left_out = sort(found, exclusions())
    kept = [test for test in kept if given.k in test]
    with tempfile.TemporaryDirectory() as folder:
        pool = start_pool(
            Home(Path(folder)),
            {
                "chain.port": 0,
                "node.port": 0,
                "gateway.port": 0,
                "gateway.open": True,  # the tests bring a key of their own
                "node.models": [path.name for path in models()],
                "node.manifests": str(HERE / "models"),
            },
        )
        try:
            code, passed, failed = run(pytest, sources, kept, pool.running["gateway"].url, folder)
        finally:
            pool.close()
    for exclusion, tests in left_out:
        print(f"excluded {len(tests):4}  {exclusion.reason}")
    excluded = sum(len(tests) for _, tests in left_out)
    print(f"openai suite: {passed} passed, {failed} failed, {excluded} excluded")
    if given.k:
        return code
    return 1 if code or failed or passed < LEAST else 0


def models() -> list[Path]:
    """The manifests; each bears the name of its model."""
    return sorted(
        Path(tomllib.loads(path.read_text())["name"]) for path in (HERE / "models").glob("*.toml")
    )


def collect(pytest: list[str], sources: Path) -> list[str]:
    """The ids of all tests of the routes that are served."""
    done = subprocess.run(
        [*pytest, "--collect-only", "-q", *FILES],
        cwd=sources,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not found:
        sys.exit(f"The tests cannot be collected:\n{done.stdout}{done.stderr}")
    return found


def sort(
    found: list[str], excluded: list[Exclusion]
) -> tuple[list[str], list[tuple[Exclusion, list[str]]]]:
    """What runs, and what each exclusion leaves out; one that leaves out nothing is an error."""
    kept, left_out = list(found), []
    for exclusion in excluded:
        tests = [
            test
            for test in kept
            if any(fnmatch.fnmatchcase(test, pattern) for pattern in exclusion.patterns)
        ]
        if not tests:
            sys.exit(f"This exclusion leaves out nothing: {exclusion.patterns}")
        kept = [test for test in kept if test not in set(tests)]
        left_out.append((exclusion, tests))
    return kept, left_out


def run(
    pytest: list[str], sources: Path, tests: list[str], gateway: str, folder: str
) -> tuple[int, int, int]:
    """Exit code, passed, failed."""
    report = Path(folder) / "report.xml"
    code = subprocess.run(
        [*pytest, "-q", "--tb=short", "--timeout=60", f"--junitxml={report}", *tests],
        cwd=sources,
        env={**os.environ, "TEST_API_BASE_URL": f"{gateway}/v1", "PYTHONPATH": ""},
        check=False,
    ).returncode
    suites = ET.parse(report).getroot().iter("testsuite")
    counts = [
        {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
        for suite in suites
    ]
    failed = sum(item["failures"] + item["errors"] for item in counts)
    passed = sum(item["tests"] - item["skipped"] for item in counts) - failed
    return code, passed, failed


if __name__ == "__main__":
    sys.exit(main())
