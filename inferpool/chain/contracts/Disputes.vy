# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Inferpool Disputes
@custom:contract-name Disputes
@license Apache-2.0
@notice The court of one registry. It judges what signatures alone prove, and nothing else:
        (1) two different receipts by one node key for one (channel, request id) or one
        (channel, seq); (2) a receipt that charges more than its units times the prices of the
        service that it names, in the offer that it names; (3) a receipt of another manifest or
        class than that service's, or of a service that the offer does not have. Whether an
        answer was good, late or true is no signature's matter, and is not heard here.

        An honest node is never caught, whenever it crashes. Its rules: a receipt is durable, in
        one write with its channel's count and total, before a byte of it leaves; a request id
        gets one receipt, a number of a channel's count goes to one receipt; charge, manifest and
        class are taken from the offer that the receipt names. So a receipt that a crash undid is
        in nobody's hands, and one that is in somebody's hands is on the node's disk, where its
        number and request id are never used again. What the rules need is that disk: whoever
        goes back to an older copy of it, or runs one key on two machines, must take a new key.

        A report costs the accused nothing unless it is true: no deposit, no answer, no deadline.
        There is no age limit. The only times here are those that the accused wrote itself, which
        a liar would backdate; and an honest node has nothing that could become provable later.
        What bounds the past is the registry: stake that has left after its delay is out of reach,
        so report within seven days. Afterwards a liar may have its old lies judged while it owns
        nothing, for nothing; the record of them stays.
@custom:kill Cannot be stopped. There is no owner, no upgrade, no pause, no judge, no appeal. The
        court never holds money, never takes from anybody but the owner behind the signing key,
        never takes more than one part in `SLASHED_ONE_IN` (rounded up) of what that owner has left,
        never punishes one offence twice, and never hears a case without the node's signatures.
"""


import Registry
import signatures
import signed_objects


# A fifth of all stake, unbonding included, rounded up: no stake is too small to be taken. One lie
# earns at most one answer's maximum, since a voucher covers no more; a fifth of any stake that
# means something is far above. It is not all, because a single wrong signature may be a fault of
# software; who goes on is reported again, and has lost two thirds after five offences.
SLASHED_ONE_IN: public(constant(uint256)) = 5
# A tenth of what is taken goes to whoever reports: it has to pay for gas, not more, since a liar
# can always be the first to report itself. So it is a liar's discount: it loses nine tenths of
# the penalty all the same. Rounded down.
REWARDED_ONE_IN: public(constant(uint256)) = 10
# The rest is burnt: in anybody's hands it would be a reason to make cases, or a discount. Sent
# away and not to zero, which tokens refuse.
BURN: public(constant(address)) = 0x000000000000000000000000000000000000dEaD
TWO_RECEIPTS: constant(uint8) = 1
OVERCHARGE: constant(uint8) = 2
OTHER_MANIFEST: constant(uint8) = 3
REGISTRY: public(immutable(Registry.__interface__))


judged: public(HashMap[bytes32, bool])  # offence -> whether it was punished

event Judged:
    owner: indexed(address)
    node: indexed(address)
    reporter: indexed(address)
    rule: uint8  # 1, 2 or 3, as above
    first: bytes32  # digests of the receipts, the lower one first
    second: bytes32  # zero where one receipt is the offence
    burnt: uint256
    rewarded: uint256


@deploy
def __init__(registry: address):
    """
    @dev Fixes the registry; it must name this address as its court, or no stake can be taken.
    @param registry The registry of owners, keys and stake.
    """
    assert registry != empty(address), "disputes: no registry"
    REGISTRY = Registry.__interface__(registry)


@external
def report_two_receipts(first: signed_objects.SignedReceipt, second: signed_objects.SignedReceipt):
    """
    @dev Punishes a key that signed two different receipts for one request id or number of a
         channel. The order does not matter.
    @param first A receipt.
    @param second Another one.
    """
    a: bytes32 = signed_objects._receipt_digest(first.receipt)
    b: bytes32 = signed_objects._receipt_digest(second.receipt)
    assert a != b, "disputes: one receipt twice"
    assert first.receipt.channelId == second.receipt.channelId, "disputes: two channels"
    same_id: bool = first.receipt.requestId == second.receipt.requestId
    assert same_id or first.receipt.seq == second.receipt.seq, "disputes: nothing in common"
    node: address = self._signer(a, first.signature)
    assert self._signer(b, second.signature) == node, "disputes: two keys"
    low: uint256 = min(convert(a, uint256), convert(b, uint256))
    high: uint256 = max(convert(a, uint256), convert(b, uint256))
    self._punish(node, TWO_RECEIPTS, convert(low, bytes32), convert(high, bytes32))


@external
def report_overcharge(exhibit: signed_objects.Exhibit):
    """
    @dev Punishes a receipt that charges more than its units cost under its own offer. The
         products of 64-bit numbers fit 256 bits with room to spare.
    @param exhibit The receipt, the offer and the service that it names.
    """
    digest: bytes32 = self._check_offer(exhibit)
    self._check_opened(exhibit)
    units_in: uint256 = convert(exhibit.receipt.promptUnits, uint256)
    units_out: uint256 = convert(exhibit.receipt.outputUnits, uint256)
    due: uint256 = (
        units_in * convert(exhibit.service.priceInPico, uint256)
        + units_out * convert(exhibit.service.priceOutPico, uint256)
    )
    assert convert(exhibit.receipt.chargePico, uint256) > due, "disputes: no more than offered"
    self._punish(exhibit.offer.node, OVERCHARGE, digest, empty(bytes32))


@external
def report_other_manifest(exhibit: signed_objects.Exhibit):
    """
    @dev Punishes a receipt of another manifest or class than the service that it names, or of a
         service that its offer does not have: then the opened one is not looked at.
    @param exhibit The receipt, the offer and the service that it names.
    """
    digest: bytes32 = self._check_offer(exhibit)
    if convert(exhibit.receipt.service, uint256) < len(exhibit.offer.serviceHashes):
        self._check_opened(exhibit)
        same_manifest: bool = exhibit.receipt.manifest == exhibit.service.manifest
        same_class: bool = exhibit.receipt.classHash == exhibit.service.classHash
        assert not (same_manifest and same_class), "disputes: as offered"
    self._punish(exhibit.offer.node, OTHER_MANIFEST, digest, empty(bytes32))


@external
@view
def receipt_digest(receipt: signed_objects.Receipt) -> bytes32:
    """@dev What a node signs for a receipt on this chain; for other implementations' tests."""
    return signed_objects._receipt_digest(receipt)


@external
@view
def offer_digest(offer: signed_objects.Offer) -> bytes32:
    """@dev What a node signs for an offer on this chain; receipts name it as `offerHash`."""
    return signed_objects._offer_digest(offer)


@external
@pure
def service_hash(service: signed_objects.Service) -> bytes32:
    """@dev A service's struct hash, as an offer lists it."""
    return signed_objects._service_hash(service)


@external
@pure
def offence_of(node: address, first: bytes32, second: bytes32) -> bytes32:
    """@dev The key of an offence in `judged`; digests as in the event."""
    return self._offence(node, first, second)


@internal
@pure
def _offence(node: address, first: bytes32, second: bytes32) -> bytes32:
    """
    @dev The node is part of it: another key could sign the same receipts, have itself judged
         while it owns nothing, and spend the case. The rule is not: one receipt is one lie.
    """
    return keccak256(abi_encode(node, first, second))


@internal
@pure
def _signer(digest: bytes32, signature: Bytes[65]) -> address:
    """@dev The key that signed; a broken or malleable signature is nobody's."""
    signer: address = signatures._recover(digest, signature)
    assert signer != empty(address), "disputes: bad signature"
    return signer


@internal
@view
def _check_offer(exhibit: signed_objects.Exhibit) -> bytes32:
    """@dev The node that the offer names signed it, and the receipt that names it. The digest."""
    node: address = exhibit.offer.node
    digest: bytes32 = signed_objects._receipt_digest(exhibit.receipt)
    offer_digest: bytes32 = signed_objects._offer_digest(exhibit.offer)
    assert exhibit.receipt.offerHash == offer_digest, "disputes: another offer"
    assert self._signer(digest, exhibit.signature) == node, "disputes: not the node's receipt"
    assert self._signer(offer_digest, exhibit.offerSignature) == node, "disputes: forged offer"
    return digest


@internal
@pure
def _check_opened(exhibit: signed_objects.Exhibit):
    """@dev The opened service is the one that the receipt names, word by word."""
    index: uint256 = convert(exhibit.receipt.service, uint256)
    assert index < len(exhibit.offer.serviceHashes), "disputes: no such service"
    opened: bytes32 = signed_objects._service_hash(exhibit.service)
    assert exhibit.offer.serviceHashes[index] == opened, "disputes: another service"


@internal
def _punish(node: address, rule: uint8, first: bytes32, second: bytes32):
    """
    @dev Takes the penalty from the owner behind the key, in service or retired, once. An owner
         without stake is judged too: the event is on record. State changes come before calls.
    """
    owner: address = staticcall REGISTRY.owner_of(node)
    assert owner != empty(address), "disputes: key of no owner"
    offence: bytes32 = self._offence(node, first, second)
    assert not self.judged[offence], "disputes: already judged"
    self.judged[offence] = True
    unbonding: Registry.Unbonding = staticcall REGISTRY.unbonding_of(owner)
    stake: uint256 = staticcall REGISTRY.stake_of(owner) + unbonding.amount
    penalty: uint256 = stake // SLASHED_ONE_IN + min(stake % SLASHED_ONE_IN, 1)
    reward: uint256 = penalty // REWARDED_ONE_IN
    log Judged(
        owner=owner,
        node=node,
        reporter=msg.sender,
        rule=rule,
        first=first,
        second=second,
        burnt=penalty - reward,
        rewarded=reward,
    )
    self._take(owner, penalty - reward, BURN)
    self._take(owner, reward, msg.sender)


@internal
def _take(owner: address, amount: uint256, to: address):
    """@dev Slashes exactly that much: it was counted in the same transaction."""
    if amount > 0:
        taken: uint256 = extcall REGISTRY.slash(owner, amount, to)
        assert taken == amount, "disputes: stake moved"
