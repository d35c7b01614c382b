"""tritonclient, as its users run it, against the gateway of a real pool and its spam model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from poolkit import SPAM, Running
from tritonclient.utils import InferenceServerException

from inferpool.protocol.receipt import SignedReceipt

pytestmark = pytest.mark.timeout(60)

GOOD = "hi all the meeting about the kernel patch is on monday see the list archive for the agenda"
BAD = "free money click here now to claim your prize viagra guaranteed winner no risk order now"


@pytest.fixture
def client(pool: Running) -> Iterator[Any]:
    """A client of this thread: it can be used by no other."""
    made = triton.InferenceServerClient(pool.url().removeprefix("http://"), network_timeout=30.0)
    yield made
    made.close()


@pytest.fixture
def key(pool: Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {pool.api_key}"}


def texts(*values: str, binary: bool = True, name: str = "text") -> Any:
    tensor = triton.InferInput(name, [len(values), 1], "BYTES")
    array = np.array([[value.encode()] for value in values], dtype=np.object_)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_server_and_model_are_described(client: Any, key: dict[str, str]) -> None:
    assert client.is_server_live(headers=key)
    assert client.is_server_ready(headers=key)
    assert client.is_model_ready(SPAM, headers=key)
    server = client.get_server_metadata(headers=key)
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata(SPAM, headers=key)
    assert model["name"] == SPAM
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}]
    assert {output["name"] for output in model["outputs"]} >= {"label"}


def test_a_model_that_nobody_serves_is_not_ready(client: Any, key: dict[str, str]) -> None:
    assert not client.is_model_ready("no-such-model", headers=key)
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_metadata("no-such-model", headers=key)
    assert caught.value.status() == "404"
    assert "no-such-model" in caught.value.message()


@pytest.mark.parametrize("asked_binary", [True, False])
@pytest.mark.parametrize("sent_binary", [True, False])
def test_verdicts_in_both_forms(
    client: Any, key: dict[str, str], sent_binary: bool, asked_binary: bool
) -> None:
    wish = triton.InferRequestedOutput("label", binary_data=asked_binary)
    answer = client.infer(
        SPAM, [texts(GOOD, BAD, GOOD, binary=sent_binary)], outputs=[wish], headers=key
    )
    labels = answer.as_numpy("label")
    assert labels.shape[0] == 3
    assert labels.reshape(-1).tolist() == [0, 1, 0]
    output = answer.get_output("label")
    assert ("data" in output) is not asked_binary
    assert ("parameters" in output) is asked_binary
    assert [item["name"] for item in answer.get_response()["outputs"]] == ["label"]


def test_all_outputs_without_a_choice(client: Any, key: dict[str, str]) -> None:
    names = [item["name"] for item in client.get_model_metadata(SPAM, headers=key)["outputs"]]
    answer = client.infer(SPAM, [texts(GOOD)], headers=key)
    assert [item["name"] for item in answer.get_response()["outputs"]] == names
    for name in names:
        assert answer.as_numpy(name) is not None


def test_request_id_comes_back(client: Any, key: dict[str, str]) -> None:
    answer = client.infer(SPAM, [texts(GOOD)], request_id="mail 17 é", headers=key)
    assert answer.get_response()["id"] == "mail 17 é"
    assert "id" not in client.infer(SPAM, [texts(GOOD)], headers=key).get_response()


def test_rows_are_charged_each(pool: Running, client: Any, key: dict[str, str]) -> None:
    """tritonclient shows no headers of an answer, so the same body goes by plain HTTP too."""
    body, length = triton.InferenceServerClient.generate_request_body([texts(GOOD, BAD, GOOD)])
    answer = httpx.post(
        f"{pool.url()}/v2/models/{SPAM}/infer",
        content=body,
        headers={
            **key,
            "Inference-Header-Content-Length": str(length),
            "Inferpool-Receipts": "signed",
        },
    )
    assert answer.status_code == 200
    signed = SignedReceipt.from_header(answer.headers["inferpool-receipt"].encode())
    receipt = pool.checked(signed.to_wire())
    assert (receipt.prompt_units, receipt.output_units) == (3, 0)
    assert receipt.charge_pico_usd == 3 * 100_000  # $0.10 a million rows


def wrong_type() -> Any:
    tensor = triton.InferInput("text", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros([1, 1], dtype=np.float32))
    return tensor


def wrong_shape() -> Any:
    tensor = triton.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
    return tensor


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (wrong_type(), ["'text'", "FP32", "BYTES [-1, 1]"]),
        (wrong_shape(), ["'text'", "[2]", "BYTES [-1, 1]"]),
        (texts(GOOD, name="mail"), ["'mail'", "text"]),
    ],
    ids=["datatype", "shape", "name"],
)
def test_wrong_inputs_say_what_would_be_right(
    client: Any, key: dict[str, str], tensor: Any, words: list[str]
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SPAM, [tensor], headers=key)
    assert caught.value.status() == "400"
    for word in words:
        assert word in caught.value.message()


def test_wrong_outputs_say_what_would_be_right(client: Any, key: dict[str, str]) -> None:
    wish = triton.InferRequestedOutput("verdict")
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SPAM, [texts(GOOD)], outputs=[wish], headers=key)
    assert caught.value.status() == "400"
    assert "'verdict'" in caught.value.message()
    assert "label" in caught.value.message()


def test_wrong_key_and_unknown_model(client: Any, key: dict[str, str]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SPAM, [texts(GOOD)], headers={"Authorization": "Bearer wrong"})
    assert caught.value.status() == "401"
    assert "key" in caught.value.message()
    with pytest.raises(InferenceServerException) as caught:
        client.infer("no-such-model", [texts(GOOD)], headers=key)
    assert caught.value.status() == "404"
    assert "no-such-model" in caught.value.message()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_request_is_refused_by_name(
    client: Any, key: dict[str, str], algorithm: str
) -> None:
    """Not served, since a hash is over the body as sent; the error must say so, and say what."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(SPAM, [texts(BAD)], request_compression_algorithm=algorithm, headers=key)
    assert caught.value.status() in ("400", "415")
    assert "content-encoding" in caught.value.message().lower()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_answer_may_be_asked_for(
    client: Any, key: dict[str, str], algorithm: str
) -> None:
    answer = client.infer(SPAM, [texts(BAD)], response_compression_algorithm=algorithm, headers=key)
    assert answer.as_numpy("label").reshape(-1).tolist() == [1]


def test_compressed_chat_is_refused_by_name(pool: Running) -> None:
    body = gzip.compress(json.dumps({"model": "x", "messages": []}).encode())
    answer = httpx.post(
        f"{pool.url()}/v1/chat/completions",
        content=body,
        headers={**pool.headers, "Content-Encoding": "gzip"},
    )
    assert answer.status_code in (400, 415)
    message = answer.json()["error"]["message"]
    assert "content-encoding" in message.lower()
