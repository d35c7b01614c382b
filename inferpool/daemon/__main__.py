"""`python -m inferpool.daemon ROLE [FLAGS]`: one role, as a supervisor starts it.

FLAGS is a JSON object of configuration keys, such as {"node.port": 0}.
"""

from __future__ import annotations

import logging
import os
import sys

import orjson

from inferpool.config import load
from inferpool.daemon.roles import serve
from inferpool.daemon.workers import Worker
from inferpool.home import Home
from inferpool.protocol.errors import InferpoolError


def main(arguments: list[str]) -> int:
    """Run a role; 2 for a mistake of the caller, 1 for a failure."""
    # Before numpy is loaded. OpenBLAS's own threads only get in the engines' way, and one was seen
    # to wait for ever for another: a node's Whisper stood still in a product of two matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not arguments:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    logging.basicConfig(level=os.environ.get("INFERPOOL_LOG", "WARNING"), stream=sys.stderr)
    home = Home.of()
    flags = orjson.loads(arguments[1]) if len(arguments) > 1 else dict(Worker.here().flags)
    try:
        serve(arguments[0], load(home.config, os.environ, flags), home)
    except InferpoolError as error:
        sys.stderr.write(f"error: {error.message} [{error.code}]\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
