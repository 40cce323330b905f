"""What a running watch says: a line when something about a container changes, or JSON lines; with `--once`, one table.

The JSON lines are objects with an `event`: began, learnt, remarks, verdict (one per container and step), failed (the
server had no answer), skipped, ended.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from natwork_ray.cli.output import Format, printable, talk, write_json, write_rows
from natwork_ray.config import Config
from natwork_ray.domain.anomaly import Driver
from natwork_ray.domain.values import plain, value
from natwork_ray.errors import NatworkError, PreconditionError
from natwork_ray.profiling.commissioning import Learnt

HOUR_S = 3600.0
COLUMNS = ("time", "container", "verdict", "score", "profile", "drivers", "degraded")


@value
class WatchOptions:
    """How a server is followed.

    Attributes:
        commissioning_s: how long each service's commissioning lasts.
        once: judge the newest sample, and end.
        for_s: end after so long; None goes on until interrupted.
        as_json: JSON lines instead of a running table.
    """

    commissioning_s: float = HOUR_S
    once: bool = False
    for_s: float | None = None
    as_json: bool = False


@value
class Row:
    """What is said of one container at one moment.

    Attributes:
        score: stage 1; None where it could not be judged.
        anomalous: None where it could not be judged.
        type: stage 2's class of what was flagged; None otherwise.
        profile: whose profile it was judged by; `profile_s`: how many seconds that was learnt from.
        degraded: why this rests on less than it should; empty when it does not.
    """

    at_s: float
    container: str
    service: str
    score: float | None
    anomalous: bool | None
    type: str | None
    confidence: float | None
    drivers: tuple[Driver, ...]
    profile: str
    profile_s: float
    degraded: tuple[str, ...]


@value
class Judged:
    """One step: a row per container, what was learnt, and what concerns all."""

    at_s: float
    rows: tuple[Row, ...]
    learnt: tuple[Learnt, ...]
    degraded: tuple[str, ...]
    notes: tuple[str, ...]


def show_once(judged: Judged, options: WatchOptions, model: str) -> None:
    """One step as one table, or one JSON object.

    Raises:
        PreconditionError: after that, if no container could be judged.
    """
    if options.as_json:
        write_json({"model": model, "rows": [plain(row) for row in judged.rows], **_context(judged)})
    else:
        for text in (*judged.degraded, *judged.notes):
            talk.print(printable(text), soft_wrap=True)
        write_rows([_cells(row) for row in judged.rows], COLUMNS, Format.TABLE, title="verdicts")
    if all(row.anomalous is None for row in judged.rows):
        raise PreconditionError(
            "no container could be judged", hint="the reasons stand in the rows; does the server scrape them?"
        )


def _context(judged: Judged) -> dict[str, Any]:
    return {
        "at_s": judged.at_s,
        "learnt": [plain(each) for each in judged.learnt],
        "degraded": list(judged.degraded),
        "notes": list(judged.notes),
    }


@dataclass
class Page:
    """What a running watch writes, step by step, and what it came to."""

    as_json: bool
    steps: int = 0
    rows: int = 0
    anomalous: int = 0
    unjudged: int = 0
    failures: int = 0
    _before: dict[str, tuple[object, ...]] = field(default_factory=dict)
    _said: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _failing: str = ""

    def begin(self, config: Config, options: WatchOptions, model: str) -> None:
        """What is being done."""
        about = {"model": model, "url": config.prometheus.url, "step_s": config.loop.step_s}
        if self.as_json:
            write_json({"event": "began", **about, "commissioning_s": options.commissioning_s})
            return
        talk.print(printable(f"{about['url']} every {config.loop.step_s:g} s, model {model}"), soft_wrap=True)
        if options.commissioning_s < HOUR_S:
            talk.print(
                f"Profiles are learnt from {options.commissioning_s:g} s of normal operation, not from an hour: expect "
                "more false alarms.",
                soft_wrap=True,
            )

    def judged(self, judged: Judged) -> None:
        """One step."""
        self.steps += 1
        self._failing = ""
        self.rows += len(judged.rows)
        self.anomalous += sum(row.anomalous is True for row in judged.rows)
        self.unjudged += sum(row.anomalous is None for row in judged.rows)
        said = {"degraded": judged.degraded, "notes": judged.notes}
        if self.as_json:
            for learnt in judged.learnt:
                write_json({"event": "learnt", "at_s": judged.at_s, **plain(learnt)})
            if said != self._said:
                write_json({"event": "remarks", "at_s": judged.at_s, **{k: list(v) for k, v in said.items()}})
            for row in judged.rows:
                write_json({"event": "verdict", **plain(row)})
        else:
            for learnt in judged.learnt:
                text = f"{learnt.service}: {learnt.basis} profile from {learnt.measured_s:g} s"
                talk.print(f"{_clock(judged.at_s)}  {printable(text)}", soft_wrap=True)
            for text in [t for kind, texts in said.items() for t in texts if t not in self._said.get(kind, ())]:
                talk.print(f"{_clock(judged.at_s)}  {printable(text)}", soft_wrap=True)
            for row in judged.rows:
                self._line(row)
        self._said = said

    def failed(self, at_s: float, error: NatworkError) -> None:
        """One step without an answer: nothing is known of this moment."""
        self.failures += 1
        self._before.clear()  # what comes back is said again
        if self.as_json:
            write_json({"event": "failed", "at_s": at_s, "error": error.what, "hint": error.hint})
        elif error.what != self._failing:
            text = f"not judged: {error.what} ({error.hint})"
            talk.print(f"{_clock(at_s)}  {printable(text)}", style="red", soft_wrap=True)
        self._failing = error.what

    def skipped(self, at_s: float, steps: int) -> None:
        """Steps that were not judged, because the server took too long."""
        if self.as_json:
            write_json({"event": "skipped", "at_s": at_s, "steps": steps})
        else:
            talk.print(f"{_clock(at_s)}  {steps} steps not judged: the server is slower than the step", soft_wrap=True)

    def end(self) -> None:
        """What it came to."""
        counts = {
            "steps": self.steps,
            "rows": self.rows,
            "anomalous": self.anomalous,
            "unjudged": self.unjudged,
            "failures": self.failures,
        }
        if self.as_json:
            write_json({"event": "ended", **counts})
        else:
            talk.print(", ".join(f"{count} {name}" for name, count in counts.items()), soft_wrap=True)

    def _line(self, row: Row) -> None:
        # Figures in the reasons change all the time; what is worth a line is their kind.
        reasons = tuple(re.sub(r"[0-9.]+", "", reason) for reason in row.degraded)
        state = (row.anomalous, row.type, row.profile, reasons)
        if self._before.get(row.container) != state:
            self._before[row.container] = state
            cells = _cells(row)
            line = "  ".join(str(cells[column]) for column in COLUMNS if cells[column] not in ("", None))
            sys.stdout.write(printable(line) + "\n")
            sys.stdout.flush()


def _cells(row: Row) -> dict[str, Any]:
    verdict = "not judged" if row.anomalous is None else row.type if row.anomalous else "normal"
    return {
        "time": _clock(row.at_s),
        "container": row.container,
        "verdict": verdict,
        "score": None if row.score is None else f"{row.score:.3f}",
        "profile": f"{row.profile} profile",
        "drivers": ", ".join(f"{d.metric} {d.deviation:+.1f}" for d in row.drivers),
        "degraded": "; ".join(row.degraded),
    }


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, tz=UTC).strftime("%H:%M:%SZ")
