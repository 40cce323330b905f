"""What every request has to pass before an application sees it: one ASGI middleware, refusing by default.

In this order, cheapest first:
1. Host: exactly one header, naming a host in the allow list (else 400, 421). A page in a browser that rebinds its
   name to 127.0.0.1 (DNS rebinding) still sends its own name, so it gets no further.
2. Token: every method but GET, HEAD and OPTIONS needs `Authorization: Bearer TOKEN` (else 401), whatever the path: a
   route added tomorrow is protected without anyone thinking of it. Digests are compared in constant time; the token
   itself is neither kept nor logged.
3. Body: read whole and counted, chunked or not (else 413), so that no handler can meet an unbounded one.

Every answer says `nosniff` and `no-store`. There is no CORS: no foreign page may read an answer.

Left out: TLS and rate limits, which belong to the proxy in front of a deployment that leaves loopback (docs/http.md).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from natwork_ray.errors import PreconditionError, UsageError
from serve_apps.problems import problem

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MIN_TOKEN = 16
TOKEN_FILE = "api-token"  # noqa: S105 - the name of the file, not a token
_MAX_TOKEN_BYTES = 4096


def token_digest(token: str) -> bytes:
    """What is kept of a token.

    Raises:
        UsageError: too short to be a secret, or with characters that a header cannot carry.
    """
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"an API token of {len(token)} characters",
            hint=f"use at least {_MIN_TOKEN} visible ASCII characters, for example secrets.token_urlsafe(32)",
        )
    return hashlib.sha256(token.encode("ascii")).digest()


def read_token(state_dir: Path, environ: Mapping[str, str] | None = None) -> str:
    """The API token: NATWORK_API_TOKEN if set, else the content of <state_dir>/api-token.

    Raises:
        PreconditionError: there is neither, or the file is readable by others.
    """
    named = (os.environ if environ is None else environ).get("NATWORK_API_TOKEN", "")
    if named:
        return named
    path = state_dir.expanduser() / TOKEN_FILE
    try:
        with path.open("rb") as file:
            shared = os.fstat(file.fileno()).st_mode & 0o077
            token = file.read(_MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PreconditionError(
            f"cannot read the API token {path}: {error}",
            hint="set NATWORK_API_TOKEN, or let `natwork up` make the file",
        ) from error
    if shared:
        raise PreconditionError(f"others may read the API token {path}", hint=f"chmod 600 {path}")
    return token


class Door:
    """The middleware. `digest` None leaves methods that change nothing (a stateless application) without a token."""

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Iterable[str], max_body_bytes: int, digest: bytes | None = None
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._limit = max_body_bytes
        self._digest = digest
        if not self._hosts or max_body_bytes < 1:
            raise UsageError(
                f"a door with {len(self._hosts)} allowed hosts and bodies up to {max_body_bytes} bytes",
                hint="name at least one host, and let bodies be at least a byte",
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or let through with the body at hand."""
        if scope["type"] != "http":
            # Lifespan passes; there are no WebSocket routes, so Starlette closes those by itself.
            await self._app(scope, receive, send)
            return
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        hosts = [v.decode("latin-1") for k, v in headers if k == b"host"]
        if len(hosts) != 1:
            await problem(400, f"{len(hosts)} Host headers")(scope, receive, send)
            return
        if host_name(hosts[0]) not in self._hosts:
            await problem(421, f"this server does not answer for {hosts[0][:80]!r}")(scope, receive, send)
            return
        if self._digest is not None and scope["method"] not in _SAFE and not authorised(headers, self._digest):
            await problem(401, "a change needs a valid token")(scope, receive, send)
            return
        try:
            body = await self._body(headers, receive)
        except ClientDisconnect:
            return  # half a request is no request, and nobody is left to be told
        if body is None:
            refusal = problem(413, f"the body is larger than {self._limit} bytes", headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return

        waiting = True

        async def replay() -> Message:
            nonlocal waiting
            if waiting:
                waiting = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["X-Content-Type-Options"] = "nosniff"
                out["Cache-Control"] = "no-store"
            await send(message)

        await self._app(scope, replay, guarded)

    async def _body(self, headers: Sequence[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        """The whole body, or None when it is too large; ClientDisconnect when its end never came."""
        for name, text in headers:
            if name == b"content-length" and text.isdigit() and (len(text) > 18 or int(text) > self._limit):
                return None
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size > self._limit:
                return None
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


def authorised(headers: Sequence[tuple[bytes, bytes]], digest: bytes) -> bool:
    """Whether the headers carry, once, the token of that digest; compared in constant time."""
    given = [v for k, v in headers if k == b"authorization"]
    if len(given) != 1:
        return False
    scheme, _, token = given[0].partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(token.strip(b" ")).digest(), digest)


def host_name(header: str) -> str:
    """The host of a Host header in lower case, without its port; IPv6 keeps its brackets."""
    if header.startswith("["):
        name, bracket, _ = header.partition("]")
        return (name + bracket).lower()
    return header.partition(":")[0].lower()
