"""`python -m inferpool.chain.devchain`: serve a development chain."""

from __future__ import annotations

import argparse

from inferpool.chain.addresses import DEV_CHAIN_ID
from inferpool.chain.devchain.server import serve


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m inferpool.chain.devchain")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8545, help="0 takes a free one")
    parser.add_argument("--state", default=":memory:", help="file of the chain's state")
    parser.add_argument("--chain-id", type=int, default=DEV_CHAIN_ID)
    parser.add_argument("--announce", action="store_true", help="print one JSON line when ready")
    options = parser.parse_args()
    serve(
        host=options.host,
        port=options.port,
        state=options.state,
        chain_id=options.chain_id,
        announce=options.announce,
    )


if __name__ == "__main__":
    main()
