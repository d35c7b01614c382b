"""web3.py, which nobody here wrote, on the development chain."""

from __future__ import annotations

import pytest
from web3 import Web3
from web3.exceptions import ContractLogicError, Web3RPCError
from web3.providers.base import JSONBaseProvider

from inferpool.chain.abi import contract
from inferpool.chain.addresses import (
    DEV_COURT_ADDRESS,
    DEV_DOLLAR_ADDRESS,
    MULTICALL3_ADDRESS,
)
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.node import Node
from inferpool.chain.devchain.server import reply
from inferpool.protocol.encoding import to_checksum, to_hex

TO = to_checksum(b"\x42" * 20)


class InProcess(JSONBaseProvider):
    """web3's own JSON, handed to the node without a socket."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._node = node

    def make_request(self, method, params):
        request = self.encode_rpc_request(method, params)
        return self.decode_rpc_response(reply(self._node, request))


@pytest.fixture
def w3(node):
    w3 = Web3(InProcess(node))
    w3.eth.default_account = w3.eth.accounts[1]
    return w3


def wait(w3, hash_):
    return w3.eth.wait_for_transaction_receipt(hash_, timeout=5, poll_latency=0.01)


def test_it_reads_blocks_and_balances(w3) -> None:
    assert w3.is_connected()
    assert w3.eth.chain_id == 31337
    assert w3.eth.get_balance(w3.eth.accounts[0]) == 10_000 * 10**18
    assert w3.eth.get_block("latest", full_transactions=True)["number"] == 0
    assert w3.eth.get_transaction_count(TO) == 0
    assert w3.eth.fee_history(1, "latest", [50])["oldestBlock"] == 0
    assert len(w3.eth.get_code(to_checksum(DEV_DOLLAR_ADDRESS))) > 1_000


def test_it_signs_and_sends(w3) -> None:
    account = w3.eth.account.from_key(DEV_KEYS[2].secret)
    transaction = {
        "from": account.address,
        "to": TO,
        "value": 3,
        "nonce": 0,
        "gas": 21_000,
        "maxFeePerGas": w3.eth.gas_price * 2,
        "maxPriorityFeePerGas": w3.eth.max_priority_fee,
        "chainId": w3.eth.chain_id,
    }
    raw = account.sign_transaction(transaction).raw_transaction
    receipt = wait(w3, w3.eth.send_raw_transaction(raw))
    assert receipt["status"] == 1
    assert receipt["gasUsed"] == 21_000
    assert w3.eth.get_transaction(receipt["transactionHash"])["value"] == 3
    assert w3.eth.get_balance(TO) == 3
    with pytest.raises(Web3RPCError, match="already known"):
        w3.eth.send_raw_transaction(raw)


def test_it_deploys_calls_and_reads_logs(w3) -> None:
    artifact = contract("TestDollar")
    factory = w3.eth.contract(abi=artifact.abi, bytecode=to_hex(artifact.bytecode))
    receipt = wait(w3, factory.constructor().transact())
    token = w3.eth.contract(receipt["contractAddress"], abi=artifact.abi)
    assert token.functions.owner().call() == w3.eth.default_account
    assert token.functions.name().call() == "Dev Dollar"
    assert token.functions.decimals().call() == 6
    wait(w3, token.functions.mint(TO, 11).transact())
    (event,) = token.events.Transfer().get_logs(from_block=0)
    assert event["args"]["receiver"] == TO
    assert event["args"]["value"] == 11
    with pytest.raises(ContractLogicError, match="only the owner mints"):
        token.functions.mint(TO, 1).call({"from": w3.eth.accounts[3]})


def test_deployed_code_is_the_genesis_code_but_for_its_address(w3) -> None:
    """The fixed addresses hold what a plain deployment would have put there."""
    artifact = contract("Registry")
    factory = w3.eth.contract(abi=artifact.abi, bytecode=to_hex(artifact.bytecode))
    deploying = factory.constructor(to_checksum(DEV_DOLLAR_ADDRESS), to_checksum(DEV_COURT_ADDRESS))
    receipt = wait(w3, deploying.transact())
    deployed = bytes(w3.eth.get_code(receipt["contractAddress"]))
    genesis = artifact.runtime
    differing = [
        at for at, pair in enumerate(zip(deployed, genesis, strict=True)) if len(set(pair)) > 1
    ]
    assert 0 < len(differing) <= 52  # the cached domain separator (32) and the address (20)
    assert len(genesis) - min(differing) <= 512  # all of it in the immutables at the end


def test_permit_by_a_foreign_signer(w3) -> None:
    """EIP-2612 as eth-account signs it from the domain that the token tells."""
    token = w3.eth.contract(to_checksum(DEV_DOLLAR_ADDRESS), abi=contract("TestDollar").abi)
    holder = w3.eth.account.from_key(DEV_KEYS[2].secret)
    _, name, version, chain_id, at, _, _ = token.functions.eip712Domain().call()
    domain = {"name": name, "version": version, "chainId": chain_id, "verifyingContract": at}
    fields = ("owner:address", "spender:address", "value:uint256", "nonce:uint256")
    types = {
        "Permit": [
            {"name": field.split(":")[0], "type": field.split(":")[1]}
            for field in (*fields, "deadline:uint256")
        ]
    }
    deadline = w3.eth.get_block("latest")["timestamp"] + 60
    message = {"owner": holder.address, "spender": TO, "value": 9, "nonce": 0, "deadline": deadline}
    signed = w3.eth.account.sign_typed_data(holder.key, domain, types, message)
    words = (signed.v, signed.r.to_bytes(32, "big"), signed.s.to_bytes(32, "big"))
    wait(w3, token.functions.permit(holder.address, TO, 9, deadline, *words).transact())
    assert token.functions.allowance(holder.address, TO).call() == 9
    with pytest.raises(ContractLogicError, match="invalid signature"):
        token.functions.permit(holder.address, TO, 9, deadline, *words).call()


@pytest.mark.parametrize("name", ["TransferWithAuthorization", "ReceiveWithAuthorization"])
def test_eip_3009_by_a_foreign_signer(w3, name) -> None:
    """Anyone may send a transfer; a receipt only its receiver; each once, each in its time."""
    token = w3.eth.contract(to_checksum(DEV_DOLLAR_ADDRESS), abi=contract("TestDollar").abi)
    holder = w3.eth.account.from_key(DEV_KEYS[2].secret)
    receiver = w3.eth.accounts[3]
    now_s = w3.eth.get_block("latest")["timestamp"]
    domain = {
        "name": "Dev Dollar",
        "version": "1",
        "chainId": w3.eth.chain_id,
        "verifyingContract": token.address,
    }
    kinds = {
        "from": "address",
        "to": "address",
        "value": "uint256",
        "validAfter": "uint256",
        "validBefore": "uint256",
        "nonce": "bytes32",
    }
    types = {name: [{"name": field, "type": kind} for field, kind in kinds.items()]}
    function = token.functions[name[0].lower() + name[1:]]

    def call(valid_after: int, valid_before: int, nonce: bytes):
        values = (holder.address, receiver, 9, valid_after, valid_before, nonce)
        message = dict(zip(kinds, values, strict=True))
        signed = w3.eth.account.sign_typed_data(holder.key, domain, types, message)
        return function(*values, bytes(signed.signature))

    good = call(now_s - 1, now_s + 60, b"\1" * 32)
    wait(w3, good.transact({"from": receiver}))
    assert token.functions.authorizationState(holder.address, b"\1" * 32).call()
    refusals = {
        "authorization is used": good,
        "not yet valid": call(now_s + 60, now_s + 90, b"\2" * 32),
        "is expired": call(now_s - 2, now_s - 1, b"\2" * 32),
    }
    for words, refused_call in refusals.items():
        with pytest.raises(ContractLogicError, match=words):
            refused_call.call({"from": receiver})
    by_a_stranger = call(now_s - 1, now_s + 60, b"\3" * 32)
    if name == "TransferWithAuthorization":
        by_a_stranger.call({"from": w3.eth.accounts[4]})
    else:
        with pytest.raises(ContractLogicError, match="caller must be the payee"):
            by_a_stranger.call({"from": w3.eth.accounts[4]})


def test_multicall_lets_fail_what_may_fail(w3) -> None:
    multicall = w3.eth.contract(to_checksum(MULTICALL3_ADDRESS), abi=contract("Multicall3").abi)
    token = contract("TestDollar")
    at = to_checksum(DEV_DOLLAR_ADDRESS)
    good, bad = token.call("decimals"), token.call("mint", b"\1" * 20, 1)
    (first, second) = multicall.functions.aggregate3([(at, False, good), (at, True, bad)]).call()
    assert first == (True, (6).to_bytes(32, "big"))
    assert second[0] is False
    assert multicall.functions.tryAggregate(False, [(at, bad)]).call()[0][0] is False
    for strict in (
        multicall.functions.aggregate3([(at, False, bad)]),
        multicall.functions.tryAggregate(True, [(at, bad)]),
    ):
        with pytest.raises(ContractLogicError, match="call failed"):
            strict.call()


def test_the_chains_error_reaches_it(w3) -> None:
    with pytest.raises(Web3RPCError, match="insufficient funds"):
        w3.eth.send_transaction(
            {"from": w3.eth.accounts[1], "to": TO, "value": 10**30, "gas": 21_000}
        )
