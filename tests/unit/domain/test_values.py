"""In and out of JSON: everything round, nothing half-right."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natwork_ray.config import AlarmConfig, SlaConfig
from natwork_ray.control import events
from natwork_ray.control.service import StoredEvent
from natwork_ray.domain import actions, anomaly, auditing, decisions, labelled, quota, runs, status, telemetry, topology
from natwork_ray.domain.actions import Instruction, Migrate, MigrationMethod, Restart, Scale, SetLimits
from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.auditing import AuditKind, AuditRecord
from natwork_ray.domain.forecasts import ForecastModel, LoadForecast, PlacementAction, PlacementAdvice, Stance, Trend
from natwork_ray.domain.profiles import Relearning
from natwork_ray.domain.values import Backend, decode, encode, plain
from natwork_ray.errors import InputError

MODULES = (actions, anomaly, auditing, decisions, events, labelled, quota, runs, status, telemetry, topology)
VALUES = sorted(
    {
        kind
        for module in MODULES
        for kind in vars(module).values()
        if isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "__pydantic_config__")
    },
    key=lambda kind: kind.__name__,
)

# Strategies are made from the types; the first draw of a deep one takes its time on a busy machine.
SLOW_BUT_SURE = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
st.register_type_strategy(float, FLOATS)
st.register_type_strategy(str, TEXTS)
st.register_type_strategy(AlarmConfig, st.just(AlarmConfig(votes_of=5)))
st.register_type_strategy(SlaConfig, st.just(SlaConfig(window_s=86_400)))

# Values that check themselves when they are made: drawn from what they allow.
SHARES = st.floats(0.0, 1.0)
# One horizon: how many steps after the one before, and its lower, expected and upper value.
BANDS = st.tuples(st.integers(1, 60), st.tuples(*[st.floats(0.0, 1e12)] * 3).map(sorted))


@st.composite
def forecasts(draw: st.DrawFn) -> LoadForecast:
    bands = draw(st.lists(BANDS, min_size=1, max_size=4))
    lower, expected, upper = zip(*(band for _, band in bands), strict=True)
    return LoadForecast(
        container=draw(TEXTS),
        service=draw(TEXTS),
        metric=draw(TEXTS),
        at_s=draw(FLOATS),
        step_s=draw(FLOATS),
        horizons=tuple(itertools.accumulate(steps for steps, _ in bands)),
        expected=expected,
        lower=lower,
        upper=upper,
        model=draw(st.sampled_from(get_args(ForecastModel))),
        likelihood=draw(SHARES),
        degraded=draw(TEXTS),
    )


@st.composite
def relearnings(draw: st.DrawFn) -> Relearning:
    from_s, to_s = sorted(draw(st.lists(st.floats(0.0, 1e12), min_size=2, max_size=2, unique=True)))
    return Relearning(
        service=draw(TEXTS), from_s=from_s, to_s=to_s, by=draw(TEXTS), note=draw(TEXTS), forced=draw(st.booleans())
    )


st.register_type_strategy(LoadForecast, forecasts())
st.register_type_strategy(Relearning, relearnings())
st.register_type_strategy(
    PlacementAdvice,
    st.builds(
        PlacementAdvice,
        container=TEXTS,
        at_s=FLOATS,
        action=st.sampled_from(get_args(PlacementAction)),
        stance=st.sampled_from(get_args(Stance)),
        likelihood=SHARES,
        trend=st.sampled_from(get_args(Trend)),
        reason=TEXTS,
    ),
)


def values(kind: type) -> st.SearchStrategy[Any]:
    if kind is AuditRecord:
        return st.builds(AuditRecord, body=st.dictionaries(TEXTS, JSONS, max_size=3))
    return st.from_type(kind)


def test_the_list_of_values_is_whole() -> None:
    assert {Migrate, AnomalyVerdict, topology.Topology, status.LoopStatus, events.RunStarted} <= set(VALUES)
    assert len(VALUES) >= 28


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
@SLOW_BUT_SURE
@given(data=st.data())
def test_round_trip(kind: type, data: st.DataObject) -> None:
    item = data.draw(values(kind))
    assert decode(kind, encode(item)) == item
    assert encode(decode(kind, encode(item))) == encode(item)
    assert set(plain(item)) == {f.name for f in fields(item)}


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
@SLOW_BUT_SURE
@given(data=st.data())
def test_unknown_keys_and_truncation_are_refused(kind: type, data: st.DataObject) -> None:
    text = encode(data.draw(values(kind)))
    with pytest.raises(InputError):
        decode(kind, text[:-1] + b',"extra":1}')
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(InputError):
        decode(kind, text[:cut])
    with pytest.raises(InputError):
        decode(kind, text + b"x")


@given(st.binary(max_size=200))
def test_noise_is_refused_with_nothing_but_an_input_error(noise: bytes) -> None:
    with pytest.raises(InputError):
        decode(AnomalyVerdict, noise)


SCALE = '{"type":"scale","key":"k","container":"c","replicas":2}'


@pytest.mark.parametrize(
    "text",
    [
        SCALE.replace("2", '"2"'),
        SCALE.replace("2", "true"),
        SCALE.replace("2", "2.0"),
        SCALE.replace("2", "null"),
        SCALE.replace('"k"', "7"),
        SCALE.replace("scale", "delete"),
        SCALE.replace('"type":"scale",', ""),
        SCALE.replace('"key":"k",', ""),
        '{"type":"restart","key":"k","container":"c","replicas":2}',
        f"[{SCALE}]",
        "[" * 100_000,
        "null",
        "",
    ],
)
def test_instructions_are_decoded_strictly(text: str) -> None:
    with pytest.raises(InputError):
        decode(Instruction, text)


def test_the_tag_chooses_the_member() -> None:
    found: Any = decode(Instruction, SCALE)
    assert found == Scale(key="k", container="c", replicas=2)
    restart = Restart(key="k", container="c")
    again: Any = decode(Instruction, encode(restart, Instruction))
    assert again == restart


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"1.0"', "true"])
def test_numbers_are_finite_numbers(number: str) -> None:
    text = encode(SetLimits(key="k", container="c", cpu_limit_cores=1.5)).replace(b"1.5", number.encode())
    with pytest.raises(InputError, match="cpu_limit_cores"):
        decode(SetLimits, text)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_never_turns_into_nothing(number: float) -> None:
    """None means "leave this limit as it is": a broken number must not come to mean that."""
    with pytest.raises(InputError):
        encode(SetLimits(key="k", container="c", cpu_limit_cores=number))
    with pytest.raises(InputError):
        encode(SetLimits(key="k", container="c", cpu_limit_cores=number), Instruction)


def test_what_json_cannot_carry_is_an_input_error() -> None:
    bad: list[Any] = ["\ud800", b"k", 3, object()]
    for key in bad:
        with pytest.raises(InputError):
            encode(Restart(key=key, container="c"))
    method: Any = "teleport"
    with pytest.raises(InputError):
        encode(Migrate(key="k", container="c", source="a", target="b", method=method))


def test_an_integer_for_a_number_is_a_number() -> None:
    whole: Any = decode(SetLimits, '{"key":"k","container":"c","cpu_limit_cores":2}')
    assert isinstance(whole.cpu_limit_cores, float)


def test_values_are_frozen_and_name_their_fields() -> None:
    move = Migrate(key="k", container="c", source="a", target="b", method=MigrationMethod.COLD)
    with pytest.raises(FrozenInstanceError):
        move.target = "c"  # type: ignore[misc]
    positional: Any = Restart
    with pytest.raises(TypeError):
        positional("k", "c")


def test_an_audit_body_is_json() -> None:
    record = AuditRecord(at_s=1.0, kind=AuditKind.RUN, subject="s", body={"a": [1, None, {"b": True}]})
    again: AuditRecord = decode(AuditRecord, encode(record))
    assert again == record


@SLOW_BUT_SURE
@given(st.from_type(StoredEvent))
def test_stored_events_keep_event_and_decisions(stored: StoredEvent) -> None:
    again: StoredEvent = decode(StoredEvent, encode(stored))
    assert again == stored


def test_the_error_names_the_place() -> None:
    with pytest.raises(InputError, match=r"not a valid AnomalyVerdict: drivers\.0\.deviation"):
        decode(
            AnomalyVerdict,
            '{"container":"c","at_s":1,"score":1,"kind":"unknown","confidence":1,'
            '"drivers":[{"metric":"m","deviation":"x"}]}',
        )
    with pytest.raises(InputError, match="the document"):
        decode(AnomalyVerdict, "nonsense")


def test_seven_classes_in_the_order_of_the_output_units() -> None:
    assert [k.value for k in anomaly.STAGE_2_CLASSES] == [
        "false_positive",
        "high_cpu",
        "high_memory",
        "traffic_spike",
        "step_load",
        "network_latency",
        "unknown",
    ]
    assert AnomalyKind.FALSE_POSITIVE is anomaly.STAGE_2_CLASSES[0]


@pytest.mark.parametrize("shape", [(2, 5, 12), (1, 5, 11), (1, 12)])
def test_windows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="values of shape"):
        telemetry.TelemetryWindow(
            containers=("a",), services=("a",), end_s=0.0, step_s=1.0, values=np.zeros(shape, dtype=np.float32)
        )
    with pytest.raises(InputError):
        telemetry.TelemetryWindow(
            containers=("a",), services=(), end_s=0.0, step_s=1.0, values=np.zeros((1, 5, 12), dtype=np.float32)
        )


def test_a_newest_sample_without_anything_is_missing() -> None:
    data = np.full((3, 2, 12), np.nan, dtype=np.float32)
    data[1, 0, :] = 1.0  # only the older sample is there
    data[2, 1, 4] = 1.0
    window = telemetry.TelemetryWindow(
        containers=("a", "b", "c"), services=("a", "b", "c"), end_s=0.0, step_s=1.0, values=data
    )
    assert window.missing().tolist() == [True, True, False]
    assert window.length == 2


def test_labelled_runs() -> None:
    def run(t: int, kinds: int) -> labelled.LabelledRun:
        return labelled.LabelledRun(
            service="s",
            run="r",
            backend=Backend.REPLAYED,
            step_s=1.0,
            values=np.zeros((t, 12), dtype=np.float32),
            kinds=np.array([0, 3, -1][:kinds], dtype=np.int8),
            commissioning=1,
        )

    assert run(3, 3).anomalous.tolist() == [False, True, True]
    with pytest.raises(InputError, match="run r of s"):
        run(3, 2)


def test_topology_lookups() -> None:
    link = topology.Link(a="x", b="y", bandwidth_bytes_per_s=1.0, rtt_s=0.1)
    node = topology.Node(name="x", role=topology.NodeRole.EDGE, cpu_cores=1.0, memory_bytes=1.0)
    found = topology.Topology(nodes=(node,), links=(link,), slices=(), containers=())
    assert found.link("y", "x") is link is found.link("x", "y")
    assert found.link("x", "x") is None
    assert (found.node("x"), found.node("y"), found.container("c")) == (node, None, None)


def test_an_account_never_promises_less_than_nothing() -> None:
    account = quota.QuotaAccount(
        container="c", window_start_s=0.0, window_s=1.0, budget_s=2.0, reserved_s=1.5, spent_s=1.0
    )
    assert account.left_s == 0.0
