"""Answers are judged: a broken form is refused, an impossible sample costs itself alone."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.prometheus_series import MAX_SERIES, Grid, Series, matrix, vector
from natwork_ray.errors import InputError

GRID = Grid(end_ms=10_000, step_ms=1_000, length=5)  # 6, 7, 8, 9, 10 s


def one(values: Any, grid: Grid = GRID) -> Series:
    (series,) = matrix(({"metric": {"pod": "a", "empty": ""}, "values": values},), grid)
    return series


def test_samples_go_where_their_moments_are_in_any_order() -> None:
    series = one([[10, "5"], [6, "1"], [8.0004, "3e0"]])
    np.testing.assert_array_equal(series.values, [1, np.nan, 3, np.nan, 5])
    assert series.labels == {"pod": "a"}
    assert series.faults == ()


@pytest.mark.parametrize(
    ("text", "number"),
    [("NaN", math.nan), ("+Inf", math.inf), ("-Inf", -math.inf), ("0", 0.0), ("-1.5e-3", -0.0015), ("1e999", math.inf)],
)
def test_numbers_are_text(text: str, number: float) -> None:
    np.testing.assert_array_equal(one([[10, text]]).values[-1], number)


@pytest.mark.parametrize("at_s", [11, 5, -3, 1e14, 9.5, 10.01])
def test_moments_that_were_not_asked_for_do_not_count(at_s: float) -> None:
    series = one([[at_s, "1"], [10, "2"]])
    np.testing.assert_array_equal(series.values, [np.nan] * 4 + [2])
    assert series.faults == ("a sample of a moment that was not asked for",)


def test_two_samples_of_one_moment() -> None:
    assert one([[10, "1"], [10, "1"]]).values[-1] == 1
    assert one([[10, "NaN"], [10, "NaN"]]).faults == ()
    differing = one([[10, "1"], [10, "2"], [9, "7"]])
    np.testing.assert_array_equal(differing.values[-2:], [7, np.nan])
    assert differing.faults == ("two different samples of one moment",)


@pytest.mark.parametrize(
    "element",
    [
        None,
        [],
        5,
        {},
        {"metric": {}},
        {"metric": [], "values": []},
        {"metric": {"a": 1}, "values": []},
        {"metric": {"a": "x" * 2000}, "values": []},
        {"metric": {str(n): "" for n in range(99)}, "values": []},
        {"metric": {}, "values": {}},
        {"metric": {}, "values": [5]},
        {"metric": {}, "values": [[1]]},
        {"metric": {}, "values": [[1, 2]]},
        {"metric": {}, "values": [["1", "2"]]},
        {"metric": {}, "values": [[True, "2"]]},
        {"metric": {}, "values": [[None, "2"]]},
        {"metric": {}, "values": [[1e300, "2"]]},
        {"metric": {}, "values": [[1, ""]]},
        {"metric": {}, "values": [[1, "1_0"]]},
        {"metric": {}, "values": [[1, " 1"]]},
        {"metric": {}, "values": [[1, "0x1"]]},
        {"metric": {}, "values": [[1, "nan"]]},
        {"metric": {}, "values": [[1, "١"]]},
        {"metric": {}, "values": [[1, "1" * 99]]},
        {"metric": {}, "values": [[6, "1"]] * 11},
        {"metric": {}, "histograms": []},
        {"metric": {}, "value": [1, "1"]},
    ],
)
def test_a_broken_form_is_refused(element: Any) -> None:
    with pytest.raises(InputError):
        matrix((element,), GRID)


def test_too_many_series_are_refused() -> None:
    with pytest.raises(InputError, match="series"):
        matrix(({"metric": {}, "values": []},) * (MAX_SERIES + 1), GRID)


def test_an_instant_answer() -> None:
    (series,) = vector(({"metric": {"node": "n"}, "value": [10, "4"]},), 10_000)
    np.testing.assert_array_equal(series.values, [4])
    with pytest.raises(InputError):
        vector(({"metric": {}, "values": [[10, "4"]]},), 10_000)
    assert np.isnan(vector(({"metric": {}, "value": [11, "4"]},), 10_000)[0].values).all()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["1", "NaN", "+Inf", "", "x", "1e9"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["metric", "values", "value", "pod"]), inner)
    ),
    max_leaves=20,
)


@given(st.lists(_json, max_size=4))
def test_whatever_is_answered_it_is_series_or_an_input_error(result: list[Any]) -> None:
    with contextlib.suppress(InputError):  # and nothing else
        assert all(series.values.shape == (5,) for series in matrix(result, GRID))


_point = st.tuples(st.floats(-1e12, 1e12) | st.integers(0, 20), st.floats().map(str) | st.sampled_from(["NaN", "+Inf"]))


@given(st.lists(_point, max_size=10))
def test_samples_of_the_right_form_never_move(points: list[tuple[float, str]]) -> None:
    values = [[at, text.replace("inf", "+Inf").replace("-+", "-").replace("nan", "NaN")] for at, text in points]
    try:
        series = one(json.loads(json.dumps(values)))
    except InputError:
        return  # a number of more digits than any server writes
    moments = [6.0, 7.0, 8.0, 9.0, 10.0]
    for moment, got in zip(moments, series.values, strict=True):
        told = {float(text.replace("Inf", "inf")) for at, text in values if abs(at - moment) <= 0.002}
        assert np.isnan(got) or got in told
