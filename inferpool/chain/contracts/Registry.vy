# pragma version 0.4.3
# pragma nonreentrancy on
"""
@title Inferpool Registry
@custom:contract-name Registry
@license Apache-2.0
@notice Who runs a node, with which key, where, and what stake answers for it. An owner (cold)
        binds one node key (hot) that has agreed by a signature. A key that was once bound
        answers to the same owner for ever, so that changing the key does not shake off what
        the old one signed; it is in service while `node_of(owner_of(node)) == node`.
@custom:kill Cannot be stopped. There is no owner, no upgrade, no pause, no fee, no list of who
        may join. Nobody but the court, named once at construction, can take stake, and nobody
        at all can keep an owner from leaving with the rest after `UNSTAKE_DELAY`.
"""


from ethereum.ercs import IERC20
import eip712
import signatures
initializes: eip712
exports: eip712.eip712Domain


UNSTAKE_DELAY: public(constant(uint256)) = 7 * 86_400  # seconds; unbonding stake is slashable
_BINDING_TYPE: constant(bytes32) = keccak256("Binding(address owner,address node,uint256 nonce)")
TOKEN: public(immutable(IERC20))
COURT: public(immutable(address))


struct Unbonding:
    amount: uint256
    ready_at: uint256


owner_of: public(HashMap[address, address])  # node key -> its owner, for ever
node_of: public(HashMap[address, address])  # owner -> the node key in service, or zero
stake_of: public(HashMap[address, uint256])  # owner -> stake at work
unbonding_of: public(HashMap[address, Unbonding])  # owner -> stake on its way out
nonces: public(HashMap[address, uint256])  # node key -> bindings that it has given

event Registered:
    owner: indexed(address)
    node: indexed(address)
    endpoint: String[256]

event EndpointChanged:
    owner: indexed(address)
    endpoint: String[256]

event KeyReplaced:
    owner: indexed(address)
    old_node: indexed(address)
    node: indexed(address)

event Deregistered:
    owner: indexed(address)
    node: indexed(address)

event StakeChanged:
    owner: indexed(address)
    stake: uint256
    unbonding: uint256
    ready_at: uint256

event Slashed:
    owner: indexed(address)
    to: indexed(address)
    amount: uint256


@deploy
def __init__(token: address, court: address):
    """
    @dev Fixes the token of all stake and the one contract that may slash.
    @param token An ERC-20 that moves exactly what it is told (no fee, no rebasing).
    @param court The address that may call `slash`.
    """
    assert empty(address) not in [token, court], "registry: no token or no court"
    TOKEN = IERC20(token)
    COURT = court
    eip712.__init__("Inferpool Registry", "1")


@external
def register(node: address, endpoint: String[256], stake: uint256, signature: Bytes[65]):
    """
    @dev Enters the caller's node. The stake may be zero; it is pulled by allowance.
    @param node The node key.
    @param endpoint The URL where the node's offer is.
    @param stake Base units of the token.
    @param signature The node key's signature over Binding(caller, node, nonces[node]).
    """
    assert self.node_of[msg.sender] == empty(address), "registry: already registered"
    assert len(endpoint) > 0, "registry: no endpoint"
    self._bind(node, signature)
    log Registered(owner=msg.sender, node=node, endpoint=endpoint)
    if stake > 0:
        self._add_stake(stake)


@external
def add_stake(amount: uint256):
    """
    @dev Adds to the stake of a registered caller, by allowance.
    @param amount Base units of the token.
    """
    assert self.node_of[msg.sender] != empty(address), "registry: not registered"
    assert amount > 0, "registry: nothing to stake"
    self._add_stake(amount)


@external
def unstake(amount: uint256):
    """
    @dev Starts the way out of some stake. The delay starts anew for what was already on it:
         one clock for each owner keeps the contract small.
    @param amount Base units of the token.
    """
    assert amount > 0, "registry: nothing to unstake"
    assert amount <= self.stake_of[msg.sender], "registry: more than the stake"
    self._unbond(amount)


@external
def withdraw_stake():
    """@dev Pays out to the caller what has been unbonding for `UNSTAKE_DELAY`."""
    unbonding: Unbonding = self.unbonding_of[msg.sender]
    assert unbonding.amount > 0, "registry: nothing to withdraw"
    assert block.timestamp >= unbonding.ready_at, "registry: still unbonding"
    self.unbonding_of[msg.sender] = empty(Unbonding)
    self._log_stake(msg.sender)
    self._pay(msg.sender, unbonding.amount)


@external
def set_endpoint(endpoint: String[256]):
    """
    @dev Changes where the caller's node is found.
    @param endpoint The new URL.
    """
    assert self.node_of[msg.sender] != empty(address), "registry: not registered"
    assert len(endpoint) > 0, "registry: no endpoint"
    log EndpointChanged(owner=msg.sender, endpoint=endpoint)


@external
def replace_key(node: address, signature: Bytes[65]):
    """
    @dev Puts another node key into service. The old one still answers to the caller.
    @param node The new node key.
    @param signature The new key's signature over Binding(caller, node, nonces[node]).
    """
    old_node: address = self.node_of[msg.sender]
    assert old_node != empty(address), "registry: not registered"
    self._bind(node, signature)
    log KeyReplaced(owner=msg.sender, old_node=old_node, node=node)


@external
def deregister():
    """@dev Takes the caller's node out of service and starts the way out of all its stake."""
    node: address = self.node_of[msg.sender]
    assert node != empty(address), "registry: not registered"
    self.node_of[msg.sender] = empty(address)
    log Deregistered(owner=msg.sender, node=node)
    if self.stake_of[msg.sender] > 0:
        self._unbond(self.stake_of[msg.sender])


@external
def slash(owner: address, amount: uint256, to: address) -> uint256:
    """
    @dev Takes stake from an owner: what is at work first, then what is unbonding. Takes less
         than asked where there is less, so that a verdict never fails on a poor owner.
    @param owner The owner who pays.
    @param amount Base units at most.
    @param to Who receives them.
    @return uint256 What was taken.
    """
    assert msg.sender == COURT, "registry: only the court"
    assert to != empty(address) and to != self, "registry: no such receiver"
    unbonding: Unbonding = self.unbonding_of[owner]
    from_stake: uint256 = min(amount, self.stake_of[owner])
    from_unbonding: uint256 = min(amount - from_stake, unbonding.amount)
    taken: uint256 = from_stake + from_unbonding
    self.stake_of[owner] -= from_stake
    self.unbonding_of[owner].amount = unbonding.amount - from_unbonding
    log Slashed(owner=owner, to=to, amount=taken)
    self._log_stake(owner)
    if taken > 0:
        self._pay(to, taken)
    return taken


@internal
@view
def _binding_digest(owner: address, node: address) -> bytes32:
    """@dev What a node key signs next to agree; the nonce makes it good for one binding."""
    return eip712._digest(keccak256(abi_encode(_BINDING_TYPE, owner, node, self.nonces[node])))


@internal
def _bind(node: address, signature: Bytes[65]):
    """
    @dev Puts `node` into service for the caller. Only the key itself can agree, and only to
         one owner ever: nobody can bind somebody else's key or inherit what it signed.
    """
    known: address = self.owner_of[node]
    assert known == empty(address) or known == msg.sender, "registry: key of another owner"
    signer: address = signatures._recover(self._binding_digest(msg.sender, node), signature)
    assert node != empty(address) and signer == node, "registry: key did not agree"
    self.nonces[node] += 1
    self.owner_of[node] = msg.sender
    self.node_of[msg.sender] = node


@internal
def _add_stake(amount: uint256):
    """@dev Books the caller's new stake, then pulls it: a failed pull reverts the booking."""
    self.stake_of[msg.sender] += amount
    self._log_stake(msg.sender)
    pulled: bool = extcall TOKEN.transferFrom(msg.sender, self, amount, default_return_value=True)
    assert pulled, "registry: token refused"


@internal
def _unbond(amount: uint256):
    """@dev Moves the caller's stake from work to unbonding and starts the delay."""
    self.stake_of[msg.sender] -= amount
    self.unbonding_of[msg.sender].amount += amount
    self.unbonding_of[msg.sender].ready_at = block.timestamp + UNSTAKE_DELAY
    self._log_stake(msg.sender)


@internal
def _log_stake(owner: address):
    """@dev Writes an owner's whole stake to the log: directories need no other source."""
    leaving: Unbonding = self.unbonding_of[owner]
    log StakeChanged(
        owner=owner, stake=self.stake_of[owner], unbonding=leaving.amount, ready_at=leaving.ready_at
    )


@internal
def _pay(to: address, amount: uint256):
    """@dev Sends tokens out; the last act of every function that calls it."""
    paid: bool = extcall TOKEN.transfer(to, amount, default_return_value=True)
    assert paid, "registry: token refused"
