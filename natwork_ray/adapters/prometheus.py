"""Live telemetry from a Prometheus server: the twelve metrics of D3.3 Table 1, and nodes as section 4.2 asks.

One window is one round of range queries, one per metric, and one per guard. A guard is a counter of the same scrape; it
tells when the scrape was last seen and whether the counter began, went back or was restarted within the window of a
rate. What the guard does not vouch for is masked (NaN):

| case | gauges | rates and quantiles |
|---|---|---|
| no scrape, or the last one too old | NaN | NaN |
| one scrape missing within the range | | kept: a counter's increase over the gap is known |
| fewer scrapes than `masks.min_scrapes` | | NaN |
| series began within the range (new pod, new target) | | NaN until it is older than the range |
| counter went back, or the container was restarted | | NaN until that has left the range |
| no requests in the range | | latencies NaN, throughput 0 |
| infinite, negative, or beyond what can be (10^9 too large) | NaN | NaN |
| two series of one container that differ | NaN | NaN |
| a query that the server refuses, or does not answer in time | NaN | NaN |

Each case is told in `Observation.degraded`. A server that is down, slow or no Prometheus at all is an error with a
hint; it is never a window that looks normal. A pod's network and a service's requests are given to each of its
containers, since nobody can tell them apart.

Left out: flows by source, which Prometheus does not have; native histograms.

    telemetry = PrometheusTelemetry(PrometheusConfig(), step_s=10.0)
    observation = await telemetry.observation(end_s=time.time(), length=10)
"""

from __future__ import annotations

import asyncio
import math
import queue
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from natwork_ray.adapters.prometheus_masks import Answered, Answers, Observation, assembled
from natwork_ray.adapters.prometheus_queries import NodeQueries, Spacing, read_queries
from natwork_ray.adapters.prometheus_series import Grid, Series, matrix, vector
from natwork_ray.adapters.prometheus_session import Answer, Channel, RefusedQueryError
from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.telemetry import FlowShare, NodeUsage, TelemetryWindow
from natwork_ray.errors import InputError, NatworkError, PreconditionError, TimedOutError

Key = TypeVar("Key", bound=Hashable)

# A server answers no more moments per series.
MAX_LENGTH = 11_000
CHANNELS = 4
# Clocks of two machines differ; a server that is asked for a moment just ahead of its own answers with what it has.
AHEAD_S = 5.0
# The channels keep the deadline themselves; this is for a name that nobody resolves.
_GRACE_S = 1.0


class Asking(Protocol):
    """A way to ask one query at a time: see `Channel`."""

    def range(self, query: str, *, start_ms: int, end_ms: int, step_ms: int, deadline: float) -> Answer:
        """A query at every step."""
        ...

    def instant(self, query: str, *, at_ms: int, deadline: float) -> Answer:
        """A query at one moment."""
        ...

    def close(self) -> None:
        """Give the connection up."""
        ...


class PrometheusTelemetry:
    """`TelemetrySource` over a Prometheus server. Asking is concurrent, over a few connections that are kept.

    Args:
        config: where the server is, and what is asked.
        step_s: seconds between samples, whole milliseconds.
        now_s: seconds since the epoch: windows cannot end later.
        monotonic, sleep: the clock of deadlines, and how a retry waits.
        connect: makes a connection; by default one to the server.

    Raises:
        ConfigError, UsageError: the configuration, the file of queries or the step cannot be used. Nothing was asked.
    """

    def __init__(
        self,
        config: PrometheusConfig,
        *,
        step_s: float,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        connect: Callable[[], Asking] | None = None,
    ) -> None:
        connect = connect or (lambda: Channel(config, monotonic=monotonic, sleep=sleep))
        self.step_s = step_s
        self._config, self._now_s, self._monotonic = config, now_s, monotonic
        self._spacing = Spacing.of(step_s=step_s, scrape_interval_s=config.scrape_interval_s)
        self._queries = read_queries(config.queries).filled(config, self._spacing)
        self._own = tuple(connect() for _ in range(CHANNELS))
        self._channels: queue.SimpleQueue[Asking] = queue.SimpleQueue()
        for channel in self._own:
            self._channels.put(channel)
        self._pool = ThreadPoolExecutor(max_workers=CHANNELS, thread_name_prefix="prometheus")

    def close(self) -> None:
        """Give the connections up; whoever still waits for an answer gets an error."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for channel in self._own:
            channel.close()

    async def window(self, *, end_s: float, length: int) -> TelemetryWindow:
        """See `TelemetrySource`. What the window lacks, and why, is told by `observation`.

        Raises:
            InputError: also where the server's answer is none.
            PreconditionError, TimedOutError: the server is down, refuses us, or is too slow.
        """
        return (await self.observation(end_s=end_s, length=length)).window

    async def observation(self, *, end_s: float, length: int) -> Observation:
        """The window of `window`, with what has to be said of it. Raises as `window` does."""
        self._check_moment(end_s)
        if not 1 <= length <= MAX_LENGTH:
            raise InputError(f"a window of {length} samples", hint=f"1 to {MAX_LENGTH}")
        grid = Grid(end_ms=round(end_s * 1000), step_ms=self._spacing.step_ms, length=length)
        if grid.start_ms < 0:
            raise InputError(f"a window that begins {-grid.start_ms} ms before 1970", hint="ask for fewer samples")
        asked: dict[tuple[str, str], str] = {}
        for metric, each in self._queries.metrics.items():
            asked |= {(part, metric): q for part in ("query", "limit", "node_cores") if (q := getattr(each, part))}
        for name in self._queries.guards:
            asked["guard", name] = self._queries.guard_query(name, self._config, self._spacing)

        def ask(channel: Asking, text: str, deadline: float) -> Answered:
            answer = channel.range(
                text, start_ms=grid.start_ms, end_ms=grid.end_ms, step_ms=grid.step_ms, deadline=deadline
            )
            return Answered(matrix(answer.result, grid), warnings=answer.warnings)

        answered = await self._ask(asked, ask, vital=lambda key: key[0] == "guard")
        parts = {
            part: next((a for (p, _), a in answered.items() if p == part), Answered())
            for part in ("limit", "node_cores")
        }
        answers = Answers(
            metrics={m: answered["query", m] for m in self._queries.metrics},
            guards={name: answered["guard", name] for name in self._queries.guards},
            limit=parts["limit"],
            node_cores=parts["node_cores"],
        )
        return assembled(
            self._queries, answers, service_label=self._config.service_label, grid=grid, spacing=self._spacing
        )

    async def node_usage(self, *, at_s: float) -> tuple[NodeUsage, ...]:
        """See `TelemetrySource`. A node without CPU or memory is left out; network that is not measured is NaN."""
        self._check_moment(at_s)
        at_ms = round(at_s * 1000)
        asked = {f.name: q for f in fields(NodeQueries) if (q := getattr(self._queries.nodes, f.name))}

        def ask(channel: Asking, text: str, deadline: float) -> Answered:
            return Answered(vector(channel.instant(text, at_ms=at_ms, deadline=deadline).result, at_ms))

        answered = await self._ask(asked, ask, vital=lambda _: False)
        found: dict[str, dict[str, float]] = {}
        for name, each in answered.items():
            for series in each.series:
                _put(found, series, self._config.node_label, name)
        return tuple(_usage(node, parts, at_s) for node, parts in sorted(found.items()) if parts.keys() >= _NEEDED)

    async def flows(self, containers: Sequence[str], *, at_s: float) -> Mapping[str, tuple[FlowShare, ...]]:
        """Not measured."""
        return dict.fromkeys(containers, ())

    def _check_moment(self, at_s: float) -> None:
        if not math.isfinite(at_s) or not 0 <= at_s <= self._now_s() + AHEAD_S:
            raise InputError(f"nothing was measured at {at_s} s", hint="ask for a moment of the past, or now")

    async def _ask(
        self,
        asked: Mapping[Key, str],
        ask: Callable[[Asking, str, float], Answered],
        *,
        vital: Callable[[Key], bool],
    ) -> dict[Key, Answered]:
        """Every query's answer. What one metric lacks is its `failure`; without the vital ones there is none at all."""
        loop, deadline = asyncio.get_running_loop(), self._monotonic() + self._config.timeout_s
        hopeless: list[NatworkError] = []

        def one(text: str) -> Answered:
            channel = self._channels.get()
            try:
                if hopeless:
                    raise hopeless[0]
                return ask(channel, text, deadline)
            except NatworkError as error:
                _let_go(error)
                if not isinstance(error, _OF_ONE_QUERY):
                    hopeless.append(error)  # nothing more is asked of a server that is not to be believed
                raise
            finally:
                self._channels.put(channel)

        waiting = {key: loop.run_in_executor(self._pool, one, text) for key, text in asked.items()}
        if waiting:
            await asyncio.wait(waiting.values(), timeout=self._config.timeout_s + _GRACE_S)
        answered: dict[Key, Answered] = {}
        failures: list[NatworkError] = []
        for key, future in waiting.items():
            try:
                answered[key] = future.result() if future.done() else _unanswered(future, self._config)
            except _OF_ONE_QUERY as error:
                if vital(key):
                    _forget(waiting.values())
                    raise
                failures.append(error)
                answered[key] = Answered(failure=f"{error.what} ({error.hint})")
            except NatworkError:  # an answer that is none: the whole server is not to be believed
                _forget(waiting.values())
                raise
        if failures and len(failures) == len(waiting):
            raise failures[0]
        return answered


# What one query can suffer while the others are still believed.
_OF_ONE_QUERY = (RefusedQueryError, PreconditionError, TimedOutError)
_NEEDED = {"containers", "cpu_cores_used", "cpu_cores", "memory_bytes_used", "memory_bytes"}


def _put(found: dict[str, dict[str, float]], series: Series, label: str, name: str) -> None:
    number = float(series.values[0])
    if label in series.labels and math.isfinite(number) and number >= 0:
        found.setdefault(series.labels[label], {})[name] = number


def _usage(node: str, parts: Mapping[str, float], at_s: float) -> NodeUsage:
    return NodeUsage(
        node=node,
        at_s=at_s,
        containers=int(parts["containers"]),
        cpu_cores_used=parts["cpu_cores_used"],
        cpu_fraction=parts["cpu_cores_used"] / parts["cpu_cores"] if parts["cpu_cores"] else math.nan,
        memory_bytes_used=parts["memory_bytes_used"],
        memory_fraction=parts["memory_bytes_used"] / parts["memory_bytes"] if parts["memory_bytes"] else math.nan,
        network_rx_bytes_per_s=parts.get("network_rx_bytes_per_s", math.nan),
        network_tx_bytes_per_s=parts.get("network_tx_bytes_per_s", math.nan),
    )


def _unanswered(future: asyncio.Future[Any], config: PrometheusConfig) -> Answered:
    future.cancel()
    raise TimedOutError(
        f"{config.url} did not answer within {config.timeout_s:g} s", hint="is its name known, and the machine up?"
    )


def _let_go(error: BaseException) -> None:
    """Empty the frames of a traceback: errors wait until every query has ended, and frames hold whole answers."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _forget(futures: Any) -> None:
    """Take note of errors that nobody is going to ask for, one of them being raised."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()
