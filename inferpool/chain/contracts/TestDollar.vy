# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Dev Dollar, the test money of development chains
@custom:contract-name TestDollar
@license Apache-2.0
@notice ERC-20 with six decimals, EIP-2612 `permit`, and EIP-3009 with signatures as bytes (as
        USDC 2.2 has it). It calls no other contract but a signer's EIP-1271, and only to read.
@custom:kill Cannot be stopped or upgraded. The deployer can mint without limit, and that is
        all it can do: worthless by design, never to be taken for money.
"""


from ethereum.ercs import IERC20
import eip712
import signatures
initializes: eip712
implements: IERC20


exports: eip712.eip712Domain


name: public(constant(String[10])) = "Dev Dollar"
symbol: public(constant(String[4])) = "DUSD"
version: public(constant(String[1])) = "1"
decimals: public(constant(uint8)) = 6
_PERMIT_TYPE_HASH: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
_TRANSFER_TYPE_HASH: constant(bytes32) = keccak256(
    "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_RECEIVE_TYPE_HASH: constant(bytes32) = keccak256(
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)


owner: public(immutable(address))


balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)
nonces: public(HashMap[address, uint256])
authorizationState: public(HashMap[address, HashMap[bytes32, bool]])


event AuthorizationUsed:
    authorizer: indexed(address)
    nonce: indexed(bytes32)


@deploy
def __init__():
    """
    @dev The deployer is the only minter, for ever.
    """
    owner = msg.sender
    eip712.__init__(name, version)


@external
def transfer(to: address, amount: uint256) -> bool:
    """
    @dev Moves tokens of the caller.
    @param to The receiver.
    @param amount Base units.
    @return bool Always true; a transfer that cannot be made reverts.
    """
    self._transfer(msg.sender, to, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @dev Sets what `spender` may move of the caller's tokens.
    @param spender Who may spend.
    @param amount Base units; the largest number is without end.
    @return bool Always true.
    """
    self._approve(msg.sender, spender, amount)
    return True


@external
def transferFrom(holder: address, to: address, amount: uint256) -> bool:
    """
    @dev Moves tokens of `holder` out of the caller's allowance.
    @param holder Whose tokens.
    @param to The receiver.
    @param amount Base units.
    @return bool Always true.
    """
    allowed: uint256 = self.allowance[holder][msg.sender]
    if allowed != max_value(uint256):
        assert amount <= allowed, "dollar: allowance too small"
        self._approve(holder, msg.sender, allowed - amount)
    self._transfer(holder, to, amount)
    return True


@external
def mint(to: address, amount: uint256):
    """
    @dev Makes new tokens; the deployer only.
    @param to Who gets them.
    @param amount Base units.
    """
    assert msg.sender == owner, "dollar: only the owner mints"
    assert to != empty(address), "dollar: no receiver"
    self.totalSupply += amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=empty(address), receiver=to, value=amount)


@external
def permit(
    holder: address,
    spender: address,
    amount: uint256,
    deadline: uint256,
    v: uint8,
    r: bytes32,
    s: bytes32,
):
    """
    @dev Sets an allowance by the holder's signature (EIP-2612).
    @param holder Whose tokens.
    @param spender Who may spend.
    @param amount Base units.
    @param deadline UNIX seconds of the last moment.
    @param v Part of the signature.
    @param r Part of the signature.
    @param s Part of the signature.
    """
    assert block.timestamp <= deadline, "dollar: permit is expired"
    nonce: uint256 = self.nonces[holder]
    self.nonces[holder] = nonce + 1
    digest: bytes32 = eip712._digest(
        keccak256(abi_encode(_PERMIT_TYPE_HASH, holder, spender, amount, nonce, deadline))
    )
    signature: Bytes[65] = concat(r, s, convert(v, bytes1))
    assert signatures._signed_by(holder, digest, signature), "dollar: invalid signature"
    self._approve(holder, spender, amount)


@external
def transferWithAuthorization(
    holder: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    signature: Bytes[65],
):
    """
    @dev Moves tokens by the holder's signature; anyone may send it (EIP-3009).
    @param holder Whose tokens.
    @param to The receiver.
    @param amount Base units.
    @param validAfter UNIX seconds; good after this moment.
    @param validBefore UNIX seconds; good before this moment.
    @param nonce A word that the holder has not used.
    @param signature The holder's signature.
    """
    self._authorized(
        _TRANSFER_TYPE_HASH, holder, to, amount, validAfter, validBefore, nonce, signature
    )


@external
def receiveWithAuthorization(
    holder: address,
    to: address,
    amount: uint256,
    validAfter: uint256,
    validBefore: uint256,
    nonce: bytes32,
    signature: Bytes[65],
):
    """
    @dev As `transferWithAuthorization`, but the receiver itself must send it (EIP-3009), so
         that nobody can make the payment without what the receiver does along with it.
    @param holder Whose tokens.
    @param to The receiver, who is the caller.
    @param amount Base units.
    @param validAfter UNIX seconds; good after this moment.
    @param validBefore UNIX seconds; good before this moment.
    @param nonce A word that the holder has not used.
    @param signature The holder's signature.
    """
    assert to == msg.sender, "dollar: caller must be the payee"
    self._authorized(
        _RECEIVE_TYPE_HASH, holder, to, amount, validAfter, validBefore, nonce, signature
    )


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @dev Returns the EIP-712 domain separator, as EIP-2612 asks.
    @return bytes32 The separator.
    """
    return eip712._separator()


@internal
def _authorized(
    type_hash: bytes32,
    holder: address,
    to: address,
    amount: uint256,
    valid_after: uint256,
    valid_before: uint256,
    nonce: bytes32,
    signature: Bytes[65],
):
    """
    @dev Checks one EIP-3009 authorisation, marks it as used, and moves the tokens.
    """
    assert block.timestamp > valid_after, "dollar: authorization is not yet valid"
    assert block.timestamp < valid_before, "dollar: authorization is expired"
    assert not self.authorizationState[holder][nonce], "dollar: authorization is used"
    digest: bytes32 = eip712._digest(
        keccak256(
            abi_encode(type_hash, holder, to, amount, valid_after, valid_before, nonce)
        )
    )
    assert signatures._signed_by(holder, digest, signature), "dollar: invalid signature"
    self.authorizationState[holder][nonce] = True
    log AuthorizationUsed(authorizer=holder, nonce=nonce)
    self._transfer(holder, to, amount)


@internal
def _transfer(holder: address, to: address, amount: uint256):
    """
    @dev Moves tokens; the zero address neither has nor gets any.
    """
    assert to != empty(address), "dollar: no receiver"
    assert amount <= self.balanceOf[holder], "dollar: balance too small"
    self.balanceOf[holder] -= amount
    self.balanceOf[to] += amount
    log IERC20.Transfer(sender=holder, receiver=to, value=amount)


@internal
def _approve(holder: address, spender: address, amount: uint256):
    """
    @dev Sets an allowance.
    """
    assert spender != empty(address), "dollar: no spender"
    self.allowance[holder][spender] = amount
    log IERC20.Approval(owner=holder, spender=spender, value=amount)
