"""A forecast that is not ordered, finite or complete cannot be built, and travels through JSON."""

from __future__ import annotations

from dataclasses import replace

import pytest

from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import InputError, NotFoundError

FORECAST = LoadForecast(
    container="amf-0", service="amf", metric="cpu_utilization", at_s=600.0, step_s=10.0, horizons=(1, 3),
    expected=(0.4, 0.5), lower=(0.3, 0.3), upper=(0.5, 0.7), model="lightgbm", likelihood=0.1,
)  # fmt: skip


def test_a_horizon_is_looked_up() -> None:
    assert FORECAST.at(3) == (0.3, 0.5, 0.7)
    with pytest.raises(NotFoundError, match="10 steps"):
        FORECAST.at(10)


def test_a_forecast_survives_json() -> None:
    assert decode(LoadForecast, encode(FORECAST)) == FORECAST


@pytest.mark.parametrize(
    "change",
    [
        {"horizons": ()}, {"horizons": (1,)}, {"horizons": (3, 1)}, {"horizons": (0, 1)}, {"horizons": (1, 1)},
        {"expected": (0.4,)}, {"lower": (0.45, 0.3)}, {"upper": (0.39, 0.7)}, {"lower": (-0.1, 0.3)},
        {"upper": (0.5, float("inf"))}, {"expected": (0.4, float("nan"))}, {"lower": (float("nan"), 0.3)},
        {"likelihood": 1.1}, {"likelihood": -0.1}, {"likelihood": float("nan")},
    ],
)  # fmt: skip
def test_what_is_no_band_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(FORECAST, **change)  # type: ignore[arg-type]


def test_advice_has_a_likelihood() -> None:
    with pytest.raises(InputError, match="likelihood"):
        PlacementAdvice(
            container="a", at_s=0.0, action="none", stance="energy", likelihood=2.0, trend="stable", reason="-"
        )
