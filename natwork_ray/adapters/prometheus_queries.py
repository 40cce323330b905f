"""The file of queries that a Prometheus server is asked: read, checked, and filled in.

One file, which an operator can copy and edit (`prometheus.queries`), holds one PromQL query per metric of D3.3 Table 1,
the node aggregates of section 4.2, and the counters from which masks are made. This module knows the form of that file
and nothing of servers. What is wrong in it is found before anything is sent, and named.

Left out: a check of PromQL itself, which only the server can give; it refuses a query in words, and they are passed on.

    >>> queries = read_queries(None)                               # the shipped file
    >>> spacing = Spacing.of(step_s=10.0, scrape_interval_s=0.0)
    >>> queries.filled(PrometheusConfig(), spacing).metrics[Metric.MEMORY_RSS].query
    'sum by (namespace, pod, container) (container_memory_rss{container!="",container!="POD"})'
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import field, fields, replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pydantic import TypeAdapter, ValidationError

from natwork_ray.config import PrometheusConfig
from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.domain.values import value
from natwork_ray.errors import ConfigError, UsageError

RATE_INTERVALS = 4
MAX_FILE_BYTES = 262_144
MAX_QUERY = 8_192
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,99}")
# What can be put before `[5m]` and `offset 5m`: a name, matchers in braces, or both.
_SERIES = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^{}]*\})?|\{[^{}]+\}", re.DOTALL)
_RATE_WORD = re.compile(r"\$(\{range\}|range)(?![a-zA-Z0-9_])")
_WORDS = ("by", "selector", "node", "range", "step", "interval")


@value
class Spacing:
    """Distances in time, whole milliseconds, as PromQL writes them."""

    step_ms: int
    interval_ms: int

    @classmethod
    def of(cls, *, step_s: float, scrape_interval_s: float) -> Spacing:
        """Samples every `step_s`, scrapes every `scrape_interval_s` (0: as often).

        Raises:
            UsageError: not positive, or finer than a millisecond.
        """
        found = []
        for name, seconds in (("step", step_s), ("scrape interval", scrape_interval_s or step_s)):
            milliseconds = round(seconds * 1000)
            if milliseconds < 1 or abs(milliseconds - seconds * 1000) > 1e-6:
                raise UsageError(f"{name} of {seconds} s", hint="whole milliseconds, at least one")
            found.append(milliseconds)
        return cls(step_ms=found[0], interval_ms=found[1])

    @property
    def range_ms(self) -> int:
        """Window of rates: at least four scrape intervals, and no increase between two samples is ever left out."""
        return max(RATE_INTERVALS * self.interval_ms, self.step_ms + self.interval_ms)


@value
class IdentityLabels:
    """Labels that name a container; their order is that of its name."""

    namespace: str = "namespace"
    pod: str = "pod"
    container: str = "container"


@value
class Masks:
    """When a sample does not count (see the file)."""

    min_scrapes: int = 3
    stale_after_intervals: float = 3.0


@value
class Guard:
    """A counter of the same scrape, and a gauge that changes at a restart ('' for none): plain series selectors."""

    series: str
    starts: str = ""


@value
class MetricQuery:
    """How one metric is asked for.

    Attributes:
        query: PromQL; cores for `Metric.CPU`.
        guard: name of its guard, '' for none.
        limit, node_cores: for `Metric.CPU` only, cores of the container's limit and of its node.
        rate: whether it looks back over `$range`, so that a mask has to cover all of that.
    """

    query: str
    guard: str = ""
    limit: str = ""
    node_cores: str = ""
    rate: bool = False


@value
class NodeQueries:
    """One query per node aggregate, '' for none."""

    containers: str = ""
    cpu_cores_used: str = ""
    cpu_cores: str = ""
    memory_bytes_used: str = ""
    memory_bytes: str = ""
    network_rx_bytes_per_s: str = ""
    network_tx_bytes_per_s: str = ""


@value
class Queries:
    """The whole file. As read, with placeholders; as `filled` gives it, ready to be sent.

    Attributes:
        metrics: by metric; what an operator cannot measure may be left out.
        guards: by name.
    """

    metrics: Mapping[Metric, MetricQuery]
    guards: Mapping[str, Guard] = field(default_factory=dict)
    labels: IdentityLabels = IdentityLabels()
    masks: Masks = Masks()
    nodes: NodeQueries = NodeQueries()

    def filled(self, config: PrometheusConfig, spacing: Spacing) -> Queries:
        """The queries with their placeholders replaced.

        Raises:
            ConfigError: an unknown placeholder, or a label or selector in the configuration that cannot be one.
        """
        words = self._words(config, spacing)

        def fill(text: str, place: str) -> str:
            try:
                return Template(text).substitute(words).strip()
            except (KeyError, ValueError) as error:
                raise ConfigError(
                    f"queries, {place}: unknown placeholder {error}",
                    hint=f"there are {', '.join('$' + word for word in _WORDS)}; write $$ for a dollar sign",
                ) from error

        metrics = {}
        for metric, each in self.metrics.items():
            parts = {name: fill(getattr(each, name), f"{metric}.{name}") for name in ("query", "limit", "node_cores")}
            metrics[metric] = replace(each, rate=bool(_RATE_WORD.search(each.query)), **parts)
        guards = {
            name: Guard(series=fill(each.series, f"{name}.series"), starts=fill(each.starts, f"{name}.starts"))
            for name, each in self.guards.items()
        }
        for name, guard in guards.items():
            for part in (guard.series, guard.starts):
                if part and not _SERIES.fullmatch(part):
                    raise ConfigError(
                        f"queries, guard {name}: {part[:200]!r} is no plain series selector",
                        hint="write a name and matchers in braces, such as up{job='x'}: no function, no range",
                    )
        nodes = NodeQueries(**{f.name: fill(getattr(self.nodes, f.name), f.name) for f in fields(NodeQueries)})
        return replace(self, metrics=metrics, guards=guards, nodes=nodes)

    def guard_query(self, name: str, config: PrometheusConfig, spacing: Spacing) -> str:
        """What is asked of a guard (of `filled` queries): one answer with a label `natwork_guard`.

        `age_s` since its youngest sample, `scrapes` and `resets` within the range, and `before`, there if each of its
        series was already there at the range's beginning: a container that was made anew has new ones.
        """
        by, guard, window = self._words(config, spacing)["by"], self.guards[name], f"{spacing.range_ms}ms"
        asked = {
            "age_s": f"time() - max by ({by}) (timestamp({guard.series}))",
            "scrapes": f"min by ({by}) (count_over_time({guard.series}[{window}]))",
            "resets": f"max by ({by}) (resets({guard.series}[{window}]))",
            "before": f"count by ({by}) ({guard.series} offset {window} and {guard.series})"
            f" >= count by ({by}) ({guard.series})",
        }
        if guard.starts:
            asked["restarts"] = f"max by ({by}) (changes({guard.starts}[{window}]))"
        return " or ".join(
            f'label_replace({query}, "natwork_guard", "{part}", "", "")' for part, query in asked.items()
        )

    def _words(self, config: PrometheusConfig, spacing: Spacing) -> dict[str, str]:
        kept = [self.labels.namespace, self.labels.pod, self.labels.container]
        if config.service_label not in kept:
            kept.append(config.service_label)
        for label in (*kept, config.node_label):
            if not _LABEL.fullmatch(label):
                raise ConfigError(f"{label!r} is no name of a label", hint="letters, digits and underscores")
        if "{" in config.selector or "}" in config.selector:
            raise ConfigError(
                f"prometheus.selector = {config.selector!r}", hint='only matchers, without braces: namespace="shop"'
            )
        return {
            "by": ", ".join(kept),
            "selector": config.selector,
            "node": config.node_label,
            "range": f"{spacing.range_ms}ms",
            "step": f"{spacing.step_ms}ms",
            "interval": f"{spacing.interval_ms}ms",
        }


def read_queries(path: Path | None) -> Queries:
    """Read a file of queries; without a path the shipped one.

    Raises:
        ConfigError: unreadable, or not of the form that the shipped file shows; the message names the place.
    """
    source = "the shipped queries" if path is None else str(path)
    try:
        data = _read(path)
        table = tomllib.loads(data[:MAX_FILE_BYTES].decode("utf-8"))
    except (OSError, ValueError, RuntimeError, RecursionError) as error:  # ValueError: UTF-8, TOML
        raise ConfigError(f"cannot read {source}: {error}", hint="it must be a TOML file of queries") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{source} is larger than {MAX_FILE_BYTES} bytes", hint="it must be a file of queries")
    try:
        return parse_queries(table)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.what}", hint=error.hint) from error


def _read(path: Path | None) -> bytes:
    if path is None:
        return (files("natwork_ray.adapters") / "prometheus_queries.toml").read_bytes()
    with path.expanduser().open("rb") as stream:
        return stream.read(MAX_FILE_BYTES + 1)


def parse_queries(table: Mapping[str, Any]) -> Queries:
    """Check what a TOML file held.

    Raises:
        ConfigError: unknown or missing keys, wrong types, a guard that is not there.
    """
    for name, each in table.get("metrics", {}).items() if isinstance(table.get("metrics"), Mapping) else ():
        if isinstance(each, Mapping) and "rate" in each:
            raise ConfigError(f"metrics.{name}.rate", hint="leave it out: it follows from $range in the query")
    try:
        # Enumerations and whole numbers come as TOML's own types, so lax mode is only lax about names of metrics.
        queries: Queries = _FORM.validate_python(dict(table))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{where}: {first['msg']}", hint="compare with the shipped file (docs/prometheus.md)"
        ) from error
    _check(queries)
    return queries


_FORM: TypeAdapter[Queries] = TypeAdapter(Queries)


def _check(queries: Queries) -> None:
    if not queries.metrics:
        raise ConfigError("no metric has a query", hint=f"write [metrics.NAME], one or more of {', '.join(METRICS)}")
    for metric, each in queries.metrics.items():
        if each.guard and each.guard not in queries.guards:
            raise ConfigError(f"{metric}: there is no guard {each.guard!r}", hint=f"write [guards.{each.guard}]")
        if metric is not Metric.CPU and (each.limit or each.node_cores):
            raise ConfigError(f"{metric}: limit and node_cores", hint=f"only {Metric.CPU} has them")
        if metric is Metric.CPU and not (each.limit or each.node_cores):
            raise ConfigError(
                f"{metric}: neither limit nor node_cores", hint="cores need something to be a fraction of"
            )
    texts = [t for q in queries.metrics.values() for t in (q.query, q.limit, q.node_cores)]
    texts += [t for g in queries.guards.values() for t in (g.series, g.starts)]
    texts += [getattr(queries.nodes, f.name) for f in fields(NodeQueries)]
    if any(len(text) > MAX_QUERY for text in texts):
        raise ConfigError(f"a query is longer than {MAX_QUERY} characters", hint="use a recording rule on the server")
    if not all(q.query.strip() for q in queries.metrics.values()):
        raise ConfigError("a metric has an empty query", hint="leave the metric out instead")
    if queries.masks.min_scrapes < 2 or not 1 <= queries.masks.stale_after_intervals <= 100:
        raise ConfigError(
            "masks: min_scrapes below 2, or stale_after_intervals outside 1 to 100", hint="see the shipped file"
        )
    for label in (queries.labels.namespace, queries.labels.pod, queries.labels.container):
        if not _LABEL.fullmatch(label):
            raise ConfigError(f"{label!r} is no name of a label", hint="letters, digits and underscores")
