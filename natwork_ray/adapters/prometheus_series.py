"""What a Prometheus server answered, judged: series on a grid of moments, NaN where nothing counts.

Whoever answers may be wrong or lie. An answer that breaks the API's form is refused as a whole (`InputError`), since
nothing in it can be trusted; a form that is kept but holds an impossible moment or number costs that sample alone, and
the series says so in `faults`.

    >>> grid = Grid(end_ms=10_000, step_ms=1_000, length=10)
    >>> (series,) = matrix(({"metric": {"pod": "a"}, "values": [[9, "1.5"]]},), grid)
    >>> series.values[-2:]
    array([1.5, nan])
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.values import value
from natwork_ray.errors import InputError

MAX_SERIES = 50_000
MAX_LABELS = 64
MAX_LABEL = 1_024
# The server rounds moments to milliseconds and writes them as decimal seconds.
_SLACK_MS = 2.0
_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,4})?", re.ASCII)
_NO_NUMBERS = {"NaN": math.nan, "+Inf": math.inf, "Inf": math.inf, "-Inf": -math.inf}
_HINT = "is it a Prometheus server, and of version 2 or 3?"


@value
class Grid:
    """Moments at which samples are wanted: `length` of them, `step_ms` apart, the last at `end_ms`."""

    end_ms: int
    step_ms: int
    length: int

    @property
    def start_ms(self) -> int:
        """The first moment."""
        return self.end_ms - (self.length - 1) * self.step_ms


@dataclass(frozen=True, eq=False)
class Series:
    """One series.

    Attributes:
        labels: its labels, empty ones left out.
        values: float64 (T,), NaN where there is no sample; infinite where the server said so.
        faults: what was wrong with samples that were left out.
    """

    labels: Mapping[str, str]
    values: NDArray[np.float64]
    faults: tuple[str, ...] = ()


def matrix(result: Sequence[Any], grid: Grid) -> tuple[Series, ...]:
    """The series of a range query.

    Raises:
        InputError: not of the form of the HTTP API.
    """
    return tuple(_series(each, grid, "values") for each in _bounded(result))


def vector(result: Sequence[Any], at_ms: int) -> tuple[Series, ...]:
    """The series of an instant query, one sample each.

    Raises:
        InputError: not of the form of the HTTP API.
    """
    grid = Grid(end_ms=at_ms, step_ms=1, length=1)
    return tuple(_series(each, grid, "value") for each in _bounded(result))


def _bounded(result: Sequence[Any]) -> Sequence[Any]:
    if len(result) > MAX_SERIES:
        raise InputError(f"an answer of {len(result)} series", hint="narrow prometheus.selector, or sum in the query")
    return result


def _series(element: Any, grid: Grid, key: str) -> Series:
    if not isinstance(element, dict) or not isinstance(element.get("metric"), dict):
        raise InputError("a series without labels", hint=_HINT)
    labels = element["metric"]
    if len(labels) > MAX_LABELS:
        raise InputError(f"a series of {len(labels)} labels", hint="sum over them in the query")
    for name, text in labels.items():
        if not isinstance(text, str) or len(text) > MAX_LABEL or len(name) > MAX_LABEL:
            raise InputError(f"label {name[:40]!r} is no text, or too long", hint=_HINT)
    points = element.get(key)
    if points is None and ("histogram" in element or "histograms" in element):
        raise InputError("a native histogram where a number is wanted", hint="take a quantile of it in the query")
    if not isinstance(points, list):
        raise InputError(f"a series without {key}", hint=_HINT)
    if key == "value":
        points = [points]
    if len(points) > 2 * grid.length:
        raise InputError(f"{len(points)} samples of {grid.length} moments", hint=_HINT)
    values, faults = _on_grid(points, grid)
    return Series({name: text for name, text in labels.items() if text}, values, faults)


def _on_grid(points: list[Any], grid: Grid) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    values = np.full(grid.length, np.nan)
    taken = np.zeros(grid.length, dtype=bool)
    faults: dict[str, None] = {}
    for point in points:
        at_s, number = _point(point)
        place = (at_s * 1000.0 - grid.start_ms) / grid.step_ms
        index = round(place) if abs(place) < 1e9 else -1
        if not 0 <= index < grid.length or abs(place - index) * grid.step_ms > _SLACK_MS:
            faults["a sample of a moment that was not asked for"] = None
        elif taken[index]:
            if not _same(values[index], number):
                faults["two different samples of one moment"] = None
                values[index] = np.nan
        else:
            taken[index], values[index] = True, number
    return values, tuple(faults)


def _point(point: Any) -> tuple[float, float]:
    if not isinstance(point, list) or len(point) != 2:
        raise InputError("a sample that is no pair of a moment and a number", hint=_HINT)
    at_s, text = point
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not abs(at_s) < 1e15:  # also NaN
        raise InputError(f"a sample at {str(at_s)[:40]!r}", hint=_HINT)
    if not isinstance(text, str):
        raise InputError(f"a sample that is a {type(text).__name__}", hint="the API sends numbers as text")
    if text in _NO_NUMBERS:
        return float(at_s), _NO_NUMBERS[text]
    if not _NUMBER.fullmatch(text):
        raise InputError(f"a sample {text[:40]!r}", hint=_HINT)
    return float(at_s), float(text)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
