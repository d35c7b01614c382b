"""The court hashes what nodes sign as the protocol does: on the golden vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from inferpool.chain import cases
from inferpool.chain.abi import contract
from inferpool.chain.addresses import DEV_COURT_ADDRESS
from inferpool.chain.devchain.evm import Message
from inferpool.chain.devchain.node import Node
from inferpool.identity.signing import Key
from inferpool.protocol.offer import SignedOffer
from inferpool.protocol.receipt import SignedReceipt
from tests.chain import signed
from tests.protocol.vectors import cases as vectors
from tests.protocol.vectors import data, encoded

COURT = contract("Disputes")


class Courts:
    """A court on each chain id; its code knows no chain by heart."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}

    def ask(self, chain_id: int, function: str, *args: object) -> bytes:
        if chain_id not in self.nodes:
            self.nodes[chain_id] = Node(chain_id=chain_id)
        call = Message(to=DEV_COURT_ADDRESS, data=COURT.call(function, *args))
        answer = self.nodes[chain_id].call(0, call)
        found: bytes = COURT.functions[function].result(answer)[0]
        return found


@pytest.fixture(scope="module")
def courts() -> Iterator[Courts]:
    found = Courts()
    yield found
    for node in found.nodes.values():
        node.close()


@pytest.mark.parametrize("case", vectors("receipt"), ids=lambda case: case["name"])
def test_receipts_hash_alike(courts, case) -> None:
    receipt = SignedReceipt.decode(encoded(case)).receipt
    struct = cases.receipt_struct(receipt)
    assert courts.ask(int(case["chainId"]), "receipt_digest", struct) == data(case["digest"])


@pytest.mark.parametrize("case", vectors("offer"), ids=lambda case: case["name"])
def test_offers_and_services_hash_alike(courts, case) -> None:
    offer, chain_id = SignedOffer.decode(encoded(case)).offer, int(case["chainId"])
    struct = cases.offer_struct(offer)
    assert courts.ask(chain_id, "offer_digest", struct) == data(case["digest"])
    for service, known in zip(offer.services, case["serviceHashes"], strict=True):
        struct = cases.service_struct(service)
        assert courts.ask(chain_id, "service_hash", struct) == data(known)


def test_each_word_of_a_struct_is_hashed(courts, new_key) -> None:
    """No word can be changed without changing the digest: none is left out of the hash."""
    node: Key = new_key("node")
    offer = signed.offer(node, node.address).offer
    receipt = signed.receipt(node, signed.offer(node, node.address)).receipt
    structs = {
        "receipt_digest": cases.receipt_struct(receipt),
        "service_hash": cases.service_struct(offer.services[0]),
        "offer_digest": cases.offer_struct(offer),
    }
    for function, struct in structs.items():
        seen = {courts.ask(31337, function, struct)}
        for at, word in enumerate(struct):
            changed = (*struct[:at], _other(word), *struct[at + 1 :])
            seen.add(courts.ask(31337, function, changed))
        assert len(seen) == 1 + len(struct)
    fewer = replace(offer, services=offer.services[:1])
    assert courts.ask(31337, "offer_digest", cases.offer_struct(fewer)) == fewer.digest()


def _other(word: object) -> object:
    if isinstance(word, bytes):
        return bytes([word[0] ^ 1]) + word[1:]
    if isinstance(word, list):
        return word[::-1]
    assert isinstance(word, int)
    return not word if isinstance(word, bool) else word + 1
