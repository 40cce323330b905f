"""The way to a server that is down, slow, or lies: one deadline, bounded bodies, typed errors."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.prometheus import CHANNELS, PrometheusTelemetry
from natwork_ray.adapters.prometheus_access import checked_url
from natwork_ray.adapters.prometheus_session import Answer, Channel, RefusedQueryError
from natwork_ray.config import PrometheusConfig
from natwork_ray.errors import ConfigError, InputError, NatworkError, PreconditionError, TimedOutError

GOOD = b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"2"]}]}}'
Speak = Callable[[socket.socket, bytes], None]
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(speak, ...)` gives a URL; each connection is spoken to in turn, the last way again and again."""
    listening: list[socket.socket] = []

    def start(*speaks: Speak) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def answer() -> None:
            for number in range(1000):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        heard = connection.recv(65_536)
                        speaks[min(number, len(speaks) - 1)](connection, heard)
                    except OSError:
                        pass  # the client went away: that is what is tested

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(body: bytes, status: str = "200 OK", *headers: str) -> Speak:
    lines = "".join(f"{header}\r\n" for header in (*headers, f"Content-Length: {len(body)}", "Connection: close"))
    return lambda connection, _: connection.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)


def ask(url: str, *, within_s: float = 5.0, sleep: Callable[[float], None] = lambda _: None, **config: Any) -> Answer:
    channel = Channel(PrometheusConfig(url=url, **config), monotonic=time.monotonic, sleep=sleep)
    with channel:
        return channel.instant("up", at_ms=1_234, deadline=time.monotonic() + within_s)


def test_an_answer(serve: Serve) -> None:
    heard: list[bytes] = []

    def speak(connection: socket.socket, request: bytes) -> None:
        heard.append(request)
        says(GOOD.replace(b'"data"', b'"warnings":["w"],"data"'))(connection, request)

    answer = ask(serve(speak))
    assert answer == Answer(kind="vector", result=({"metric": {}, "value": [1, "2"]},), warnings=("w",))
    assert heard[0].startswith(b"GET /api/v1/query?query=up&time=1.234&timeout=4.")
    assert b"Authorization" not in heard[0]


def test_a_range_is_asked_for_to_the_millisecond(serve: Serve) -> None:
    heard: list[bytes] = []

    def speak(connection: socket.socket, request: bytes) -> None:
        heard.append(request)
        says(GOOD.replace(b"vector", b"matrix"))(connection, request)

    with Channel(PrometheusConfig(url=serve(speak)), monotonic=time.monotonic, sleep=time.sleep) as channel:
        channel.range("up", start_ms=1_001, end_ms=3_001, step_ms=500, deadline=time.monotonic() + 5)
    assert b"/api/v1/query_range?query=up&start=1.001&end=3.001&step=0.500&" in heard[0]


def test_a_compressed_answer(serve: Serve) -> None:
    assert ask(serve(says(gzip.compress(GOOD), "200 OK", "Content-Encoding: gzip"))).kind == "vector"


@pytest.mark.parametrize(
    ("speak", "kind", "said"),
    [
        (says(b"<html>Log in</html>"), InputError, "no JSON: '<html>Log in"),
        (says(b""), InputError, "no JSON"),
        (says(b"[" * 100_000), InputError, "no JSON"),
        (says(b"[1]"), InputError, "with a list"),
        (says(b"{}"), InputError, "refuses"),
        (says(b'{"status":"success"}'), InputError, "without data.result"),
        (says(b'{"status":"success","data":{"result":{}}}'), InputError, "without data.result"),
        (says(b'{"status":"success","data":{"result":[]}}'), InputError, "resultType"),
        (says(GOOD.replace(b"1,", b"NaN,")), InputError, "no JSON"),
        (says(GOOD.replace(b'"data"', b'"warnings":"w","data"')), InputError, "warnings"),
        (says(GOOD.replace(b"vector", b"matrix")), InputError, "'matrix'"),
        (says(GOOD.replace(b"vector", b"scalar")), InputError, "'scalar'"),
        (says(b'{"status":"error","errorType":"bad_data","error":"none"}', "400 Bad"), RefusedQueryError, "none"),
        (says(b'{"status":"error","errorType":"execution","error":"many"}', "422 No"), RefusedQueryError, "n: many"),
        (says(b"{}", "404 Not Found"), InputError, "404"),
        (says(b"oops", "500 Oops"), InputError, "500 and no JSON"),
        (says(b"", "401 No"), PreconditionError, "401"),
        (says(b"", "403 No"), PreconditionError, "403"),
        (says(b"", "302 Found", "Location: http://evil.example/"), InputError, "evil.example"),
        (says(b"busy", "503 Busy"), PreconditionError, "503 'busy'"),
        (says(b"no gzip", "200 OK", "Content-Encoding: gzip"), InputError, "no HTTP answer"),
        (lambda c, _: c.sendall(b"SSH-2.0-OpenSSH_9\r\n"), PreconditionError, "asked 3 times"),
        (lambda c, _: None, PreconditionError, "asked 3 times"),
        (lambda c, _: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), PreconditionError, "asked 3 times"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_a_typed_error(serve: Serve, speak: Speak, kind: type[NatworkError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        ask(serve(speak))
    assert caught.value.hint
    assert len(caught.value.what) < 700


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pauses: list[float] = []
    with pytest.raises(PreconditionError, match=r"asked 3 times: .*refused"):
        ask(f"http://127.0.0.1:{port}", sleep=pauses.append)
    assert pauses == [0.2, 0.4]


def test_a_server_that_comes_back_is_asked_again(serve: Serve) -> None:
    assert ask(serve(says(b"", "503 Starting"), lambda c, _: None, says(GOOD))).kind == "vector"


def _drip(head: bytes, drop: bytes) -> Speak:
    def speak(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(drop)
            time.sleep(0.02)

    return speak


@pytest.mark.parametrize(
    "speak",
    [
        lambda connection, _: connection.recv(1),
        _drip(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        _drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "),
        _drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["silent", "headers", "body", "chunks"],
)
def test_however_slowly_it_drips_the_deadline_holds(serve: Serve, speak: Speak) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOutError):
        ask(serve(speak), within_s=0.3)
    assert time.monotonic() - began < 1.5


def test_a_deadline_that_has_passed_asks_nobody() -> None:
    with pytest.raises(TimedOutError):
        ask("http://127.0.0.1:1", within_s=-1.0)


@pytest.mark.parametrize("headers", [(), ("Content-Encoding: gzip",)])
def test_bodies_are_bounded_as_they_are_unpacked(serve: Serve, headers: tuple[str, ...]) -> None:
    body = b" " * 2_000_000
    with pytest.raises(InputError, match="more than 100000 bytes"):
        ask(serve(says(gzip.compress(body) if headers else body, "200 OK", *headers)), max_body_bytes=100_000)


def test_a_token_is_read_at_every_request(serve: Serve, tmp_path: Path) -> None:
    heard: list[bytes] = []

    def speak(connection: socket.socket, request: bytes) -> None:
        heard.append(request)
        says(GOOD)(connection, request)

    file = tmp_path / "token"
    url = serve(speak)
    with Channel(PrometheusConfig(url=url, token_file=file), monotonic=time.monotonic, sleep=time.sleep) as channel:
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            channel.instant("up", at_ms=1, deadline=time.monotonic() + 5)
    assert [b"Authorization: Bearer first\r\n" in heard[0], b"Authorization: Bearer second\r\n" in heard[1]] == [
        True
    ] * 2


@pytest.mark.parametrize("data", [None, b"", b"two words", b"two\nlines", b"\xff", b"x" * 70_000])
def test_a_file_without_a_token(serve: Serve, tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "token"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(PreconditionError, match="token"):
        ask(serve(says(GOOD)), token_file=file)


@pytest.mark.parametrize(
    "url",
    ["", "ftp://x", "http://", "127.0.0.1:9090", "http://u:p@x", "http://x?a=b", "http://x#f", "http://x:99999", "http://[x",
     "http://a b", "http://a\nb", "file:///etc/passwd"],
)  # fmt: skip
def test_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_url(PrometheusConfig(url=url))
    assert "p@" not in caught.value.what


def test_urls_with_a_prefix() -> None:
    assert checked_url(PrometheusConfig(url="https://x.example/mimir/")) == "https://x.example/mimir"


def test_tokens_do_not_travel_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        checked_url(PrometheusConfig(url="http://prometheus.example", token_file=tmp_path / "t"))
    for url in ("https://prometheus.example", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"):
        assert checked_url(PrometheusConfig(url=url, token_file=tmp_path / "t")) == url


def test_an_authority_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        ask("https://127.0.0.1:1", ca_file=tmp_path / "none.pem")


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    listener, authority = _secure(tmp_path)
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with pytest.raises(PreconditionError, match="certificate"):
            ask(url)
        assert ask(url, ca_file=authority).kind == "vector"
    finally:
        listener.close()


def _secure(folder: Path) -> tuple[socket.socket, Path]:
    """A server with a certificate of its own making, and the file that vouches for it."""
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority, private = folder / "ca.pem", folder / "key.pem"
    authority.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, private)
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    says(GOOD)(connection, connection.recv(65_536))
            except (OSError, ssl.SSLError):
                plain.close()

    threading.Thread(target=answer, daemon=True).start()
    return listener, authority


@pytest.mark.parametrize("lie", [b"", b"no JSON "], ids=["too large", "no JSON"])
def test_a_server_that_lies_to_every_query_costs_few_bodies(serve: Serve, lie: bytes) -> None:
    """Errors wait for one another; the answers that they were about do not."""
    limit = 1_000_000
    body = lie * (limit // len(lie)) if lie else b" " * (20 * limit)
    url = serve(says(gzip.compress(body), "200 OK", "Content-Encoding: gzip"))
    telemetry = PrometheusTelemetry(PrometheusConfig(url=url, max_body_bytes=limit), step_s=10.0)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            asyncio.run(telemetry.observation(end_s=1_000_000.0, length=4))
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        telemetry.close()
    assert caught.value.hint
    assert kept < limit
    # Per connection: the body, what it grows into, and its text.
    assert most < 3 * CHANNELS * limit
