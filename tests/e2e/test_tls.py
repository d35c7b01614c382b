"""A whole pool off loopback, as our rule sees it: TLS 1.3 on every hop, HTTP and gRPC, paid.

127.0.0.2 and 127.0.0.3 are this machine's, and none of the two literal hosts that may be plain.
"""

from __future__ import annotations

import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import poolkit
import pytest
from poolkit import CHAT, SPAM

from inferpool.home import Home
from inferpool.protocol.errors import Refused

NODE, GATEWAY = "127.0.0.2", "127.0.0.3"
GOOD = "hi all the meeting about the kernel patch is on monday see the list archive for the agenda"
BAD = "free money click here now to claim your prize viagra guaranteed winner no risk order now"


def _has(host: str) -> bool:
    try:
        with socket.socket() as made:
            made.bind((host, 0))
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.timeout(90),
    pytest.mark.skipif(
        not (_has(NODE) and _has(GATEWAY)), reason=f"this system has no {NODE} and {GATEWAY}"
    ),
]


def free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


@dataclass
class Secured:
    """The pool, and what its clients trust."""

    running: poolkit.Running
    grpc_port: int

    @property
    def facts(self) -> Any:
        return self.running.pool.running["gateway"].facts

    @property
    def certificate(self) -> str:
        return str(self.facts["tls_certificate"])

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Chain on loopback, node and gateway off it; gRPC on the gateway where it is installed."""
    try:
        import grpc  # noqa: F401

        port = free_port(GATEWAY)
    except ImportError:
        port = 0
    flags = poolkit.FREE_PORTS | {
        "node.host": NODE,
        "gateway.host": GATEWAY,
        "gateway.allow_private": True,
        "gateway.grpc_port": port,
    }
    running = poolkit.start(tmp_path_factory.mktemp("tls"), flags)
    pids = running.pids
    yield Secured(running, port)
    codes = running.pool.close()
    poolkit.all_gone(pids)
    assert codes == {"gateway": 0, "node": 0, "chain": 0}
    assert "Traceback" not in running.logs()


def chat(secured: Secured, **options: Any) -> httpx.Response:
    body = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    url = f"{secured.running.url()}/v1/chat/completions"
    return httpx.post(
        url,
        json=body,
        headers=secured.running.headers,
        timeout=60,
        verify=secured.context,
        **options,
    )


def test_a_paid_answer_by_tls_on_both_hops(secured: Secured) -> None:
    running = secured.running
    assert running.url().startswith(f"https://{GATEWAY}:")
    assert running.url("node").startswith(f"https://{NODE}:")
    answer = chat(secured)
    assert answer.status_code == 200, answer.text
    receipt = running.checked(answer.json()["inferpool"])
    assert receipt.charge_pico_usd > 0
    assert running.books_agree() >= receipt.charge_pico_usd
    assert running.status()["nodes"][0]["alive"]  # the owner's commands speak TLS as well
    assert int(running.claim()["claimed_base_units"]) > 0


def test_the_offer_names_the_key_that_the_node_shows(secured: Secured) -> None:
    running = secured.running
    facts = running.pool.running["node"].facts
    context = ssl.create_default_context(cafile=str(facts["tls_certificate"]))
    url = running.url("node")
    offer = httpx.get(f"{url}/.well-known/inferpool/offer", verify=context).json()["offer"]
    assert offer["endpoints"] == [{"url": url, "tlsSpki": f"0x{facts['tls_spki']}"}]


@pytest.mark.parametrize("role", ["node", "gateway"])
def test_nothing_but_tls_1_3_is_served(secured: Secured, role: str) -> None:
    host, _, port = secured.running.url(role).removeprefix("https://").rpartition(":")
    ports = [int(port)]
    if role == "gateway" and secured.grpc_port:
        ports.append(secured.grpc_port)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_alpn_protocols(["h2", "http/1.1"])
    for number in ports:
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection((host, number), 5) as made, pytest.raises(OSError):  # noqa: PT011
            old.wrap_socket(made)
        old.maximum_version = ssl.TLSVersion.TLSv1_3
        with (
            socket.create_connection((host, number), 5) as made,
            old.wrap_socket(made) as wrapped,
        ):
            assert wrapped.version() == "TLSv1.3"
        with socket.create_connection((host, number), 5) as made:
            made.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            with suppress(ConnectionResetError):
                assert not made.recv(100).startswith(b"HTTP")


def test_keys_are_the_owner_s_alone(secured: Secured) -> None:
    for role in ("node", "gateway"):
        path = secured.running.home.root / "tls" / role / "key.pem"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_grpc_by_tritonclient_over_tls(secured: Secured) -> None:
    triton = pytest.importorskip(
        "tritonclient.grpc", reason="no tritonclient for gRPC: pip install 'tritonclient[grpc]'"
    )
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(
        f"{GATEWAY}:{secured.grpc_port}", ssl=True, root_certificates=secured.certificate
    )
    key = {"authorization": f"Bearer {secured.running.api_key}"}
    tensor = triton.InferInput("text", [2, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[GOOD.encode()], [BAD.encode()]], dtype=np.object_))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(SPAM)
        assert not client.is_model_ready("no-such-model")
        assert client.get_server_metadata().name == "inferpool-gateway"
        assert client.get_model_metadata(SPAM).inputs[0].name == "text"
        wish = [triton.InferRequestedOutput("label")]
        answer = client.infer(SPAM, [tensor], outputs=wish, request_id="mail", headers=key)
        assert answer.as_numpy("label").reshape(-1).tolist() == [0, 1]
        assert answer.get_response().id == "mail"
        whole = client.infer(SPAM, [tensor], headers=key)
        assert len(whole.get_response().outputs) > 1
        for name, headers, code in (
            (SPAM, {}, "invalid_api_key: "),
            (SPAM, {"authorization": "Bearer wrong"}, "invalid_api_key: "),
            ("no-such-model", key, "model_not_found: "),
        ):
            with pytest.raises(InferenceServerException) as caught:
                client.infer(name, [tensor], headers=headers)
            assert caught.value.message().startswith(code)
    finally:
        client.close()
    secured.running.books_agree()


# -- what is refused before anything starts ------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [(GATEWAY, ""), ("0.0.0.0", ""), ("127.0.0.1", "https://gate.example")],
)
def test_open_is_refused_off_loopback(tmp_path: Path, host: str, endpoint: str) -> None:
    done = poolkit.inferpool(
        "gateway",
        "--open",
        home=Home(tmp_path),
        INFERPOOL_GATEWAY_HOST=host,
        INFERPOOL_GATEWAY_ENDPOINT=endpoint,
    )
    assert done.returncode != 0
    assert "--open lets anyone in" in " ".join((done.stderr + done.stdout).split())


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://203.0.113.7:8421",
        "http://localhost:8421",
        "ftp://203.0.113.7",
        "https://",
        "https://u:p@h",
        "https://h/?q",
        "https://h/",
        "https://h:port",
        "203.0.113.7:8421",
        "https://" + "h" * 300,
    ],
)
def test_endpoints_that_are_refused(tmp_path: Path, endpoint: str) -> None:
    from inferpool.daemon.door import open_door

    with pytest.raises(Refused) as caught:
        open_door(Home(tmp_path), "node", "127.0.0.1", 0, endpoint)
    assert (caught.value.code, caught.value.param) == ("bad_config", "node.endpoint")


def test_doors(tmp_path: Path) -> None:
    from inferpool.daemon.door import open_door, require_endpoint

    home, public = Home(tmp_path), "https://203.0.113.7:8421"
    plain = open_door(home, "node", "127.0.0.1", 0)
    outside = open_door(home, "node", NODE, 0)
    every = open_door(home, "node", "0.0.0.0", 0, public)
    tunnel = open_door(home, "node", "127.0.0.1", 0, public)
    try:
        assert plain.url == plain.local_url
        assert plain.url.startswith("http://127.0.0.1:")
        assert (plain.spki, plain.tls) == (bytes(32), None)
        assert outside.url.startswith(f"https://{NODE}:")
        assert (every.url, every.local_url.partition(":")[0]) == (public, "https")
        assert every.local_url.startswith("https://127.0.0.1:")
        assert tunnel.url == public
        assert {outside.spki, every.spki, tunnel.spki} == {outside.spki} != {bytes(32)}
        require_endpoint("node", NODE, "")
        with pytest.raises(Refused, match="none that others can dial"):
            require_endpoint("node", "0.0.0.0", "")
    finally:
        for door in (plain, outside, every, tunnel):
            door.listening.close()
