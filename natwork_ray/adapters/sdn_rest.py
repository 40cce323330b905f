"""`SdnController` over a controller's REST interface: a webhook that understands our alerts, or ONOS.

HTTP semantics as in RFC 9110; the header `Idempotency-Key` as in the IETF HTTP API group's draft of that name. Rules
kept: one POST per alert, repeated with the same key while the controller is busy (429, 502, 503, 504) or does not
answer, at most `attempts` times; answers are read up to a bound and never followed elsewhere; the token is sent to the
configured host only. When the last attempt had no answer, nobody knows whether it arrived: `TimedOutError`, and the
loop delivers it again under its key.

- `webhook`: `POST URL` with the alert as JSON (docs/sdn.md has the fields), `DELETE URL/KEY` to withdraw.
- `onos`: `POST URL/onos/v1/flows?appId=...` with one flow rule per source, destination, port and device, which time out
  by themselves; `DELETE URL/onos/v1/flows/application/APPID` to withdraw. Each alert is an application of its own, so
  that its rules can be told apart. They drop; `rate_limit` and `inspect` need more than ONOS's flow API: refused.

Written against ONOS's published REST API; it was tested against a server that checks every field, not against ONOS.

    controller = RestController("https://sdn.example/alerts", token="...", now_s=time.time)
    await controller.alert(alert)
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpx

from natwork_ray.adapters.sdn_rules import FlowRule, cookie, digest, flow_rules, lifetime_s
from natwork_ray.domain.actions import ActionOutcome
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert
from natwork_ray.domain.values import Backend, plain
from natwork_ray.errors import ActionError, ConflictError, PreconditionError, TimedOutError, UsageError

MAX_ANSWER_BYTES = 65_536
MAX_REMEMBERED = 4096
_BUSY = frozenset({429, 502, 503, 504})
_MAX_WAIT_S = 30.0
_ONOS_PRIORITY = 40_002


@dataclass(frozen=True)
class RestSettings:
    """How a controller is spoken to.

    Attributes:
        dialect: what it understands.
        devices: ONOS device ids that get the rules (`of:0000000000000001`).
        timeout_s: longest wait for one answer.
        attempts: how often an alert is sent at most.
        wait_s: first pause between two attempts; it doubles.
    """

    dialect: Literal["webhook", "onos"] = "webhook"
    devices: tuple[str, ...] = ()
    timeout_s: float = 5.0
    attempts: int = 4
    wait_s: float = 0.5


class RestController:
    """A controller behind one URL.

    `token` is sent as a bearer token, or, where it has a colon, as `user:password` (RFC 7617; ONOS). `addresses` tells
    a container's IP addresses where an alert does not. Outcomes are remembered in this process for `MAX_REMEMBERED`
    keys; beyond that, and after a restart, the controller's own memory of the key has to do.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        now_s: Callable[[], float],
        settings: RestSettings | None = None,
        tls: ssl.SSLContext | None = None,
        addresses: Callable[[str], Sequence[str]] = lambda _: (),
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises UsageError: no usable URL, a secret over plain HTTP to another machine, or ONOS without devices."""
        self._settings = settings or RestSettings()
        self._url = _checked(url, token)
        if self._settings.dialect == "onos" and not self._settings.devices:
            raise UsageError("no ONOS device is named", hint="set sdn.devices, e.g. of:0000000000000001")
        self._now_s, self._addresses, self._pause = now_s, addresses, pause
        self._headers = {"Authorization": _authorization(token)} if token else {}
        self._transport = transport or httpx.AsyncHTTPTransport(verify=tls or ssl.create_default_context())
        self._done: dict[str, tuple[str, ActionOutcome]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # gone with the last who waits

    async def alert(self, alert: FlowAlert) -> ActionOutcome:
        """See `SdnController`."""
        lock = self._locks.setdefault(alert.key, asyncio.Lock())
        async with lock:
            return await self._alert(alert)

    async def _alert(self, alert: FlowAlert) -> ActionOutcome:
        known = self._done.get(alert.key)
        if known is not None:
            if known[0] != digest(alert):
                raise ConflictError(f"key {alert.key} was used for another alert", hint="a new alert needs a new key")
            return known[1]
        began_s = self._now_s()
        if self._settings.dialect == "onos":
            path, document = self._onos(alert, began_s)
        else:
            lifetime_s(alert, now_s=began_s)
            path, document = "", plain(alert)
        answer = await self._send("POST", path, alert.key, document)
        outcome = self._outcome(alert.key, began_s, f"{alert.advice} accepted with {answer.status_code}")
        while len(self._done) >= MAX_REMEMBERED:
            self._done.pop(next(iter(self._done)))
        self._done[alert.key] = digest(alert), outcome
        return outcome

    async def withdraw(self, key: str) -> ActionOutcome:
        """See `SdnController`."""
        began_s = self._now_s()
        onos = self._settings.dialect == "onos"
        path = f"/onos/v1/flows/application/{_application(key)}" if onos else f"/{quote(key, safe='')}"
        answer = await self._send("DELETE", path, key, None)
        return self._outcome(key, began_s, "there was nothing" if answer.status_code == 404 else "withdrawn")

    def _outcome(self, key: str, began_s: float, detail: str) -> ActionOutcome:
        return ActionOutcome(
            key=key,
            done=True,
            started_at_s=began_s,
            finished_at_s=self._now_s(),
            downtime_s=0.0,
            backend=Backend.REAL,
            detail=f"{self._url.host}: {detail}",
        )

    def _onos(self, alert: FlowAlert, now_s: float) -> tuple[str, Any]:
        if alert.advice is not FlowAdvice.DROP:
            raise ActionError(
                f"ONOS's flow API cannot {alert.advice}", hint="advise to drop, or put a webhook in front of ONOS"
            )
        rules = flow_rules(alert, now_s=now_s, destinations=self._addresses(alert.container))
        life_s = lifetime_s(alert, now_s=now_s)
        flows = [_onos_flow(rule, device, life_s) for device in self._settings.devices for rule in rules]
        return f"/onos/v1/flows?appId={_application(alert.key)}", {"flows": flows}

    async def _send(self, method: str, path: str, key: str, document: Any) -> httpx.Response:
        url = f"{str(self._url).rstrip('/')}{path}"
        # Plain answers only: a small compressed one could be a large one.
        own = {"Idempotency-Key": _header_text(key), "Accept-Encoding": "identity"}
        headers = {**self._headers, **own}
        wait_s, last = self._settings.wait_s, "no answer"
        async with httpx.AsyncClient(
            transport=_Kept(self._transport), timeout=self._settings.timeout_s, follow_redirects=False
        ) as client:
            for attempt in range(1, self._settings.attempts + 1):
                asked_s = wait_s
                try:
                    answer = await _bounded(client, method, url, headers, document)
                except httpx.TransportError as error:
                    last = f"{type(error).__name__}: {error}"
                else:
                    if answer.status_code not in _BUSY:
                        return _judged(answer, method)
                    last = f"status {answer.status_code}"
                    asked_s = _retry_after(answer, wait_s)
                if attempt < self._settings.attempts:
                    await self._pause(min(asked_s, _MAX_WAIT_S))
                    wait_s *= 2
        raise TimedOutError(
            f"{self._url.host} did not take {method} for {key} in {self._settings.attempts} attempts: {last}",
            hint="is the controller up? What was sent under this key can be sent again",
        )

    async def close(self) -> None:
        """Give up the connections."""
        await self._transport.aclose()


class _Kept(httpx.AsyncBaseTransport):
    """A transport that outlives its client: connections are kept between alerts."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(request)


async def _bounded(
    client: httpx.AsyncClient, method: str, url: str, headers: dict[str, str], document: Any
) -> httpx.Response:
    """The answer with at most `MAX_ANSWER_BYTES` of its body: it is only quoted."""
    body = {"json": document} if document is not None else {}
    async with client.stream(method, url, headers=headers, **body) as answer:
        kept = b""
        async for piece in answer.aiter_bytes():
            kept = (kept + piece)[:MAX_ANSWER_BYTES]
            if len(kept) == MAX_ANSWER_BYTES:
                break
        plain_headers = {k: v for k, v in answer.headers.items() if k.lower() == "retry-after"}
        return httpx.Response(answer.status_code, headers=plain_headers, content=kept)


def _judged(answer: httpx.Response, method: str) -> httpx.Response:
    status = answer.status_code
    if 200 <= status < 300 or (status == 404 and method == "DELETE"):
        return answer
    said = answer.content[:200].decode("utf-8", errors="replace")
    if status in (401, 403):
        raise PreconditionError(
            f"the SDN controller refused us: {status} {said}", hint="check sdn.token_file and the account's rights"
        )
    if status == 409:
        raise ConflictError(f"the SDN controller knows this key otherwise: {said}", hint="use a new key")
    if 300 <= status < 400:
        raise PreconditionError(
            f"the SDN controller points elsewhere: {status}", hint="set sdn.url to where it really is"
        )
    raise ActionError(f"the SDN controller answered {status}: {said}", hint="its own log says why")


def _retry_after(answer: httpx.Response, otherwise_s: float) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else otherwise_s


def _onos_flow(rule: FlowRule, device: str, life_s: int) -> dict[str, Any]:
    six = rule.source.version == 6
    criteria: list[dict[str, Any]] = [
        {"type": "ETH_TYPE", "ethType": "0x86dd" if six else "0x800"},
        {"type": "IPV6_SRC" if six else "IPV4_SRC", "ip": str(rule.source)},
        {"type": "IPV6_DST" if six else "IPV4_DST", "ip": f"{rule.destination}/{128 if six else 32}"},
    ]
    if rule.protocol is not None:
        tcp = rule.protocol == "tcp"
        criteria.append({"type": "IP_PROTO", "protocol": 6 if tcp else 17})
        criteria.append({"type": "TCP_DST", "tcpPort": rule.port} if tcp else {"type": "UDP_DST", "udpPort": rule.port})
    return {
        "priority": _ONOS_PRIORITY,
        "timeout": life_s,
        "isPermanent": False,
        "deviceId": device,
        "treatment": {},  # no instruction: the packet ends here
        "selector": {"criteria": criteria},
    }


def _application(key: str) -> str:
    return f"natwork.{cookie(key):016x}"


def _header_text(key: str) -> str:
    """A key as a header can carry it."""
    return quote(key, safe="/:-._~")


def _authorization(token: str) -> str:
    if ":" in token:
        return f"Basic {base64.b64encode(token.encode()).decode()}"
    return f"Bearer {token}"


def _checked(url: str, token: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"sdn.url = {url!r}: {error}", hint="for example https://sdn.example/alerts") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo or parsed.query or parsed.fragment:
        raise UsageError(
            f"sdn.url = {parsed.copy_with(userinfo=None)}", hint="a plain http or https address; the token has a file"
        )
    if token and parsed.scheme == "http" and parsed.host not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(f"the token would go to {parsed.host} in the clear", hint="use https")
    return parsed
