"""From a container's load and its forecast to sections, and from outlooks and a topology to a plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.domain.migrations import ContainerLoad, MethodReason, MigrationOutlook
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Container, Link, Node, NodeRole, Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import NotFoundError, PreconditionError, UsageError
from natwork_ray.limi.choosing import ByEquations
from natwork_ray.limi.load_classes import FEASIBLE_CLASSES, draw_load
from natwork_ray.limi.service_members import member_of, plan_service, rooms, route
from natwork_ray.limi.service_plan import Gate, Member, NodeRoom
from natwork_ray.limi.waves import ScheduleRefusedError

MIB = 2.0**20
LOAD = ContainerLoad(
    memory_bytes=64 * MIB, dirty_bytes_per_s=4 * MIB, working_set_bytes=20 * MIB, cpu_cores=0.5, cpu_limit_cores=1.0,
    volume_bytes=32 * MIB, volume_delta_bytes=8 * MIB, volume_write_bytes_per_s=MIB, network_rx_bytes_per_s=0.0,
    network_tx_bytes_per_s=0.0, bandwidth_bytes_per_s=100 * MIB, rtt_s=0.001, observed_s=1.0,
)  # fmt: skip


def forecasts(load: ContainerLoad) -> dict[MigrationMethod, Member]:
    choice = ByEquations().choose(load, tuple(MigrationMethod), weight=0.2)
    return {
        f.method: member_of("web", load, f, source="edge", target="core", path=("edge>core",)) for f in choice.forecasts
    }


@given(st.integers(0, len(FEASIBLE_CLASSES) - 1), st.integers(0, 2**32 - 1))
def test_sections_add_up_to_the_forecast(number: int, seed: int) -> None:
    load = draw_load(FEASIBLE_CLASSES[number], np.random.default_rng(seed))
    for method, m in forecasts(load).items():
        down_s = m.stopped.alone_s(m.rate_bytes_per_s) + m.restore_s + m.attach_s
        assert down_s == pytest.approx(m.forecast.downtime_p50_s, rel=1e-6)
        rest_s = m.live.alone_s(m.rate_bytes_per_s) + m.lazy.alone_s(m.lazy_rate_bytes_per_s)
        assert down_s + rest_s == pytest.approx(m.forecast.total_p50_s, rel=1e-6)
        assert m.caution >= 1
        assert (m.lazy.transfer_bytes > 0) == (method in (MigrationMethod.POST_COPY, MigrationMethod.HYBRID))


def test_what_crosses_the_link_and_when() -> None:
    by_method = forecasts(LOAD)
    cold, pre = by_method[MigrationMethod.COLD], by_method[MigrationMethod.PRE_COPY]
    post, hybrid = by_method[MigrationMethod.POST_COPY], by_method[MigrationMethod.HYBRID]
    assert cold.live.transfer_bytes == post.live.transfer_bytes == 0
    assert cold.stopped.transfer_bytes > 64 * MIB * 0.8
    # Pre-copy sends everything and then once more what was written meanwhile; hybrid leaves that for later.
    assert pre.live.transfer_bytes > hybrid.live.transfer_bytes > 60 * MIB
    assert post.lazy.transfer_bytes > 10 * hybrid.lazy.transfer_bytes > 0
    # What was not copied yet grows from the beginning, what was copied from then on.
    assert [g.from_start for g in cold.growth + post.growth] == [True, True]
    assert [(g.from_start, g.lazy) for g in pre.growth] == [(False, False), (False, False)]
    assert [(g.from_start, g.lazy) for g in hybrid.growth] == [(False, False), (False, True)]


def test_a_forecast_that_differs_from_the_laws_stretches_the_sections() -> None:
    (usual,) = (f for f in ByEquations().choose(LOAD, [MigrationMethod.COLD], weight=0).forecasts)
    slow = replace(usual, downtime_p50_s=2 * usual.downtime_p50_s, total_p50_s=2 * usual.total_p50_s)
    a, b = (member_of("c", LOAD, f, source="s", target="t", path=("k",)) for f in (usual, slow))
    assert b.stopped.transfer_bytes == pytest.approx(2 * a.stopped.transfer_bytes)
    assert b.restore_s == pytest.approx(2 * a.restore_s)
    absurd = replace(usual, downtime_p50_s=1e6, total_p50_s=1e6)
    c = member_of("c", LOAD, absurd, source="s", target="t", path=("k",))
    assert c.restore_s == pytest.approx(4 * a.restore_s, rel=0.05)
    with pytest.raises(UsageError, match="no bandwidth"):
        member_of("c", replace(LOAD, bandwidth_bytes_per_s=0.0), usual, source="s", target="t", path=("k",))


def node(name: str, cores: float = 8.0) -> Node:
    return Node(name=name, role=NodeRole.EDGE, cpu_cores=cores, memory_bytes=2.0**33)


def container(name: str, where: str, *calls: str) -> Container:
    return Container(
        name=name, service=name, network_service="shop", slice="", node=where, replicas=2, cpu_limit_cores=1.0,
        memory_limit_bytes=128 * MIB, depends_on=calls,
    )  # fmt: skip


TOPOLOGY = Topology(
    nodes=(node("edge"), node("hub"), node("core"), node("island")),
    links=(
        Link(a="edge", b="hub", bandwidth_bytes_per_s=100 * MIB, rtt_s=0.001),
        Link(a="core", b="hub", bandwidth_bytes_per_s=50 * MIB, rtt_s=0.002),
    ),
    slices=(),
    containers=(container("web", "edge", "db"), container("db", "edge"), container("hubbed", "hub")),
)


def outlook(
    name: str, target: str = "core", load: ContainerLoad | None = LOAD, source: str = "edge"
) -> MigrationOutlook:
    choice = ByEquations().choose(LOAD, tuple(MigrationMethod), weight=0.2)
    return MigrationOutlook(
        container=name, source=source, target=target, backend=Backend.EMULATED, weight=0.2, load=load,
        forecasts=choice.forecasts, chosen=choice.method, chosen_by="rule", reason="",
    )  # fmt: skip


def test_a_service_on_its_way_over_two_links() -> None:
    request, made = plan_service("shop", [outlook("web"), outlook("db"), outlook("hubbed", source="hub")], TOPOLOGY)
    assert [m.path for m in request.members] == [("edge>hub", "hub>core")] * 2 + [("hub>core",)]
    assert {k.name: k.bytes_per_s for k in request.links} == {"edge>hub": 100 * MIB, "hub>core": 50 * MIB}
    assert request.members[0].calls == ("db",)
    assert request.gates == ()
    assert len(made.waves) == 1
    assert request.rtt_s("edge", "hub") == 0.001
    assert rooms(TOPOLOGY)[0] == NodeRoom(node="edge", cpu_cores=4.0, memory_bytes=2.0**33 - 512 * MIB)


def test_where_nothing_was_measured_the_limits_stand_for_the_load() -> None:
    request, made = plan_service("shop", [outlook("web", load=None)], TOPOLOGY, gates=tuple(Gate))
    assert request.members[0].memory_bytes == 256 * MIB
    assert made.arrivals_s[0] > 0


def test_ways() -> None:
    assert route(TOPOLOGY, "edge", "core") == (("edge", "hub"), ("hub", "core"))
    assert route(TOPOLOGY, "core", "hub") == (("core", "hub"),)
    for source, target in (("edge", "island"), ("edge", "edge")):
        with pytest.raises(PreconditionError, match="no link leads"):
            route(TOPOLOGY, source, target)


def test_services_that_cannot_be_planned() -> None:
    with pytest.raises(NotFoundError, match="stranger"):
        plan_service("shop", [outlook("stranger")], TOPOLOGY)
    with pytest.raises(NotFoundError, match="nowhere"):
        plan_service("shop", [outlook("web", target="nowhere")], TOPOLOGY)
    impossible = replace(
        outlook("web"), chosen=None, impossible=(MethodReason(method=MigrationMethod.COLD, reason="no CRIU"),)
    )
    with pytest.raises(PreconditionError) as refused:
        plan_service("shop", [impossible], TOPOLOGY)
    assert "cold: no CRIU" in refused.value.hint
    small = replace(TOPOLOGY, nodes=(*TOPOLOGY.nodes[:2], node("core", 1.0)))
    with pytest.raises(ScheduleRefusedError, match="needs 2 cores on core, which has 1 free"):
        plan_service("shop", [outlook("web")], small)
