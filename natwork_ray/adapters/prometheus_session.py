"""The way to a Prometheus server: `prometheus-api-client` on a `requests` session that trusts nobody.

The library asks; what it leaves open is settled below it, in the session. Its time-out bounds the silence between two
bytes and not the answer, it reads bodies of any size, takes `data.result` out of whatever JSON comes, and never looks
at `status`, `resultType` or `warnings`. Here

- one deadline covers everything from connecting to the last byte, retries included: when it passes, the connection is
  shut from outside, however slowly it drips;
- a body is bounded as it is unpacked;
- what is no answer of the HTTP API (HTML, a redirect, wrong types, NaN as a bare word) is an `InputError`, and what the
  server refuses is told in its own words;
- certificates are verified; a bearer token comes from a file, is read at every request (Kubernetes renews it hourly)
  and is never sent in the clear over a network. Proxies, .netrc and certificates of the environment are not used.

Tried again, with a growing pause: 429, 502, 503, 504, and connections that broke. Not: refusals.

    with Channel(PrometheusConfig(), monotonic=time.monotonic, sleep=time.sleep) as channel:
        answer = channel.range("up", start_ms=..., end_ms=..., step_ms=10_000, deadline=time.monotonic() + 5)
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn, Self

import requests  # type: ignore[import-untyped,unused-ignore]
import requests.adapters  # type: ignore[import-untyped,unused-ignore]
import urllib3
from prometheus_api_client import PrometheusConnect
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from natwork_ray.adapters.prometheus_access import checked_url, existing, read_token
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.values import value
from natwork_ray.errors import InputError, NatworkError, PreconditionError, TimedOutError

ATTEMPTS = 3
FIRST_PAUSE_S = 0.2
AGAIN = frozenset({429, 502, 503, 504})
_CHUNK = 65_536
_MAX_WARNINGS = 20
_SAID = 300
_NO_JSON = object()


@value
class Answer:
    """What a server said, its envelope checked.

    Attributes:
        result: `data.result` as it came; the elements are still to be judged.
        warnings: what the server itself says against it, such as a store that did not answer.
    """

    kind: str
    result: tuple[Any, ...]
    warnings: tuple[str, ...] = ()


class RefusedQueryError(InputError):
    """The server is in order, the query is not: the others may still be answered."""


class Channel:
    """One connection to the server, for one thread at a time.

    Args:
        config: where, and what is allowed.
        monotonic, sleep: the clock of deadlines, and how pauses are made.

    Raises:
        ConfigError: the URL, or a file that the configuration names, cannot be used.
    """

    def __init__(
        self, config: PrometheusConfig, *, monotonic: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._url = checked_url(config)
        self._monotonic, self._sleep = monotonic, sleep
        self._session = _Session(config, monotonic)
        self._api = PrometheusConnect(url=self._url, session=self._session, timeout=1)
        self._session.mount(self._url, _Adapter(self._session.live))  # in place of the library's own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._session.abort()
        self._session.close()

    def range(self, query: str, *, start_ms: int, end_ms: int, step_ms: int, deadline: float) -> Answer:
        """A query at every step from `start_ms` to `end_ms`, both included.

        Raises:
            PreconditionError: nobody answers, or not to us.
            TimedOutError: not by `deadline`.
            InputError: what came is no answer, or the server refuses the query.
        """
        when = {"start": _seconds(start_ms), "end": _seconds(end_ms)}  # the library rounds to whole seconds
        moment = datetime.fromtimestamp(0, tz=UTC)
        return self._asked(
            lambda left: self._api.custom_query_range(
                query, moment, moment, _seconds(step_ms), params={**when, "timeout": _seconds(left)}
            ),
            "matrix",
            deadline,
        )

    def instant(self, query: str, *, at_ms: int, deadline: float) -> Answer:
        """A query at one moment. Raises as `range` does."""
        return self._asked(
            lambda left: self._api.custom_query(query, params={"time": _seconds(at_ms), "timeout": _seconds(left)}),
            "vector",
            deadline,
        )

    def _asked(self, ask: Callable[[int], Any], kind: str, deadline: float) -> Answer:
        pause = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._once(ask, deadline)
                break
            except _TryAgainError as error:
                if attempt == ATTEMPTS or self._monotonic() + pause >= deadline:
                    raise PreconditionError(
                        f"no Prometheus at {self._url}, asked {attempt} times: {str(error)[:_SAID]}",
                        hint="is it running, and the URL right?",
                    ) from error
                self._sleep(pause)
                pause *= 2
        if answer.kind != kind:
            raise InputError(f"{self._url} answered with a {answer.kind[:20]!r}", hint=f"a {kind} was asked for")
        return answer

    def _once(self, ask: Callable[[int], Any], deadline: float) -> Answer:
        left = deadline - self._monotonic()
        if left <= 0:
            raise _late(self._url)
        try:
            with self._session.until(deadline):
                ask(max(1, int(left * 1000)))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, _SLOW) or self._session.aborted:
                raise _late(self._url) from error
            if isinstance(error, requests.exceptions.SSLError):
                raise PreconditionError(
                    f"{self._url}: its certificate cannot be verified: {str(error)[:_SAID]}",
                    hint="name the authority that signed it with prometheus.ca_file",
                ) from error
            if isinstance(error, _BROKEN):
                raise _TryAgainError(_root(error)) from error
            raise InputError(
                f"{self._url}: no HTTP answer: {str(error)[:_SAID]}", hint="is it a Prometheus server?"
            ) from error
        return self._session.answer


_SLOW = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_BROKEN = (
    requests.ConnectionError, urllib3.exceptions.ProtocolError, urllib3.exceptions.IncompleteRead, ConnectionError,
)  # fmt: skip


class _TryAgainError(Exception):
    """The server is busy or starting."""


class _Session(requests.Session):  # type: ignore[misc,unused-ignore]
    """Bounds, checks and remembers one answer at a time."""

    def __init__(self, config: PrometheusConfig, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = True if config.ca_file is None else str(existing(config.ca_file, "prometheus.ca_file"))
        self._config, self._monotonic = config, monotonic
        self._deadline = 0.0
        self.live: set[socket.socket] = set()
        self.answer = Answer(kind="", result=())
        self.aborted = False

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """What is sent within has to be answered by `deadline`."""
        self._deadline, self.aborted = deadline, False
        timer = threading.Timer(max(0.0, deadline - self._monotonic()), self.abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def abort(self) -> None:
        """End every connection, from whichever thread: who reads from it gets an error at once."""
        self.aborted = True
        for each in tuple(self.live):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def send(self, request: Any, **options: Any) -> Any:
        """See `requests.Session`; the response is read whole, or refused."""
        if self._config.token_file is not None:
            request.headers["Authorization"] = f"Bearer {read_token(self._config.token_file)}"
        options.update(stream=True, allow_redirects=False, timeout=max(0.001, self._deadline - self._monotonic()))
        response = super().send(request, **options)
        try:
            body = self._body(response)
        finally:
            response.close()
        self.answer = _judged(response, body)
        response.raw = io.BytesIO(body)
        # The library parses the text again; what was parsed strictly is what it gets.
        response.json = lambda **_: {  # type: ignore[method-assign]
            "status": "success",
            "data": {"result": list(self.answer.result)},
        }
        return response

    def _body(self, response: Any) -> bytearray:
        most, body = self._config.max_body_bytes, bytearray()
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            if len(body) + len(chunk) > most:
                raise InputError(
                    f"{_place(response)}: more than {most} bytes",
                    hint="narrow prometheus.selector, ask for a shorter window, or raise prometheus.max_body_bytes",
                )
            if self._monotonic() > self._deadline:
                raise _late(_place(response))
            body += chunk
        if self.aborted:
            raise _late(_place(response))
        return body


def _judged(response: Any, body: bytearray) -> Answer:
    """The envelope of an answer.

    Raises:
        _TryAgainError, PreconditionError, InputError: it is none.
    """
    place, status = _place(response), int(response.status_code)
    if status in AGAIN:
        raise _TryAgainError(f"it answers {status} {_quoted(body)}")
    if status in (401, 403):
        raise PreconditionError(
            f"{place} refuses us ({status})", hint="name a file with a token: prometheus.token_file"
        )
    if 300 <= status < 400:
        to = str(response.headers.get("Location", "elsewhere"))[:_SAID]
        raise InputError(
            f"{place} sends us on to {to!r}", hint="is there a login in front of it? Name the server itself"
        )
    try:
        document = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        document = _NO_JSON
    if document is _NO_JSON:
        # Not within the handler: the parser's error would come along, and it keeps the whole text.
        raise InputError(
            f"{place} answers {status} and no JSON: {_quoted(body)}",
            hint="is it a Prometheus server, and the whole URL?",
        )
    if not isinstance(document, dict):
        raise InputError(
            f"{place} answers {status} with a {type(document).__name__}", hint="is it a Prometheus server?"
        )
    if status != 200 or document.get("status") != "success":
        said = f"{document.get('errorType', status)}: {document.get('error', _quoted(body))}"
        if status == 404:
            raise InputError(f"{place}: {said[:_SAID]}", hint="is the URL whole? The API is below it at /api/v1")
        raise RefusedQueryError(f"{place} refuses a query: {said[:_SAID]}", hint="mend it in the file of queries")
    data, warnings = document.get("data"), document.get("warnings") or []
    if not isinstance(data, dict) or not isinstance(data.get("result"), list):
        raise InputError(f"{place}: an answer without data.result", hint="is it a Prometheus server?")
    kind = data.get("resultType")
    if not isinstance(kind, str) or not isinstance(warnings, list) or not all(isinstance(w, str) for w in warnings):
        raise InputError(f"{place}: resultType or warnings of a wrong type", hint="is it a Prometheus server?")
    told = tuple(w[:_SAID] for w in warnings[:_MAX_WARNINGS])
    return Answer(kind=kind, result=tuple(data["result"]), warnings=told)


class _Watched:
    """A connection whose socket can be shut from another thread, also while it speaks TLS.

    TLS takes the socket over; a duplicate of its descriptor stays ours.
    """

    live: set[socket.socket]
    _own: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        self._own = made.dup()
        self.live.add(self._own)
        return made

    def close(self) -> None:
        super().close()  # type: ignore[misc]
        if self._own is not None:
            self.live.discard(self._own)
            self._own.close()
            self._own = None


class _Adapter(requests.adapters.HTTPAdapter):  # type: ignore[misc,unused-ignore]
    """Connections that are entered in `live` while they last; retries are the channel's."""

    def __init__(self, live: set[socket.socket]) -> None:
        self._live = live
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See `requests.adapters.HTTPAdapter`."""
        super().init_poolmanager(*arguments, **options)
        own = {"live": self._live}
        plain = type("PlainConnection", (_Watched, HTTPConnection), own)
        secure = type("SecureConnection", (_Watched, HTTPSConnection), own)
        self.poolmanager.pool_classes_by_scheme = {
            "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds // 1000}.{milliseconds % 1000:03d}"


def _place(response: Any) -> str:
    return str(response.url).partition("?")[0][:_SAID]


def _quoted(body: bytearray) -> str:
    return repr(body[:80].decode("utf-8", errors="replace"))


def _root(error: BaseException) -> str:
    """The words of the error that was first: the ones around it repeat the whole query."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error)[:_SAID]


def _late(place: str) -> NatworkError:
    return TimedOutError(
        f"{place} did not answer in time", hint="raise prometheus.timeout_s, ask for less, or look at its load"
    )
