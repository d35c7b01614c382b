"""A token that calls back while it is paid out gets nothing more judged, and nothing out."""

from __future__ import annotations

import pytest

from inferpool.chain.abi import contract, encode
from inferpool.chain.cases import exhibit_struct
from inferpool.chain.deploy import deploy
from inferpool.protocol.encoding import from_hex, to_hex
from tests.chain import signed

COURT, REGISTRY = contract("Disputes"), contract("Registry")
HOSTILE = """
# pragma version 0.4.3
target: address
payload: Bytes[8192]
tries: public(uint256)
successes: public(uint256)

@external
def arm(target: address, payload: Bytes[8192]):
    self.target = target
    self.payload = payload

@external
def transferFrom(holder: address, to: address, amount: uint256) -> bool:
    return True

@external
def transfer(to: address, amount: uint256) -> bool:
    success: bool = raw_call(self.target, self.payload, revert_on_failure=False)
    self.tries += 1
    if success:
        self.successes += 1
    return True
"""


@pytest.fixture(scope="module")
def hostile():
    from vyper import compile_code

    return compile_code(HOSTILE, output_formats=["bytecode", "method_identifiers"])


def test_a_token_that_calls_back_reaches_nothing(dev_world, run, new_key, hostile) -> None:
    roles, node = dev_world.roles, new_key("node")
    sender = dev_world.chain(roles.stranger)
    _, mined = run(sender._sender.send(None, bytes.fromhex(hostile["bytecode"][2:])))
    token = from_hex(mined["contractAddress"], 20)
    place = run(deploy(dev_world.url, roles.court, token=token, post=dev_world.post))
    owner = dev_world.chain(roles.owner, registry=place.registry)
    run(owner.register(node, "https://node.example", stake=1_000))
    offer = signed.offer(node, roles.owner.address)
    first, second = (
        signed.receipt(node, offer, seed=seed, charge_pico_usd=10**12) for seed in (1, 2)
    )

    def ask(name: str) -> int:
        data = to_hex(from_hex(hostile["method_identifiers"][f"{name}()"], 4))
        return int(dev_world.rpc("eth_call", {"to": to_hex(token), "data": data}, "latest"), 16)

    reporter = dev_world.chain(roles.reporter, registry=place.registry)
    calls = [
        (place.court, COURT.call("report_overcharge", exhibit_struct(first, offer))),
        (place.court, COURT.call("report_overcharge", exhibit_struct(second, offer))),
        (place.registry, REGISTRY.call("withdraw_stake")),
        (place.registry, REGISTRY.call("slash", roles.owner.address, 1, roles.liar.address)),
    ]
    arm = from_hex(hostile["method_identifiers"]["arm(address,bytes)"], 4)
    for number, (target, payload) in enumerate(calls):
        data = arm + encode(["address", "bytes"], [target, payload])
        run(sender._send(token, data))
        lie = signed.receipt(node, offer, seed=10 + number, charge_pico_usd=10**12)
        run(reporter.report_overcharge(lie, offer))
    assert ask("tries") == 2 * len(calls)  # the burnt part and the reporter's
    assert ask("successes") == 0
    run(reporter.report_overcharge(first, offer))  # was not judged on the way
