# pragma version 0.4.3
# pragma nonreentrancy off
"""
@title Multicall3 for development chains
@custom:contract-name Multicall3
@license Apache-2.0
@notice The two functions of the public Multicall3 that wallets and x402 facilitators call,
        for 32 calls of 2,048 bytes with answers of 1,024 bytes.
@custom:kill Cannot be stopped; has no state, no owner, no upgrade, and keeps no money.
"""


struct Call:
    target: address
    callData: Bytes[2_048]


struct Call3:
    target: address
    allowFailure: bool
    callData: Bytes[2_048]


struct Result:
    success: bool
    returnData: Bytes[1_024]


@external
@payable
def tryAggregate(requireSuccess: bool, calls: DynArray[Call, 32]) -> DynArray[Result, 32]:
    """
    @dev Makes calls in order and returns what each answered.
    @param requireSuccess Whether one failure reverts all.
    @param calls The calls.
    @return DynArray The answers in order.
    """
    results: DynArray[Result, 32] = []
    for call: Call in calls:
        results.append(self._call(call.target, call.callData, not requireSuccess))
    return results


@external
@payable
def aggregate3(calls: DynArray[Call3, 32]) -> DynArray[Result, 32]:
    """
    @dev Makes calls in order; each says itself whether it may fail.
    @param calls The calls.
    @return DynArray The answers in order.
    """
    results: DynArray[Result, 32] = []
    for call: Call3 in calls:
        results.append(self._call(call.target, call.callData, call.allowFailure))
    return results


@internal
def _call(target: address, data: Bytes[2_048], may_fail: bool) -> Result:
    """
    @dev Makes one call.
    """
    success: bool = False
    answer: Bytes[1_024] = b""
    success, answer = raw_call(target, data, max_outsize=1_024, revert_on_failure=False)
    assert success or may_fail, "Multicall3: call failed"
    return Result(success=success, returnData=answer)
