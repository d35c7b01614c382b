"""Compile the contracts: `python -m inferpool.chain.build` writes `contracts/artifacts.json`.

Needs vyper and py-evm, which nothing else needs to deploy or call a contract. The runtime code is
what the constructor leaves behind at the contract's address on a development chain: immutables
are part of the code, so it is taken from a real run, not from the compiler.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from inferpool.chain.abi import Contract, Json
from inferpool.chain.addresses import (
    DEV_CHAIN_ID,
    DEV_COURT_ADDRESS,
    DEV_DOLLAR_ADDRESS,
    DEV_REGISTRY_ADDRESS,
    FIXED,
)
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.protocol.encoding import to_checksum, to_hex

CONTRACTS: Final = Path(__file__).parent / "contracts"
ARTIFACTS: Final = CONTRACTS / "artifacts.json"
EVM_VERSION: Final = "cancun"  # every chain that x402 runs on has it

_CONSTRUCTOR_ARGUMENTS: Final[dict[str, tuple[bytes, ...]]] = {
    "Disputes": (DEV_REGISTRY_ADDRESS,),
    "Registry": (DEV_DOLLAR_ADDRESS, DEV_COURT_ADDRESS),
}


def build() -> dict[str, Any]:
    """Compile all sources and return the artifacts."""
    import vyper

    contracts = {name: _compile(name) for name in sorted(FIXED)}
    for name, entry in contracts.items():
        entry["address"] = to_checksum(FIXED[name])
        entry["runtime"] = to_hex(_construct(name, Contract(name, entry | {"runtime": "0x"})))
    return {
        "compiler": f"vyper {vyper.__version__}",
        "evm": EVM_VERSION,
        "chainId": DEV_CHAIN_ID,
        "sources": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(CONTRACTS.glob("*.vy"))
        },
        "contracts": contracts,
    }


def to_json(artifacts: dict[str, Any]) -> str:
    """The artifacts as they are committed."""
    return json.dumps(artifacts, indent=1, sort_keys=True) + "\n"


def _compile(name: str) -> Json:
    from vyper.compiler import compile_from_file_input
    from vyper.compiler.input_bundle import FilesystemInputBundle
    from vyper.compiler.settings import OptimizationLevel, Settings

    bundle = FilesystemInputBundle([CONTRACTS])
    output = compile_from_file_input(
        bundle.load_file(f"{name}.vy"),
        input_bundle=bundle,
        settings=Settings(evm_version=EVM_VERSION, optimize=OptimizationLevel.GAS),
        output_formats=["abi", "bytecode", "layout"],
    )
    slots = output["layout"].get("storage_layout", {})
    return {
        "abi": output["abi"],
        "bytecode": output["bytecode"],
        "layout": {variable: place["slot"] for variable, place in slots.items() if "slot" in place},
    }


def _construct(name: str, contract: Contract) -> bytes:
    """Run a constructor at the contract's fixed address and return the code it leaves."""
    from inferpool.chain.devchain.evm import construct

    arguments = _CONSTRUCTOR_ARGUMENTS.get(name, ())
    return construct(
        FIXED[name],
        contract.deployment(*arguments),
        sender=DEV_KEYS[0].address,
        chain_id=DEV_CHAIN_ID,
    )


def main() -> None:
    """Write the artifacts next to the sources."""
    text = to_json(build())
    ARTIFACTS.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{ARTIFACTS}: {len(text)} bytes\n")


if __name__ == "__main__":
    main()
