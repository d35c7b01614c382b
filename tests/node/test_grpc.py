"""gRPC in front of a node: a direct payer pays by metadata, and gets its receipt as metadata."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inferpool.protocol import headers, limits, oip_grpc
from inferpool.protocol.encoding import sha256
from inferpool.protocol.errors import BadRequest, Refused
from inferpool.protocol.job import Job, Task
from inferpool.protocol.proto import SERVICE, messages
from inferpool.protocol.receipt import SignedReceipt
from inferpool.transport.grpc_front import GrpcFront
from tests.node.parts import Payer, world

grpc = pytest.importorskip("grpc", reason="gRPC is not installed: pip install 'inferpool[grpc]'")

MODEL = "fake-tensor"
Call = Callable[..., Awaitable[Any]]


def on_a_real_loop(test: Callable[[], Awaitable[None]]) -> None:
    """gRPC's threads know no virtual time."""

    async def run() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(run())


@asynccontextmanager
async def fronted(app: Any) -> AsyncIterator[Call]:
    """A front on a free port, and a way to call it: (method, message, metadata) -> call."""
    front = GrpcFront(app)
    port = await front.start("127.0.0.1", 0)
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)

    async def call(name: str, message: Any = None, pairs: Any = (), timeout: float = 15) -> Any:
        known = messages()
        method = channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda item: item.SerializeToString(),
            response_deserializer=known[f"{name}Response"].FromString,
        )
        request = known[f"{name}Request"]() if message is None else message
        running = method(request, metadata=tuple(pairs), timeout=timeout)
        answer = await running
        return answer, dict(await running.trailing_metadata())

    try:
        yield call
    finally:
        await channel.close()
        await front.close()


def request(rows: int = 2, **changes: Any) -> Any:
    made = messages()["ModelInferRequest"](model_name=MODEL, **changes)
    made.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    made.raw_input_contents.append(struct.pack(f"<{4 * rows}f", *range(4 * rows)))
    return made


def metadata(payer: Payer, request_id: bytes, rows: int = 2) -> list[tuple[str, str]]:
    job = Job(Task.TENSOR, MODEL, rows=rows)
    return [(name.decode(), value.decode()) for name, value in payer.paid(job, request_id)]


async def refused(call: Call, *arguments: Any) -> tuple[Any, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(*arguments)
    error = caught.value
    return error.code(), error.details(), dict(error.trailing_metadata())


def test_a_paid_call_and_its_receipt() -> None:
    async def test() -> None:
        async with world() as made, fronted(made.node.app) as call:
            payer = await made.payer()
            request_id, sent = payer.next_id(), request(id="7")
            answer, trailing = await call("ModelInfer", sent, metadata(payer, request_id))
            assert (answer.model_name, answer.model_version, answer.id) == (MODEL, "1", "7")
            (output,) = answer.outputs
            assert (output.datatype, list(output.shape)) == ("FP32", [2, 1])
            assert struct.unpack("<2f", answer.raw_output_contents[0]) == (6.0, 22.0)
            signed = SignedReceipt.from_header(trailing[headers.RECEIPT.decode()].encode())
            payer.channel.book(signed.receipt)
            assert signed.receipt.request_id == request_id
            assert signed.receipt.prompt_units == 2
            assert signed.receipt.request_hash == sha256(oip_grpc.rest_request(sent)[0])
            assert headers.PAYMENT_RESPONSE.decode() in trailing
            # The same channel goes on over HTTP: there is one book for both.
            assert (await payer.infer()).status == 200

    on_a_real_loop(test)


def test_an_unpaid_call_is_told_how_to_pay() -> None:
    async def test() -> None:
        async with world() as made, fronted(made.node.app) as call:
            code, details, trailing = await refused(call, "ModelInfer", request())
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert details.startswith("payment_required: ")
            assert headers.PAYMENT_REQUIRED.decode() in trailing
            payer = await made.payer()
            code, details, _ = await refused(
                call, "ModelInfer", request(rows=99), metadata(payer, payer.next_id(), rows=1)
            )
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert details.startswith("payment_terms: ")

    on_a_real_loop(test)


def test_metadata_calls() -> None:
    known = messages()

    async def test() -> None:
        async with world() as made, fronted(made.node.app) as call:
            assert (await call("ServerLive"))[0].live
            assert (await call("ServerReady"))[0].ready
            ready = known["ModelReadyRequest"](name=MODEL)
            assert (await call("ModelReady", ready))[0].ready
            missing = known["ModelReadyRequest"](name="no-such-model")
            assert not (await call("ModelReady", missing))[0].ready
            server = (await call("ServerMetadata"))[0]
            assert server.name == "inferpool-node"
            asked = known["ModelMetadataRequest"](name=MODEL, version="1")
            model = (await call("ModelMetadata", asked))[0]
            assert (model.name, list(model.versions)) == (MODEL, ["1"])
            assert [(item.name, list(item.shape)) for item in model.inputs] == [("x", [-1, 4])]
            code, details, _ = await refused(
                call, "ModelMetadata", known["ModelMetadataRequest"](name="a/../b?c")
            )
            assert code is grpc.StatusCode.NOT_FOUND
            assert details.split(":")[0] in ("model_not_found", "not_found")
            made.node.node.draining = True
            assert not (await call("ServerReady"))[0].ready

    on_a_real_loop(test)


def wrong(**changes: Any) -> Any:
    made = request()
    for name, value in changes.items():
        setattr(made.inputs[0], name, value)
    return made


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (wrong(datatype="FP64"), "INVALID_ARGUMENT", "invalid_tensor: "),
        (wrong(name="y"), "INVALID_ARGUMENT", "invalid_tensor: "),
        (request(model_version="1", id="x" * 1000), "INVALID_ARGUMENT", "invalid_request: "),
        (messages()["ModelInferRequest"](model_name=MODEL), "INVALID_ARGUMENT", "invalid_tensor: "),
        (messages()["ModelInferRequest"](), "NOT_FOUND", "not_found: "),
    ],
    ids=["datatype", "name", "id", "no inputs", "no model"],
)
def test_wrong_requests_have_the_code_that_rest_gives(message: Any, code: str, words: str) -> None:
    async def test() -> None:
        async with world() as made, fronted(made.node.app) as call:
            status, details, _ = await refused(call, "ModelInfer", message)
            assert details.startswith(words) or code == "NOT_FOUND", details
            assert status in (grpc.StatusCode[code], grpc.StatusCode.INVALID_ARGUMENT)

    on_a_real_loop(test)


def test_a_parameter_that_would_change_the_answer_is_refused_by_name() -> None:
    made = request()
    made.parameters["sequence_id"].int64_param = 5
    body, length = oip_grpc.rest_request(made)
    with pytest.raises(BadRequest, match="sequence_id") as caught:
        oip_request(body, length)
    assert caught.value.code == "unsupported_parameter"


def oip_request(body: bytes, length: bytes) -> Any:
    from inferpool.protocol.oip import InferRequest

    return InferRequest.parse(MODEL, body, length)


def test_a_message_over_the_limit_is_refused_unread() -> None:
    async def test() -> None:
        async with world() as made, fronted(made.node.app) as call:
            big = request()
            big.raw_input_contents[0] = bytes(limits.BODY_TENSOR_MAX + 128 * 1024)
            code, _, _ = await refused(call, "ModelInfer", big)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    on_a_real_loop(test)


def test_a_caller_that_leaves_ends_the_request() -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async def test() -> None:
        async with fronted(app) as call:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call("ModelInfer", request(), (), 0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await asyncio.wait_for(left.wait(), 2)

    on_a_real_loop(test)


def test_headers_that_the_front_sets_cannot_be_given() -> None:
    seen: dict[bytes, bytes] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(dict(scope["headers"]))
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"no json"})

    async def test() -> None:
        async with fronted(app) as call:
            length = headers.INFERENCE_HEADER_LENGTH.decode()
            pairs = [
                (length, "1"),
                ("host", "evil"),
                ("authorization", "Bearer k"),
                ("a-bin", b"\0"),
            ]
            code, details, _ = await refused(call, "ModelInfer", request(), pairs)
            assert (code, details) == (grpc.StatusCode.INTERNAL, "internal: The server failed.")
        assert seen[headers.INFERENCE_HEADER_LENGTH] != b"1"
        assert seen[b"host"] == b"memory"
        assert seen[b"authorization"] == b"Bearer k"
        assert b"a-bin" not in seen

    on_a_real_loop(test)


def test_a_taken_port_is_said() -> None:
    async def test() -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("nobody calls")

        first, second = GrpcFront(app), GrpcFront(app)
        port = await first.start("127.0.0.1", 0)
        with pytest.raises(Refused, match="cannot be used") as caught:
            await second.start("127.0.0.1", port)
        assert caught.value.code == "bad_config"
        await first.close()

    on_a_real_loop(test)
