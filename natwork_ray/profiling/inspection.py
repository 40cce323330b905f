"""Recordings that the detector never saw: profiles for their services, a verdict for every row, and how good they were.

Rules kept:

- A service that the detector was trained on uses the profile in the model, where that is wanted. Any other adapts: its
  profile is learnt from the first normal hour of its lowest run. The rows of that hour are judged and marked, and count
  in no figure.
- A service without either is judged against the fleet-wide profile, and every one of its rows says so.
- A row of which nothing was measured that the profile knows has no verdict. A row that lacks a metric, or has one that
  the profile does not know, has a verdict and says what it rests on.
- Figures count rows that have a label and a verdict. Events: `reproduction.events`.

    >>> found = inspect(detector, [Recorded("fd_usersurge.csv", run, has_labels=True)])
    >>> found[0].verdict(17).anomalous
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.anomaly import STAGE_2_CLASSES, AnomalyKind, Driver
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.profiling.alarming import Alarms
from natwork_ray.profiling.detecting import Detector
from natwork_ray.profiling.evaluation import auc, binary_metrics
from natwork_ray.profiling.fitting import Progress, no_progress
from natwork_ray.profiling.profile import ProfileBook
from natwork_ray.profiling.recorded import JudgedRows, alarms_of, judge_recording
from natwork_ray.profiling.reproduction.cells import commissioning_hour, first_hour
from natwork_ray.profiling.reproduction.events import GRACE_ROWS, account
from natwork_ray.profiling.windows import commissioning_book

# A profile that rests on fewer rows than this (a quarter of the hour) is reported as such.
SHORT_HOUR = 90


class ProfileSource(StrEnum):
    """Where the profile comes from that a recording was judged by."""

    MODEL = "the model"
    HOUR = "the first normal hour"
    FLEET = "the whole fleet"


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recording to be judged. `run.kinds` means nothing where `has_labels` is false."""

    name: str
    run: LabelledRun
    has_labels: bool


@value
class RowVerdict:
    """One row, 1 being the first.

    Attributes:
        score: stage 1; None where nothing was measured that the profile knows.
        anomalous: None likewise: not judged is not normal.
        alarm: whether an alarm is open by the detector's alarm rule; where it has none, at every anomalous row.
        type: stage 2's name for it; None where it is not anomalous.
        drivers: the metrics that drove it, strongest first.
        label: what the recording says; None where it does not.
        commissioning: the row taught the profile that it is judged by, and counts in no figure.
        degraded: why the verdict rests on less than it should; "" where it does not.
    """

    row: int
    score: float | None
    anomalous: bool | None
    alarm: bool
    type: str | None
    drivers: tuple[Driver, ...]
    label: int | None
    commissioning: bool
    degraded: str


@dataclass(frozen=True, eq=False)
class Inspected:
    """A recording with its verdicts.

    Attributes:
        recorded: what was judged.
        judged: per row.
        alarms: where an operator would be called.
        profile: whose.
        commissioning: leading rows that the profile was learnt from; 0 in most recordings.
        caveat: what holds for every row, "" for nothing.
    """

    recorded: Recorded
    judged: JudgedRows
    alarms: Alarms
    profile: ProfileSource
    commissioning: int
    caveat: str

    def verdict(self, row: int) -> RowVerdict:
        """The verdict on a row; `row` counts from 0 here, and from 1 in the answer."""
        scored = bool(self.judged.scored[row])
        flagged = bool(self.judged.flagged[row])
        kind = self.judged.kind(row)
        return RowVerdict(
            row=row + 1,
            score=round(float(self.judged.score[row]), 6) if scored else None,
            anomalous=flagged if scored else None,
            alarm=bool(self.alarms.opened[row]),
            type=None if kind is None else str(kind),
            drivers=self.judged.drivers(row),
            label=int(self.recorded.run.kinds[row] != 0) if self.recorded.has_labels else None,
            commissioning=row < self.commissioning,
            degraded=self._degraded(row),
        )

    @property
    def degraded_rows(self) -> int:
        """How many rows rest on less than they should."""
        if self.caveat:
            return len(self.judged)
        return int((self.judged.missing.any(axis=1) | ~self.judged.scored).sum())

    def _degraded(self, row: int) -> str:
        said = [self.caveat] if self.caveat else []
        if not self.judged.scored[row]:
            said.append("nothing that the profile knows was measured: not judged")
        elif self.judged.missing[row].any():
            said.append(f"not measured: {', '.join(self.judged.unmeasured(row))}")
        return "; ".join(said)


@value
class EventFigures:
    """Labelled blocks and alarms, by the rules of `reproduction.events`; delays in rows."""

    events: int
    found: int
    found_share: float
    mean_delay: float | None
    false_alarms: int
    false_alarms_per_hour: float
    false_alarms_per_hour_grace_0: float
    grace: int
    missed: tuple[str, ...]


@value
class InspectionFigures:
    """Per-row figures over all labelled, judged rows that taught no profile; and events.

    `type_accuracy` is the share of rows, rightly flagged and of known type, that were named rightly; None without any.
    `auc` is None where the rows are of one class only. `accuracy`, `precision`, `recall` and `f1` are None where no row
    could be judged.
    """

    rows: int
    anomalous: int
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None
    type_accuracy: float | None
    not_judged: int
    commissioning: int
    unlabelled: int
    events: EventFigures


def inspect(
    detector: Detector, recordings: Sequence[Recorded], *, own_profiles: bool, progress: Progress = no_progress
) -> tuple[Inspected, ...]:
    """Judge every row of every recording.

    Args:
        detector: trained.
        recordings: of any services, any order.
        own_profiles: whether services that the detector was trained on use the profile in it; else all adapt.
        progress: called per recording.

    Raises:
        InputError: as `Detector.score`.
    """
    runs = [recorded.run for recorded in recordings]
    trained_on = {p.service for p in detector.book.profiles} if own_profiles else set()
    hours = {
        run.service: first_hour(runs, run.service)
        for run in runs
        if run.commissioning > 0 and run.service not in trained_on
    }
    learnt = commissioning_book([commissioning_hour(runs[i]) for i in hours.values()])
    profiles = {p.service: p for p in (*detector.book.profiles, *learnt.profiles)}
    book = ProfileBook(profiles=tuple(profiles.values()), fleet=detector.book.fleet)
    found = []
    for number, recorded in enumerate(recordings):
        progress(number, len(recordings), recorded.name)
        service = recorded.run.service
        if service in trained_on:
            source = ProfileSource.MODEL
        else:
            source = ProfileSource.HOUR if service in hours else ProfileSource.FLEET
        # A profile that the model brings counts only where it is wanted: without, the fleet's stands in.
        known = book if source is not ProfileSource.FLEET else ProfileBook(fleet=book.fleet)
        judged = judge_recording(detector, recorded.run.values, known.references((service,))[0])
        found.append(
            Inspected(
                recorded,
                judged,
                alarms_of(detector, judged),
                source,
                commissioning=recorded.run.commissioning if hours.get(service) == number else 0,
                caveat=_caveat(source, known, service, runs[hours[service]] if service in hours else None),
            )
        )
    progress(len(recordings), len(recordings), "done")
    return tuple(found)


def _caveat(source: ProfileSource, book: ProfileBook, service: str, hour: LabelledRun | None) -> str:
    if source is ProfileSource.FLEET:
        return f"no normal hour of {service}: judged against the whole fleet's profile"
    said = []
    if hour is not None and hour.commissioning < SHORT_HOUR:
        said.append(f"the profile rests on {hour.commissioning} normal rows only")
    unknown = next(p for p in book.profiles if p.service == service).unprofiled
    if unknown:
        said.append(f"the profile does not know {', '.join(unknown)}")
    return "; ".join(said)


def figures_of(inspected: Sequence[Inspected]) -> InspectionFigures | None:
    """How good the verdicts were; None where no row has a label."""
    labelled = [one for one in inspected if one.recorded.has_labels]
    counted = [np.arange(len(one.judged)) >= one.commissioning for one in labelled]
    if not any(rows.any() for rows in counted):
        return None

    def over(column: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
        return np.concatenate([one[rows] for one, rows in zip(column, counted, strict=True)])

    kinds = over([one.recorded.run.kinds for one in labelled]).astype(np.int8)
    judged = over([one.judged.scored for one in labelled]).astype(bool)
    flagged = over([one.judged.flagged for one in labelled]).astype(bool)
    score = over([one.judged.score for one in labelled]).astype(np.float64)
    named = over([one.judged.kinds for one in labelled]).astype(np.int8)
    truth = kinds != 0
    reached = binary_metrics(truth[judged], flagged[judged].astype(np.float64), 0.5) if judged.any() else None
    typed = judged & flagged & (kinds > 0)
    two_classes = bool(truth[judged].any()) and not bool(truth[judged].all())
    return InspectionFigures(
        rows=int(judged.sum()),
        anomalous=int(truth[judged].sum()),
        accuracy=None if reached is None else reached.accuracy,
        precision=None if reached is None else reached.precision,
        recall=None if reached is None else reached.recall,
        f1=None if reached is None else reached.f1,
        auc=auc(truth[judged], score[judged]) if two_classes else None,
        type_accuracy=float(np.mean(named[typed] == kinds[typed])) if typed.any() else None,
        not_judged=int((~judged).sum()),
        commissioning=sum(one.commissioning for one in inspected),
        unlabelled=sum(len(one.judged) for one in inspected if not one.recorded.has_labels),
        events=_events(labelled),
    )


def _events(labelled: Sequence[Inspected]) -> EventFigures:
    runs = [
        replace(one.recorded.run, values=one.recorded.run.values[n:], kinds=one.recorded.run.kinds[n:], commissioning=0)
        for one in labelled
        for n in (one.commissioning,)
    ]
    fires, opened = (
        np.concatenate([getattr(one.alarms, name)[one.commissioning :] for one in labelled])
        for name in ("fires", "opened")
    )
    told = account(runs, fires, opened, grace=GRACE_ROWS)
    return EventFigures(
        events=told.events,
        found=told.found,
        found_share=told.found / told.events if told.events else 0.0,
        mean_delay=told.mean_delay,
        false_alarms=told.false_alarms,
        false_alarms_per_hour=told.false_alarms_per_hour,
        false_alarms_per_hour_grace_0=account(runs, fires, opened, grace=0).false_alarms_per_hour,
        grace=GRACE_ROWS,
        missed=told.missed,
    )


def types_found(inspected: Inspected) -> dict[str, int]:
    """How many flagged rows were given which name, most frequent first."""
    kinds = inspected.judged.kinds[inspected.judged.flagged]
    counts = np.bincount(kinds, minlength=len(STAGE_2_CLASSES))
    order = np.argsort(-counts, kind="stable")
    return {str(AnomalyKind(STAGE_2_CLASSES[k])): int(counts[k]) for k in order if counts[k]}
