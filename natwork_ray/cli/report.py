"""The run report: one HTML file that tells a run from telemetry to audit, and opens offline.

What is in it: headline figures, a lane chart of truth, verdicts, decisions and actions (the loop of D3.3 section 6.1),
metrics per container, decisions with the alternatives that were rejected, migrations with their phases, downtime
quota, node usage, placement before and after, and how to verify the audit log.

Rules kept
1. No network: scripts, styles and data are inside, and a Content-Security-Policy allows nothing else. Scripts run only
   by their SHA-256, so that a container with a hostile name cannot bring one along.
2. Tables and decisions are plain HTML and readable without JavaScript; only the plots need it.
3. Equal records give equal bytes.
4. Long runs are thinned by keeping the smallest and the largest value of each bucket, because a mean would hide the
   spikes that the report is about. What was left out is said in the report.

    write_report(record, Path("runs/demo/report.html"))
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from natwork_ray.cli.report_sections import Timeline, headline, sections
from natwork_ray.domain.runs import RunRecord
from natwork_ray.domain.telemetry import METRICS, N_METRICS
from natwork_ray.errors import PreconditionError, StoreError

MAX_VALUES = 400_000  # metric values in the file: about 2.5 MB
MIN_POINTS = 120  # below that many points per curve, containers are left out instead
_PLACE = re.compile(r"\{\{([A-Z_]+)\}\}")


def write_report(record: RunRecord, path: Path) -> None:
    """Write the report of a run to `path`, making its folder.

    Raises:
        PreconditionError: plotly is not installed.
        StoreError: the file cannot be written.
    """
    page = render_report(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page.encode("utf-8"))
    except OSError as error:
        raise StoreError(
            f"cannot write the report {path}: {error.strerror}", hint="choose a folder that you may write to"
        ) from error


def render_report(record: RunRecord) -> str:
    """The report as HTML text.

    Raises:
        PreconditionError: plotly is not installed.
    """
    templates = files("natwork_ray.cli") / "templates"
    plotly, script = _plotly_js(), (templates / "report.js").read_text(encoding="utf-8")
    timeline = Timeline.of(record)
    data = run_data(record, timeline)
    return _fill(
        (templates / "report.html").read_text(encoding="utf-8"),
        {
            "TITLE": escape(f"natwork run: {record.scenario}, seed {record.seed}"),
            "CSP": escape(_content_security_policy(plotly, script), quote=True),
            "STYLE": (templates / "report.css").read_text(encoding="utf-8"),
            "HEADLINE": headline(record, timeline),
            "DATA": _json_in_html(data),
            "PLOTLY": plotly,
            "SCRIPT": script,
            **sections(record, timeline),
        },
    )


def run_data(record: RunRecord, timeline: Timeline) -> dict[str, object]:
    """What the plots are drawn from; times in seconds since the loop took charge."""
    shown = _containers_shown(record)
    points = max(MIN_POINTS, MAX_VALUES // (max(1, len(shown)) * N_METRICS))
    window = record.telemetry
    row = {name: i for i, name in enumerate(window.containers)}
    step, curves = _thin(window.values[[row[n] for n in shown]], points)
    first = timeline.since(window.end_s) - window.step_s * (window.length - 1)
    involved = {e.container for e in record.truth} | {v.container for v in record.verdicts}
    involved |= {d.container for d in record.decisions}
    lanes = [c for c in window.containers if len(window.containers) <= 30 or c in involved]
    return {
        "containers": shown,
        "lanes": lanes + sorted(involved - set(window.containers)),
        "metrics": [str(m) for m in METRICS],
        "first": round(first, 3),
        "step": round(step * window.step_s, 6),
        "end": round(timeline.since(record.ended_s), 3),
        "leftOut": len(window.containers) - len(shown),
        "thinned": step != 1,
        "values": _Raw(_curves_json(curves)),
        "truth": [
            [e.container, e.kind, round(timeline.since(e.start_s), 3), round(timeline.since(e.end_s), 3)]
            for e in record.truth
        ],
        "verdicts": [
            [
                v.container,
                str(v.kind),
                round(timeline.since(v.at_s), 3),
                round(v.score, 3),
                round(v.confidence, 3),
                v.drivers[0].metric if v.drivers else "",
            ]
            for v in record.verdicts
        ],
        "decisions": [
            [d.container, str(d.mitigation), round(timeline.since(d.at_s), 3), d.id, str(d.status)]
            for d in record.decisions
        ],
        "actions": [
            [
                a.container,
                a.name,
                round(timeline.since(a.outcome.started_at_s), 3),
                round(timeline.since(a.outcome.finished_at_s), 3),
                a.outcome.done,
                round(a.outcome.downtime_s, 4),
            ]
            for a in timeline.actions
        ],
        "quota": [
            [q.container, round(q.spent_s, 4), round(q.reserved_s, 4), round(q.budget_s, 4)]
            for q in sorted(record.quota, key=lambda q: (-(q.spent_s + q.reserved_s), q.container))
        ],
        "nodes": _node_curves(record, timeline),
    }


class _Raw(str):
    """JSON that is written already."""


def _containers_shown(record: RunRecord) -> list[str]:
    """Those whose metrics are kept: all when they fit, else first those with a story."""
    names = record.telemetry.containers
    most = max(1, MAX_VALUES // (MIN_POINTS * N_METRICS))
    if len(names) <= most:
        return list(names)
    story = {e.container for e in record.truth} | {d.container for d in record.decisions}
    flagged = {v.container for v in record.verdicts}
    order = sorted(range(len(names)), key=lambda i: (names[i] not in story, names[i] not in flagged, i))
    return [names[i] for i in sorted(order[:most])]


def _thin(values: NDArray[np.float32], points: int) -> tuple[float, NDArray[np.float32]]:
    """(samples per point, curves): the extremes of each bucket in the order of their time, NaN for empty buckets.

    `values` is (N, T, 12), the result (N, P, 12) with P at most `points` + 1.
    """
    n, length, metrics = values.shape
    if length <= points:
        return 1.0, values
    bucket = -(-length // (points // 2))
    buckets = -(-length // bucket)
    padded = np.full((n, buckets * bucket, metrics), np.nan, dtype=np.float32)
    padded[:, :length] = values
    cut = padded.reshape(n, buckets, bucket, metrics)
    empty = np.isnan(cut).all(axis=2)
    low_at = np.where(np.isnan(cut), np.inf, cut).argmin(axis=2)
    high_at = np.where(np.isnan(cut), -np.inf, cut).argmax(axis=2)
    low = np.take_along_axis(cut, low_at[:, :, None], axis=2)[:, :, 0]
    high = np.take_along_axis(cut, high_at[:, :, None], axis=2)[:, :, 0]
    low[empty] = high[empty] = np.nan
    first, second = np.where(low_at <= high_at, low, high), np.where(low_at <= high_at, high, low)
    return bucket / 2, np.stack([first, second], axis=2).reshape(n, buckets * 2, metrics)


def _curves_json(curves: NDArray[np.float32]) -> str:
    """`[container][metric][point]`, four significant digits, null where nothing was measured."""
    return _list(
        _list(_list(_number(x) for x in curve) for curve in container)
        for container in np.moveaxis(curves, 2, 1).tolist()
    )


def _list(items: object) -> str:
    return f"[{','.join(items)}]"  # type: ignore[arg-type]


def _number(x: float) -> str:
    return f"{x:.4g}" if np.isfinite(x) else "null"


def _node_curves(record: RunRecord, timeline: Timeline) -> list[list[object]]:
    """Per node: name, times, CPU and memory fractions, at most 600 moments each."""
    by_node: dict[str, list[tuple[float, float, float]]] = {}
    for usage in record.node_usage:
        by_node.setdefault(usage.node, []).append(
            (
                round(timeline.since(usage.at_s), 1),
                round(usage.cpu_fraction, 4),
                round(usage.memory_fraction, 4),
            )
        )
    return [
        [node, *(list(column) for column in zip(*samples[:: -(-len(samples) // 600)], strict=True))]
        for node, samples in sorted(by_node.items())
    ]


def _json_in_html(data: Mapping[str, object]) -> str:
    """JSON that may stand inside a script element: no character of it can end the element or open a comment."""
    parts = []
    for key, item in data.items():
        text = item if isinstance(item, _Raw) else json.dumps(item, separators=(",", ":"), allow_nan=False)
        parts.append(f"{json.dumps(key)}:{text}")
    joined = "{" + ",\n".join(parts) + "}"
    return joined.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _content_security_policy(*scripts: str) -> str:
    digests = (base64.b64encode(sha256(s.encode("utf-8")).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly sets style attributes and draws its picture download through data: and blob: addresses.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise PreconditionError(
            "the report needs plotly, which is not installed", hint="pip install 'natwork-ray[plots]'"
        ) from error
    return str(get_plotlyjs())


def _fill(template: str, parts: Mapping[str, str]) -> str:
    # One pass: what a part holds is never searched for places itself.
    return _PLACE.sub(lambda found: parts[found[1]], template)
