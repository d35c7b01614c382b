"""The development chain's own promises: clock, reorgs, snapshots, errors, limits."""

from __future__ import annotations

import orjson
import pytest

from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_DOLLAR_ADDRESS
from inferpool.chain.devchain import limits
from inferpool.chain.devchain.genesis import DEV_BALANCE_UNITS, DEV_BALANCE_WEI
from inferpool.chain.devchain.keys import DEV_KEYS
from inferpool.chain.devchain.node import Node
from inferpool.chain.devchain.server import reply
from inferpool.chain.transaction import Transaction, sign_transaction
from inferpool.protocol.encoding import to_checksum, to_hex

TOKEN = contract("TestDollar")
TO = b"\x42" * 20


def ask(node: Node, method: str, *parameters: object):
    """The whole answer to one request."""
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": list(parameters)}
    answer = orjson.loads(reply(node, orjson.dumps(body)))
    assert answer["id"] == 7
    return answer


def result(node: Node, method: str, *parameters: object):
    answer = ask(node, method, *parameters)
    assert "error" not in answer, answer
    return answer["result"]


def error(node: Node, method: str, *parameters: object):
    return ask(node, method, *parameters)["error"]


def signed(node: Node, **changes: object) -> str:
    """A transfer of 1 wei by key 1."""
    fields = {
        "chain_id": node.chain_id,
        "nonce": int(result(node, "eth_getTransactionCount", to_hex(DEV_KEYS[1].address)), 16),
        "to": TO,
        "data": b"",
        "gas": 21_000,
        "max_fee_wei": 10**10,
        "max_priority_fee_wei": 1,
        "value": 1,
    }
    return to_hex(sign_transaction(Transaction(**(fields | changes)), DEV_KEYS[1]))


def test_genesis_funds_the_known_keys_and_adds_up(node) -> None:
    for key in DEV_KEYS:
        assert int(result(node, "eth_getBalance", to_hex(key.address)), 16) == DEV_BALANCE_WEI
        data = to_hex(TOKEN.call("balanceOf", key.address))
        call = {"to": to_hex(DEV_DOLLAR_ADDRESS), "data": data}
        assert int(result(node, "eth_call", call), 16) == DEV_BALANCE_UNITS
    supply = {"to": to_hex(DEV_DOLLAR_ADDRESS), "data": to_hex(TOKEN.call("totalSupply"))}
    assert int(result(node, "eth_call", supply), 16) == DEV_BALANCE_UNITS * len(DEV_KEYS)
    assert result(node, "eth_accounts")[0] == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"


def test_the_faucet_gives_both_coins_in_one_block(node) -> None:
    result(node, "inferpool_faucet", to_hex(TO), hex(5), hex(7))
    assert node.head.number == 1
    assert result(node, "eth_getBalance", to_hex(TO)) == "0x5"
    (log,) = result(node, "eth_getLogs", {"address": to_hex(DEV_DOLLAR_ADDRESS)})
    assert int(log["data"], 16) == 7
    assert log["topics"][2] == to_hex(TO.rjust(32, b"\0"))
    too_much = hex(limits.FAUCET_UNITS_MAX + 1)
    assert error(node, "inferpool_faucet", to_hex(TO), "0x0", too_much)["code"] == -32602


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonce": 3}, "nonce too high: next nonce 0, tx nonce 3"),
        ({"gas": 20_999}, "intrinsic gas too low"),
        ({"gas": limits.BLOCK_GAS_LIMIT + 1}, "exceeds block gas limit"),
        ({"max_fee_wei": 1, "max_priority_fee_wei": 1}, "max fee per gas less than block base fee"),
        ({"value": DEV_BALANCE_WEI}, "insufficient funds for gas * price + value"),
        ({"chain_id": 1}, "invalid chain id for signer: have 1 want 31337"),
    ],
)
def test_a_transaction_is_refused_in_geths_words(node, changes, words) -> None:
    refusal = error(node, "eth_sendRawTransaction", signed(node, **changes))
    assert refusal["code"] == -32000
    assert words in refusal["message"]
    assert node.head.number == 0


def test_a_used_nonce_and_a_repeated_transaction(node) -> None:
    first = signed(node)
    result(node, "eth_sendRawTransaction", first)
    assert error(node, "eth_sendRawTransaction", first)["message"] == "already known"
    refusal = error(node, "eth_sendRawTransaction", signed(node, nonce=0, value=2))
    assert refusal["message"] == "nonce too low: next nonce 1, tx nonce 0"


def test_garbage_is_no_transaction(node) -> None:
    for raw in ("0x", "0x02", "0x02c0", "0x" + "ff" * 100):
        assert error(node, "eth_sendRawTransaction", raw)["code"] == -32000
    assert error(node, "eth_sendRawTransaction", "no hex")["code"] == -32602


def test_a_revert_carries_its_data(node) -> None:
    call = {"to": to_hex(DEV_DOLLAR_ADDRESS), "data": to_hex(TOKEN.call("mint", TO, 1))}
    for method in ("eth_call", "eth_estimateGas"):
        refusal = error(node, method, call)
        assert refusal["code"] == 3
        assert refusal["message"] == "execution reverted: dollar: only the owner mints"
        assert refusal["data"].startswith("0x08c379a0")


def test_a_reverted_transaction_is_mined_and_pays(node) -> None:
    before = int(result(node, "eth_getBalance", to_hex(DEV_KEYS[1].address)), 16)
    raw = signed(node, to=DEV_DOLLAR_ADDRESS, data=TOKEN.call("mint", TO, 1), value=0, gas=90_000)
    receipt = result(node, "eth_getTransactionReceipt", result(node, "eth_sendRawTransaction", raw))
    assert receipt["status"] == "0x0"
    assert receipt["logs"] == []
    fee = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    after = int(result(node, "eth_getBalance", to_hex(DEV_KEYS[1].address)), 16)
    assert before - after == fee > 0


def test_the_estimate_is_enough_and_not_by_much(node) -> None:
    data = to_hex(TOKEN.call("transfer", TO, 5))
    query = {"from": to_hex(DEV_KEYS[1].address), "to": to_hex(DEV_DOLLAR_ADDRESS), "data": data}
    estimate = int(result(node, "eth_estimateGas", query), 16)
    hash_ = result(node, "eth_sendTransaction", query | {"gas": hex(estimate)})
    used = int(result(node, "eth_getTransactionReceipt", hash_)["gasUsed"], 16)
    assert used <= estimate <= used * 1.1


def test_the_clock_moves_forward_only(node, clock) -> None:
    def time() -> int:
        return int(result(node, "eth_getBlockByNumber", "latest")["timestamp"], 16)

    result(node, "evm_mine")
    assert time() == clock.now_s
    clock.now_s += 5
    result(node, "evm_increaseTime", 100)
    result(node, "evm_mine")
    assert time() == clock.now_s + 100
    later = time() + 1_000
    result(node, "evm_setNextBlockTimestamp", later)
    result(node, "evm_mine")
    assert time() == later
    clock.now_s += 3
    result(node, "evm_mine")
    assert time() == later + 3  # the clock goes on from where it was set
    assert error(node, "evm_setNextBlockTimestamp", later - 1)["code"] == -32602


def test_a_call_sees_the_time_of_the_next_block(node, clock) -> None:
    """Else a client could never estimate what is only due now."""
    code = "0x42" + "5f5260205ff3"  # TIMESTAMP, PUSH0, MSTORE, return 32 bytes
    result(node, "anvil_setCode", to_hex(TO), code)
    result(node, "evm_increaseTime", 777)
    assert int(result(node, "eth_call", {"to": to_hex(TO)}), 16) == clock.now_s + 777


def test_a_call_on_an_old_block_sees_the_old_state(node) -> None:
    result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x0")
    result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x0")
    balances = [result(node, "eth_getBalance", to_hex(TO), tag) for tag in ("0x0", "0x1", "latest")]
    assert balances == ["0x0", "0x1", "0x2"]
    assert error(node, "eth_getBalance", to_hex(TO), "0x9")["message"] == "header not found"


def test_a_reorg_takes_blocks_back_and_gives_others(node) -> None:
    result(node, "evm_mine")
    kept = node.head.hash
    hash_ = result(node, "eth_sendRawTransaction", signed(node))
    result(node, "evm_mine")
    lost = [node.block(number).hash for number in (2, 3)]
    result(node, "anvil_reorg", 2)
    assert node.head.number == 3
    assert node.block(1).hash == kept
    assert not {node.block(2).hash, node.block(3).hash} & set(lost)
    assert result(node, "eth_getTransactionReceipt", hash_) is None
    assert result(node, "eth_getBlockByHash", lost[0]) is None
    assert result(node, "eth_getBalance", to_hex(TO)) == "0x0"
    result(node, "eth_sendRawTransaction", signed(node))  # its nonce is free again
    assert error(node, "anvil_reorg", 99)["code"] == -32602


def test_an_empty_block_has_another_hash_after_a_reorg(node) -> None:
    result(node, "evm_mine")
    before = node.head.hash
    result(node, "anvil_reorg", 1)
    assert node.head.hash != before


def test_snapshots_bring_back_state_and_clock(node, clock) -> None:
    first = result(node, "evm_snapshot")
    result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x1")
    second = result(node, "evm_snapshot")
    result(node, "evm_increaseTime", 5_000)
    assert result(node, "evm_revert", first) is True
    assert result(node, "eth_getBalance", to_hex(TO)) == "0x0"
    assert result(node, "eth_getLogs", {"fromBlock": "earliest"}) == []
    assert node.now_s() == clock.now_s
    assert result(node, "evm_revert", second) is False


def test_logs_are_found_by_address_topic_and_block(node) -> None:
    for units in (1, 2, 3):
        result(node, "inferpool_faucet", to_hex(TO), "0x0", hex(units))
    topic = to_hex(TOKEN.events["Transfer"].topic)
    to = to_hex(TO.rjust(32, b"\0"))

    def found(**query: object) -> list[int]:
        return [int(log["data"], 16) for log in result(node, "eth_getLogs", query)]

    assert found(fromBlock="0x0") == [1, 2, 3]
    assert found(fromBlock="0x2", toBlock="0x2") == [2]
    assert found(blockHash=node.block(3).hash) == [3]
    assert found(fromBlock="0x0", topics=[topic, None, [to, "0x" + "00" * 32]]) == [1, 2, 3]
    assert found(fromBlock="0x0", topics=[None, to]) == []
    assert found(fromBlock="0x0", topics=[topic, None, None, to]) == []
    assert found(fromBlock="0x0", address=[to_hex(TO)]) == []
    assert found(fromBlock="0x3", toBlock="0x1") == []


def test_too_many_logs_are_refused(node, monkeypatch) -> None:
    monkeypatch.setattr("inferpool.chain.devchain.node.LOGS_MAX", 2)
    for _ in range(3):
        result(node, "inferpool_faucet", to_hex(TO), "0x0", "0x1")
    assert error(node, "eth_getLogs", {"fromBlock": "0x0"})["code"] == -32005
    assert len(result(node, "eth_getLogs", {"fromBlock": "0x2"})) == 2


def test_batches_are_answered_in_order_and_bounded(node) -> None:
    request = {"jsonrpc": "2.0", "method": "eth_chainId"}
    batch = [request | {"id": number} for number in range(limits.BATCH_MAX)]
    answers = orjson.loads(reply(node, orjson.dumps(batch)))
    assert [answer["id"] for answer in answers] == list(range(limits.BATCH_MAX))
    for refused_batch in ([], [*batch, request]):
        answer = orjson.loads(reply(node, orjson.dumps(refused_batch)))
        assert answer["error"]["code"] == -32600


def test_a_batch_that_takes_too_long_ends(node, monkeypatch) -> None:
    monkeypatch.setattr("inferpool.chain.devchain.server.BATCH_SECONDS_MAX", 0.0)
    request = {"jsonrpc": "2.0", "id": 5, "method": "evm_mine"}
    answers = orjson.loads(reply(node, orjson.dumps([request, request])))
    assert [(answer["id"], answer["error"]["code"]) for answer in answers] == [(5, -32005)] * 2
    assert node.head.number == 0


def test_a_call_without_end_runs_out_of_gas(node) -> None:
    result(node, "anvil_setCode", to_hex(TO), "0x5b6180005f20505f56")  # hashes for ever
    assert "OutOfGas" in error(node, "eth_call", {"to": to_hex(TO), "gas": hex(2**63)})["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b'"text"', -32600),
        (b'{"id": 1}', -32600),
        (b'{"id": 1, "method": "eth_nothing"}', -32601),
        (b'{"id": 1, "method": "eth_getBalance"}', -32602),
        (b'{"id": 1, "method": "eth_getBalance", "params": ["0x12"]}', -32602),
        (b'{"id": 1, "method": "eth_getBalance", "params": {"a": 1}}', -32602),
        (b'{"id": 1, "method": "eth_getBlockByNumber", "params": [[]]}', -32602),
        (b'{"id": 1, "method": "eth_call", "params": [null]}', -32602),
        (b'{"id": 1, "method": "eth_getLogs", "params": [{"topics": [1, 2, 3, 4, 5]}]}', -32602),
        (b'{"id": 1, "method": "anvil_mine", "params": [100000]}', -32602),
    ],
)
def test_a_bad_request_has_its_code(node, body, code) -> None:
    assert orjson.loads(reply(node, body))["error"]["code"] == code


def test_fee_history_names_the_next_base_fee(node) -> None:
    for _ in range(3):
        result(node, "evm_mine")
    history = result(node, "eth_feeHistory", "0x2", "latest", [50])
    result(node, "evm_mine")
    block = result(node, "eth_getBlockByNumber", "latest")
    assert history["oldestBlock"] == "0x2"
    assert history["baseFeePerGas"][-1] == block["baseFeePerGas"]
    assert len(history["baseFeePerGas"]) == 3
    assert len(history["reward"]) == len(history["gasUsedRatio"]) == 2


def test_a_failed_write_leaves_no_trace(node, monkeypatch) -> None:
    """A block that cannot be saved is not there: neither in memory nor in the state."""
    result(node, "evm_mine")
    head = node.head.hash
    with monkeypatch.context() as patch:
        patch.setattr(node._store, "save_block", lambda *_: 1 / 0)
        refusal = error(node, "inferpool_faucet", to_hex(TO), "0x1", "0x1")
    assert refusal["code"] == -32603
    assert node.head.hash == head
    assert result(node, "eth_getBalance", to_hex(TO)) == "0x0"
    result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x1")
    assert result(node, "eth_getBalance", to_hex(TO)) == "0x1"


def test_a_reorg_that_fails_half_way_did_not_happen(tmp_path, clock, monkeypatch) -> None:
    """Memory was rewound already: it must say again what the file says, also after a restart."""
    state = str(tmp_path / "chain.sqlite")
    node = Node(state, clock_s=clock)
    for _ in range(3):
        result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x1")
    hashes = [node.block(number).hash for number in range(4)]
    save = node._store.save_block
    with monkeypatch.context() as patch:
        patch.setattr(
            node._store,
            "save_block",
            lambda number, *row: 1 / 0 if number == 3 else save(number, *row),
        )
        assert error(node, "anvil_reorg", 2)["code"] == -32603
    assert [node.block(number).hash for number in range(4)] == hashes
    assert len(result(node, "eth_getLogs", {"fromBlock": "0x0"})) == 3
    result(node, "anvil_reorg", 2)
    result(node, "inferpool_faucet", to_hex(TO), "0x1", "0x1")
    node.close()
    again = Node(state, clock_s=clock)
    assert result(again, "eth_getBalance", to_hex(TO)) == "0x2"
    again.close()


def test_transactions_of_every_type_are_shown(node) -> None:
    sender = to_checksum(DEV_KEYS[1].address)
    by_price = {"from": sender, "to": to_hex(TO), "gasPrice": hex(3 * 10**9)}
    hash_ = result(node, "eth_sendTransaction", by_price)
    shown = result(node, "eth_getTransactionByHash", hash_)
    assert shown["from"] == sender
    assert int(shown["maxFeePerGas"], 16) == 3 * 10**9
    block = result(node, "eth_getBlockByNumber", "latest", True)
    assert block["transactions"] == [shown]
    assert error(node, "eth_sendTransaction", {"from": to_hex(TO)})["code"] == -32602
