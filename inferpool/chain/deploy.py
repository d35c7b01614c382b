"""Deploy registry and court, and where asked the test dollar, by plain transactions on any chain.

    INFERPOOL_DEPLOYER_KEY=0x... python -m inferpool.chain.deploy --rpc URL \\
        (--token ADDRESS | --test-dollar) [--court ADDRESS]

Registry and court name each other for ever: the registry is told the address that the court is
going to have, which follows from the deployer's address and its number of transactions. With
`--court` another court is named, and none deployed. The deployer has no power over registry and
court afterwards; over a test dollar it has all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import dataclass

from inferpool.chain.abi import contract
from inferpool.chain.rpc import Post, Rpc, post_by_urllib
from inferpool.chain.sender import Sender
from inferpool.chain.transaction import created_address
from inferpool.identity.signing import Key
from inferpool.protocol.encoding import from_hex, to_checksum, to_hex
from inferpool.protocol.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where the contracts are."""

    registry: bytes
    court: bytes
    token: bytes


async def deploy(
    url: str,
    key: Key,
    *,
    court: bytes | None = None,
    token: bytes | None = None,
    post: Post = post_by_urllib,
) -> Deployment:
    """Deploy the registry and its court: a new one where `court` is None, for a token: a new test
    dollar where `token` is None.

    Raises Refused(chain_reverted) and Unavailable(chain_unavailable).
    """
    rpc = Rpc(url, post)
    sender = Sender(rpc, key, int(await rpc.call("eth_chainId"), 16))
    if token is None:
        token = await _create(sender, contract("TestDollar").deployment())
    if court is not None:
        registry = await _create(sender, contract("Registry").deployment(token, court))
        return Deployment(registry, court, token)
    nonce = int(await rpc.call("eth_getTransactionCount", to_hex(key.address), "pending"), 16)
    expected = created_address(key.address, nonce + 1)
    registry = await _create(sender, contract("Registry").deployment(token, expected))
    court = await _create(sender, contract("Disputes").deployment(registry))
    if court != expected:
        raise Unavailable(
            "the deployer's key sent something else meanwhile, so the registry names a court that"
            " does not exist; deploy again and forget this registry",
            code="chain_unavailable",
        )
    return Deployment(registry, court, token)


async def _create(sender: Sender, code: bytes) -> bytes:
    _, receipt = await sender.send(None, code)
    return from_hex(receipt["contractAddress"], 20)


def main() -> None:
    """Parse the command line, deploy, and print the addresses as JSON."""
    parser = argparse.ArgumentParser(prog="python -m inferpool.chain.deploy")
    parser.add_argument("--rpc", required=True, help="the chain's URL")
    parser.add_argument("--court", help="the one address that may slash, instead of a new court")
    money = parser.add_mutually_exclusive_group(required=True)
    money.add_argument("--token", help="the ERC-20 of all stake")
    money.add_argument("--test-dollar", action="store_true", help="deploy a test dollar too")
    options = parser.parse_args()
    # Not an argument: every user of the machine can read command lines.
    key = Key(from_hex(os.environ.get("INFERPOOL_DEPLOYER_KEY"), 32))
    token = None if options.test_dollar else from_hex(options.token, 20)
    court = None if options.court is None else from_hex(options.court, 20)
    deployment = asyncio.run(deploy(options.rpc, key, court=court, token=token))
    addresses = {
        "registry": to_checksum(deployment.registry),
        "court": to_checksum(deployment.court),
        "token": to_checksum(deployment.token),
    }
    sys.stdout.write(json.dumps(addresses) + "\n")


if __name__ == "__main__":
    main()
