"""Our code against the golden vectors, byte for byte."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from typing import Any

import pytest

from inferpool.identity.signing import Key, recover
from inferpool.payments.chains import ReceiptChain
from inferpool.protocol import eip712, encoding, price, voucher
from inferpool.protocol.evidence import Evidence, evidence_request_digest
from inferpool.protocol.job import Job, Task
from inferpool.protocol.lease import Lease
from inferpool.protocol.offer import Service, SignedOffer, binding_digest
from inferpool.protocol.reach import hello_digest
from inferpool.protocol.receipt import SignedReceipt, receipts_request_digest
from inferpool.protocol.receipt_chain import ChainedReceipt, ChainProof, chain_digest
from inferpool.protocol.voucher import ChannelConfig, Voucher
from inferpool.protocol.wire import Reader
from tests.protocol.vectors import FOLDER, cases, data, encoded, vectors


def key(text: str) -> Key:
    return Key(eip712.keccak256(text.encode()))


def named(name: str) -> Any:
    """A parametrisation over the cases of a file."""
    found = cases(name)
    return pytest.mark.parametrize(
        "case", found, ids=[c.get("name", str(i)) for i, c in enumerate(found)]
    )


def test_generator_makes_the_committed_files() -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.files()
    assert made == {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}


def test_generator_and_readme_do_without_our_code() -> None:
    text = (FOLDER / "generate.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) inferpool", text, re.MULTILINE)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+\.json)`", readme)) == {p.name for p in FOLDER.glob("*.json")}


def test_keys_have_their_addresses() -> None:
    for entry in vectors("offer")["keys"].values():
        assert key(entry["secretText"]).address == data(entry["address"])


@named("offer")
def test_offer(case: Any) -> None:
    signed = SignedOffer.decode(encoded(case))
    assert signed.encode() == encoded(case)
    assert json.loads(signed.encode()) == case["wire"]
    assert signed.offer.terms.chain_id == int(case["chainId"])
    assert [s.struct_hash() for s in signed.offer.services] == list(
        map(data, case["serviceHashes"])
    )
    digest = signed.offer.digest()
    assert digest == data(case["digest"])
    keys = vectors("offer")["keys"]
    assert recover(digest, signed.signature) == signed.offer.node
    assert key(keys["node"]["secretText"]).sign(digest) == signed.signature
    if signed.owner_signature:
        binding = binding_digest(
            signed.offer.owner,
            signed.offer.node,
            signed.owner_valid_until_ms,
            int(case["chainId"]),
        )
        assert recover(binding, signed.owner_signature) == signed.offer.owner


def test_offers_cover_both_kinds_of_binding() -> None:
    bound = {bool(data(case["wire"]["ownerSignature"])) for case in cases("offer")}
    assert bound == {True, False}


@named("binding")
def test_binding(case: Any) -> None:
    owner, node = data(case["wire"]["owner"]), data(case["wire"]["node"])
    until_ms = int(case["wire"]["validUntilMs"])
    digest = binding_digest(owner, node, until_ms, int(case["chainId"]))
    assert digest == data(case["digest"])
    assert recover(digest, data(case["signature"])) == owner


@named("receipt_chain")
def test_receipt_chain(case: Any) -> None:
    chain_id, first = int(case["chainId"]), int(case["firstSeq"])
    node = key(vectors("receipt_chain")["keys"]["node"]["secretText"])
    chain = ReceiptChain()
    for position, place in enumerate(case["receipts"]):
        wire = {"receipt": place["receipt"], "signature": "0x" + 130 * "0"}
        receipt = SignedReceipt.from_wire(wire).receipt
        assert receipt.digest(chain_id) == data(place["digest"])
        short = chain.append(receipt, node, chain_id, 0)
        assert (short.first_seq, short.position, short.proof) == (first, position, None)
        assert short.link == data(place["link"])
        assert short.encode() == encoded(place)
        assert ChainedReceipt.decode(encoded(place)) == short
        packed = SignedReceipt(receipt, b"").pack()
        assert SignedReceipt.unpack(packed) == SignedReceipt(receipt, b"")
    count, channel_id = len(case["receipts"]), receipt.channel_id
    digest = chain_digest(channel_id, first, count, short.link, chain_id)
    assert digest == data(case["digest"])
    ended = ChainedReceipt.from_header(case["encodedWithProof"].encode())
    assert ended.proof == ChainProof(first, count, data(case["signature"]))
    assert node.sign(digest) == ended.proof.signature
    assert ended.header() == case["encodedWithProof"].encode()


@named("parameters")
def test_parameters(case: Any) -> None:
    signed = SignedOffer.decode(encoded(case))
    assert signed.encode() == encoded(case)
    assert signed.parameter_texts == case["wire"]["parameters"]
    digest = signed.parameters_digest()
    assert digest == data(case["digest"])
    assert recover(digest, signed.parameters_signature) == signed.offer.node


@named("relay_hello")
def test_relay_hello(case: Any) -> None:
    node, nonce = data(case["wire"]["node"]), data(case["wire"]["nonce"])
    digest = hello_digest(node, nonce, data(case["wire"]["relaySpki"]))
    assert digest == data(case["digest"])
    assert recover(digest, data(case["signature"])) == node


@named("receipt")
def test_receipt(case: Any) -> None:
    signed = SignedReceipt.decode(encoded(case))
    assert signed.encode() == encoded(case)
    assert json.loads(signed.encode()) == case["wire"]
    assert signed.header() == case["header"].encode()
    assert SignedReceipt.from_header(case["header"].encode()) == signed
    digest = signed.receipt.digest(int(case["chainId"]))
    assert digest == data(case["digest"])
    node = vectors("receipt")["keys"]["node"]
    assert recover(digest, signed.signature) == data(node["address"])
    assert key(node["secretText"]).sign(digest) == signed.signature
    assert SignedReceipt.unpack(signed.pack()) == signed
    assert SignedReceipt.unpack(signed.encode()) == signed, "ledgers of earlier versions"


def test_receipts_cover_each_outcome() -> None:
    assert {case["wire"]["receipt"]["outcome"] for case in cases("receipt")} == {0, 1, 2}


@named("voucher")
def test_voucher(case: Any) -> None:
    config, chain_id = ChannelConfig.from_wire(case["wire"]), int(case["chainId"])
    assert config.to_wire() == case["wire"]
    channel_id = config.channel_id(chain_id)
    assert channel_id == data(case["channelId"])
    assert Voucher(channel_id, int(case["maxClaimable"])).digest(chain_id) == data(case["digest"])


@named("evidence")
def test_evidence(case: Any) -> None:
    logprobs = tuple(map(float.fromhex, case["logprobs"]))
    evidence = Evidence(case["promptUnits"], tuple(case["ids"]), logprobs)
    assert evidence.encode() == encoded(case)
    assert evidence.hash() == data(case["sha256"])
    again = Evidence.decode(encoded(case))
    assert (again.prompt_units, again.ids) == (evidence.prompt_units, evidence.ids)
    assert again.encode() == encoded(case)


@named("evidence_request")
def test_evidence_request(case: Any) -> None:
    node, request_id = data(case["node"]), data(case["requestId"])
    digest = evidence_request_digest(node, request_id, int(case["chainId"]))
    assert digest == data(case["digest"])


@named("receipts_request")
def test_receipts_request(case: Any) -> None:
    node, channel_id = data(case["node"]), data(case["channelId"])
    digest = receipts_request_digest(node, channel_id, int(case["chainId"]))
    assert digest == data(case["digest"])


@named("lease")
def test_lease(case: Any) -> None:
    lease = Lease.decode(encoded(case))
    assert lease.encode() == encoded(case)
    assert lease.epoch == int(case["wire"]["epoch"])
    assert lease.unit_us == case["wire"]["unitUs"]


@named("domain")
def test_domain(case: Any) -> None:
    assert eip712.inferpool_domain(int(case["chainId"])) == data(case["inferpool"])
    assert voucher.channels_domain(int(case["chainId"])) == data(case["channels"])


@named("price")
def test_price(case: Any) -> None:
    sizes = case["job"]
    job = Job(
        task=Task(sizes["task"]),
        model="any",
        prompt_bytes=sizes["promptBytes"],
        messages=sizes["messages"],
        resume_units=sizes["resumeUnits"],
        max_output=sizes["maxOutput"],
        choices=sizes["choices"],
        rows=sizes["rows"],
        audio_ms=sizes["audioMs"],
        steps=sizes["steps"],
    )
    service = Service.from_wire(Reader(case["service"]))
    usage = price.maximum_usage(job, service)
    assert (usage.prompt_units, usage.output_units) == (case["promptUnits"], case["outputUnits"])
    assert price.maximum_pico_usd(job, service) == int(case["maximumPico"])
    for decimals, units in case["baseUnits"].items():
        assert price.maximum(job, service, int(decimals)) == int(units)


def test_prices_cover_each_task() -> None:
    assert {case["job"]["task"] for case in cases("price")} == set(Task)


@pytest.mark.parametrize("case", vectors("encoding")["integers"], ids=str)
def test_integer_is_written_one_way(case: Any) -> None:
    value = int(case["decimal"])
    assert encoding.number(value) == case["written"]
    assert encoding.integer(case["written"], 2**128) == value


@pytest.mark.parametrize("value", vectors("encoding")["integersRefused"], ids=repr)
def test_other_writings_of_integers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="integer"):
        encoding.integer(value, 2**128)


@pytest.mark.parametrize("case", vectors("encoding")["hex"], ids=str)
def test_hex(case: Any) -> None:
    value = base64.b64decode(case["base64"])
    assert encoding.to_hex(value) == case["written"]
    assert encoding.from_hex(case["written"], len(value)) == value


@pytest.mark.parametrize("text", vectors("encoding")["hexRefused"], ids=repr)
def test_other_hex_of_two_bytes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hex"):
        encoding.from_hex(text, 2)


@pytest.mark.parametrize("case", vectors("encoding")["checksum"], ids=str)
def test_checksummed_address(case: Any) -> None:
    assert encoding.to_checksum(data(case["address"])) == case["written"]


@pytest.mark.parametrize("case", vectors("encoding")["canonical"], ids=str)
def test_canonical_json(case: Any) -> None:
    assert encoding.canonical(case["value"]) == encoded(case)
    assert encoding.parse(encoded(case), 1_000) == case["value"]
