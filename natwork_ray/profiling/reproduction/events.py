"""What an operator sees: labelled blocks found, how late, and how many alarms for nothing.

Made from the same cells as Table 2: every row's verdict comes from a model of the other run numbers. Rules:

- an event is a maximal block of rows labelled anomalous within one recording;
- it is found when an alarm fires in one of its rows (that one is still open from before does not count); the delay is
  the number of rows (of 10 s) from its first row to the first such row;
- a false alarm is a maximal run of rows with an open alarm that touches no event, not even its grace. With grace g, the
  g rows after an event still explain an alarm (a queue that drains); figures with grace 0 stand beside it. Grace never
  helps to find an event: only rows of the event itself do;
- detectors with an alarm rule (`profiling.alarming`) fire and open by it; the others at every row that they flag;
- false alarms are per hour of all recordings together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import value
from natwork_ray.profiling.reproduction import published
from natwork_ray.profiling.reproduction.cells import Cell, Question, Split, by_run_cells
from natwork_ray.profiling.reproduction.contestants import TITLES
from natwork_ray.profiling.reproduction.figures import FigureRow, binary_row
from natwork_ray.profiling.reproduction.tables import Data, Demand, Results, data_of, pooled, rows_of

MODELS = ("best", "annex-a", "lightgbm", "normal-only", "largest-deviation")
# Rows after an event that still explain an alarm.
GRACE_ROWS = 2

DEFINITIONS = {
    "event": "a maximal block of rows labelled anomalous in one recording",
    "found": "an alarm fires in a row of the event",
    "mean_delay": "rows of 10 s from the event's first row to its first alarm, over found events",
    "false alarm": f"a maximal run of rows with an open alarm, none of them in an event or the {GRACE_ROWS} after",
    "false_alarms_per_hour_grace_0": "the same without those rows",
    "per hour": "of all recordings together",
    "accuracy, precision, recall, f1": "per row, of the alarms",
}


@value
class EventRow(FigureRow):
    """Per-row figures of the alarms, and what became of the events; counts are means over seeds.

    Attributes:
        events: labelled blocks.
        found, found_share: of these.
        mean_delay: rows from an event's start to its first alarm; None where none was found.
        false_alarms_per_hour: with `grace` rows after an event that still explain an alarm.
        missed: which events were missed with the first seed, "service run row-row".
    """

    events: int
    found: float
    found_share: float
    mean_delay: float | None
    false_alarms_per_hour: float
    false_alarms_per_hour_grace_0: float
    grace: int
    missed: tuple[str, ...]


@value
class Events:
    """Rows of all models; D3.3 publishes nothing comparable."""

    rows: tuple[EventRow, ...]
    published: tuple[published.PublishedRow, ...]
    demand: Demand
    data: Data
    definitions: dict[str, str]


def cells(runs: Sequence[LabelledRun], demand: Demand) -> tuple[Cell, ...]:
    """What has to be computed: of Table 2 the part that is split by run.

    Raises:
        InputError: fewer than two run names, or rows of one class only.
    """
    rows_of(runs)
    return by_run_cells(runs, Question.ANOMALOUS, demand)


def table(runs: Sequence[LabelledRun], demand: Demand, results: Results) -> Events:
    """The table, from the results of all `cells`."""
    rows = rows_of(runs)
    found = []
    for model in demand.models:
        seeds = [
            pooled(runs, results, question=Question.ANOMALOUS, model=model, split=Split.BY_RUN, seed=seed)
            for seed in demand.seeds
        ]
        base = binary_row(
            TITLES[model],
            Split.BY_RUN,
            rows.truth,
            [one.score for one in seeds],
            [one.opened for one in seeds],
            rows.unit,
        )
        counted = [account(runs, one.fires, one.opened, grace=GRACE_ROWS) for one in seeds]
        strict = [account(runs, one.fires, one.opened, grace=0) for one in seeds]
        delays = [one.mean_delay for one in counted if one.mean_delay is not None]
        share = float(np.mean([one.found for one in counted]))
        found.append(
            EventRow(
                **{name: getattr(base, name) for name in base.__dataclass_fields__},
                events=counted[0].events,
                found=share,
                found_share=share / max(1, counted[0].events),
                mean_delay=float(np.mean(delays)) if delays else None,
                false_alarms_per_hour=float(np.mean([one.false_alarms_per_hour for one in counted])),
                false_alarms_per_hour_grace_0=float(np.mean([one.false_alarms_per_hour for one in strict])),
                grace=GRACE_ROWS,
                missed=counted[0].missed,
            )
        )
    return Events(rows=tuple(found), published=(), demand=demand, data=data_of(runs), definitions=DEFINITIONS)


@value
class EventAccount:
    """What became of the events of some recordings; see the module."""

    events: int
    found: int
    mean_delay: float | None
    false_alarms: int
    false_alarms_per_hour: float
    missed: tuple[str, ...]


def account(
    runs: Sequence[LabelledRun], fires: NDArray[np.bool_], opened: NDArray[np.bool_], *, grace: int
) -> EventAccount:
    """Count events and alarms: `fires` and `opened` (M,) over all rows of these recordings, one after the other."""
    delays: list[int] = []
    missed: list[str] = []
    false_alarms = 0
    hours = 0.0
    start = 0
    for run in runs:
        rows = slice(start, start + len(run.kinds))
        start = rows.stop
        hours += len(run.kinds) * run.step_s / 3600
        explained = np.zeros(len(run.kinds), dtype=bool)
        for first, end in blocks(run.anomalous):
            explained[first : end + grace] = True
            inside = np.flatnonzero(fires[rows][first:end])
            if len(inside):
                delays.append(int(inside[0]))
            else:
                missed.append(f"{run.service} {run.run} {first + 1}-{end}")
        false_alarms += sum(1 for first, end in blocks(opened[rows]) if not explained[first:end].any())
    return EventAccount(
        events=len(delays) + len(missed),
        found=len(delays),
        mean_delay=float(np.mean(delays)) if delays else None,
        false_alarms=false_alarms,
        false_alarms_per_hour=false_alarms / hours if hours else 0.0,
        missed=tuple(missed),
    )


def blocks(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index ranges of consecutive true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
