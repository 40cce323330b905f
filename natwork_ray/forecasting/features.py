"""What a forecast looks at: a window of one metric, and what the container does meanwhile, as dimensionless numbers.

Everything is relative to the newest sample and in units of the service's own spread (`references`), so that the numbers
do not change with the unit a metric is counted in. In order, for a window of W samples:

- the past: differences between earlier samples and the newest one, at `lags(W)`;
- the level: distance of the newest sample from the service's centre;
- over the last 3, 5, 10, 20, 40 and 60 samples: mean, highest and lowest against the newest, and the spread;
- how long the metric has stood still, how many samples were taken, how old the newest is;
- for each other metric of `CONTEXT`: level, and change over 1, 3 and 10 steps;
- the character of the service's changes (`references`).

The same code makes the rows for training and for serving.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from natwork_ray.domain.telemetry import METRICS
from natwork_ray.forecasting.bounds import CONTEXT, MAX_WINDOW
from natwork_ray.forecasting.frames import Floats, Frame
from natwork_ray.forecasting.references import CENTRE, CHARACTER, CHARACTER_NAMES, SCALE, Doubles

_SPANS = (3, 5, 10, 20, 40, 60)
_CONTEXT_LAGS = (1, 3, 10)
# Differences beyond this many spreads say nothing more, and would let linear leaves run away. Counts stay below both.
_CLIP = float(MAX_WINDOW)
# Samples taken beyond this are not counted: the count would otherwise tell the time since a recording began, and with
# it when its experiment was due.
_ENOUGH = 20


@lru_cache
def lags(window: int) -> tuple[int, ...]:
    """Steps back from the newest sample: every one up to 12, then fewer; dense around 45, a usual rate window."""
    wanted = (*range(1, 13), 15, 18, 20, 25, 30, 32, 35, 37, *range(39, 49), 50, 55, 59)
    return tuple(lag for lag in wanted if lag < window)


@lru_cache
def feature_names(metric: int, window: int) -> tuple[str, ...]:
    """Names of the columns of `inputs`."""
    names = [f"back_{lag}" for lag in lags(window)] + ["level"]
    for span in _spans(window):
        names += [f"{what}_{span}" for what in ("mean", "high", "low", "spread")]
    names += ["still_for", "taken", "age"]
    for other in context(metric):
        names += [f"{METRICS[other]}_level"] + [f"{METRICS[other]}_{lag}" for lag in _CONTEXT_LAGS if lag < window]
    return (*names, *CHARACTER_NAMES)


def context(metric: int) -> tuple[int, ...]:
    """Places of the other metrics that a forecast of this one looks at."""
    return tuple(METRICS.index(m) for m in CONTEXT if METRICS.index(m) != metric)


def inputs(frame: Frame, metric: int, references: Doubles) -> Floats:
    """Columns (N, F) for one metric of a frame of N windows, with references (N, 12, 10)."""
    width = frame.filled.shape[1]
    unit = references[:, metric, SCALE].astype(np.float32)
    # Column-major, because every statistic below runs over a handful of columns at a time.
    raw = frame.filled[:, :, metric]
    newest = raw[:, -1]
    past = np.asfortranarray((raw - newest[:, None]) / unit[:, None])
    columns = [past[:, width - 1 - lag] for lag in lags(width)]
    columns.append((newest - references[:, metric, CENTRE].astype(np.float32)) / unit)
    for span in _spans(width):
        part = past[:, width - span :]
        columns += [part.mean(axis=1), part.max(axis=1), part.min(axis=1), part.std(axis=1)]
    moved = past[:, :-1] != 0
    columns += [
        np.where(moved.any(axis=1), np.argmax(moved[:, ::-1], axis=1), width - 1),
        np.minimum(frame.taken[:, metric], _ENOUGH),
        frame.age[:, metric],
    ]
    for other in context(metric):
        values = frame.filled[:, :, other]
        spread = references[:, other, SCALE].astype(np.float32)
        columns.append((values[:, -1] - references[:, other, CENTRE].astype(np.float32)) / spread)
        columns += [(values[:, -1] - values[:, -1 - lag]) / spread for lag in _CONTEXT_LAGS if lag < width]
    table = np.column_stack([*columns, references[:, metric, CHARACTER]])
    return np.clip(table, -_CLIP, _CLIP, out=table).astype(np.float32)


def _spans(window: int) -> tuple[int, ...]:
    return tuple(span for span in _SPANS if span <= window)
