"""Scale, migrate, throttle or nothing: section 4.2's preference, and what the rules promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.forecasts import LoadForecast, PlacementAdvice
from natwork_ray.errors import InputError
from natwork_ray.placement.policy import (
    Circumstances,
    PlacementPolicy,
    advise,
    advise_all,
    joint_likelihood,
    trend_of,
)

FREE = Circumstances(can_scale=False, can_migrate=False, may_throttle=False)


def forecast(
    *expected: float,
    spread: float = 0.05,
    likelihood: float = 0.5,
    container: str = "amf-0",
    metric: str = "cpu_utilization",
    degraded: str = "",
) -> LoadForecast:
    return LoadForecast(
        container=container,
        service="amf",
        metric=metric,
        at_s=600.0,
        step_s=10.0,
        horizons=tuple(range(1, len(expected) + 1)),
        expected=expected,
        lower=tuple(max(0.0, e - spread) for e in expected),
        upper=tuple(e + spread for e in expected),
        model="lightgbm",
        likelihood=likelihood,
        degraded=degraded,
    )


def action(*forecasts: LoadForecast, circumstances: Circumstances | None = None) -> tuple[str, str]:
    advice = advise(forecasts, circumstances)
    return advice.action, advice.stance


def test_growth_is_scaled() -> None:
    assert action(forecast(0.6, 0.9)) == ("scale", "resilience")


def test_calm_load_is_left_alone_in_energys_favour() -> None:
    assert action(forecast(0.4, 0.41)) == ("none", "energy")


def test_while_nothing_is_unusual_the_middle_counts_and_while_it_is_the_worst() -> None:
    assert action(forecast(0.7, 0.7, spread=0.2)) == ("none", "energy")
    assert action(forecast(0.7, 0.7, spread=0.2, likelihood=0.995)) == ("scale", "resilience")


def test_a_flood_from_one_source_is_throttled_and_not_paid_for() -> None:
    flood = forecast(0.6, 0.95, likelihood=0.999)
    assert action(flood, circumstances=Circumstances(dominant_source_share=0.7)) == ("throttle", "resilience")
    protected = Circumstances(dominant_source_share=0.7, may_throttle=False)
    assert action(flood, circumstances=protected) == ("scale", "resilience")
    growth = forecast(0.6, 0.95)
    assert action(growth, circumstances=Circumstances(dominant_source_share=0.7)) == ("scale", "resilience")


def test_off_a_node_under_pressure_while_an_anomaly_is_likely() -> None:
    pressed = Circumstances(node_cpu_fraction=0.9)
    assert action(forecast(0.4, 0.4, likelihood=0.999), circumstances=pressed) == ("migrate", "resilience")
    assert action(forecast(0.6, 0.95, likelihood=0.999), circumstances=pressed) == ("migrate", "resilience")
    assert action(forecast(0.4, 0.4), circumstances=pressed) == ("none", "energy")
    assert action(forecast(0.4, 0.4, likelihood=0.999)) == ("none", "resilience")


def test_what_cannot_be_scaled_is_moved_and_what_cannot_be_moved_is_throttled() -> None:
    growth = forecast(0.6, 0.95)
    assert action(growth, circumstances=Circumstances(can_scale=False))[0] == "migrate"
    assert action(growth, circumstances=Circumstances(can_scale=False, can_migrate=False))[0] == "throttle"
    assert action(growth, circumstances=FREE)[0] == "none"
    assert "a person" in advise([growth], FREE).reason


def test_memory_counts_where_its_limit_is_known() -> None:
    memory = forecast(9e8, 1.1e9, spread=1e7, metric="memory_rss_bytes")
    assert action(forecast(0.2, 0.2), memory) == ("none", "energy")
    advice = advise([forecast(0.2, 0.2), memory], Circumstances(memory_limit_bytes=1.2e9))
    assert advice.action == "scale"
    assert "memory rises" in advice.reason


def test_without_any_limit_only_the_trend_is_known() -> None:
    advice = advise([forecast(1e8, 3e8, metric="memory_rss_bytes")])
    assert (advice.action, advice.trend) == ("none", "rising")
    assert "limit" not in advice.reason


def test_energy_moves_only_when_it_is_asked_to() -> None:
    idle, empty = forecast(0.1, 0.1), Circumstances(node_cpu_fraction=0.05)
    assert advise([idle], empty).action == "none"
    saving = PlacementPolicy(consolidate_below=0.2)
    advice = advise([idle], empty, saving)
    assert (advice.action, advice.stance) == ("migrate", "energy")
    assert advise([forecast(0.1, 0.2)], empty, saving).action == "none"  # rising
    assert advise([forecast(0.5, 0.5)], empty, saving).action == "none"  # not idle
    assert advise([idle], Circumstances(), saving).action == "none"  # nothing known of the node


def test_a_degraded_forecast_says_so_in_the_reason() -> None:
    assert "degraded: few samples" in advise([forecast(0.4, 0.4, degraded="few samples")]).reason


def test_trends() -> None:
    assert trend_of(forecast(0.4)) == "unknown"
    assert trend_of(forecast(0.4, 0.43)) == "stable"
    assert trend_of(forecast(0.4, 0.5)) == "rising"
    assert trend_of(forecast(0.5, 0.4)) == "falling"
    assert trend_of(forecast(0.0, 0.0)) == "stable"


def test_more_metrics_do_not_make_more_alarms() -> None:
    one = forecast(0.4, likelihood=0.99)
    assert joint_likelihood([one]) == 0.99
    assert joint_likelihood([one, forecast(0.4, likelihood=0.2)]) == pytest.approx(0.98)
    assert joint_likelihood([forecast(0.4, likelihood=0.1)] * 3) == 0.0


def test_one_advice_for_each_container() -> None:
    advice = advise_all(
        [forecast(0.9, 0.9, container="b"), forecast(0.1, 0.1), forecast(0.2, 0.2, container="b")],
        {"b": Circumstances(can_scale=False)},
    )
    assert [(a.container, a.action) for a in advice] == [("b", "migrate"), ("amf-0", "none")]
    assert advise_all([]) == ()


def test_advice_is_for_one_container() -> None:
    with pytest.raises(InputError, match="0 containers"):
        advise([])
    with pytest.raises(InputError, match="2 containers"):
        advise([forecast(0.1), forecast(0.1, container="b")])


@pytest.mark.parametrize("name", ["likely", "headroom", "stable_within", "pressed_from", "idle_below"])
@pytest.mark.parametrize("odd", [-0.1, 1.1, float("nan")])
def test_thresholds_are_shares(name: str, odd: float) -> None:
    with pytest.raises(InputError, match=name):
        replace(PlacementPolicy(), **{name: odd})


SHARES = st.floats(0.0, 1.0)


@st.composite
def forecasts(draw: st.DrawFn) -> LoadForecast:
    levels = draw(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=3))
    return forecast(*levels, spread=draw(st.floats(0.0, 1.0)), likelihood=draw(SHARES))


@st.composite
def circumstances(draw: st.DrawFn) -> Circumstances:
    return Circumstances(
        node_cpu_fraction=draw(st.none() | SHARES),
        dominant_source_share=draw(SHARES),
        can_scale=draw(st.booleans()),
        can_migrate=draw(st.booleans()),
        may_throttle=draw(st.booleans()),
    )


def advice_is_allowed(advice: PlacementAdvice, known: Circumstances) -> bool:
    return {
        "scale": known.can_scale,
        "migrate": known.can_migrate,
        "throttle": known.may_throttle,
        "none": True,
    }[advice.action]


@given(forecasts(), circumstances())
def test_nothing_is_advised_that_is_not_allowed_and_everything_has_a_reason(
    load: LoadForecast, known: Circumstances
) -> None:
    advice = advise([load], known)
    assert advice_is_allowed(advice, known)
    assert advice.reason.endswith(".")
    assert advice.stance == "resilience" or advice.action == "none"
    if advice.likelihood >= PlacementPolicy().likely:
        assert advice.stance == "resilience"
    if advice.trend == "stable" and advice.action == "none" and advice.stance == "resilience":
        assert advice.likelihood >= PlacementPolicy().likely or max(load.expected) >= PlacementPolicy().headroom


@given(forecasts(), circumstances(), st.floats(0.0, 0.5))
def test_a_likelier_anomaly_never_makes_the_stance_less_careful(
    load: LoadForecast, known: Circumstances, more: float
) -> None:
    likelier = replace(load, likelihood=min(1.0, load.likelihood + more))
    if advise([load], known).stance == "resilience":
        assert advise([likelier], known).stance == "resilience"


@given(forecasts(), circumstances())
def test_energy_never_scales_or_throttles(load: LoadForecast, known: Circumstances) -> None:
    advice = advise([load], known, PlacementPolicy(consolidate_below=0.5))
    if advice.stance == "energy":
        assert advice.action in ("none", "migrate")
