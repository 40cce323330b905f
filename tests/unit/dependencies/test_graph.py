"""Dependency graphs: from configuration, from flows, joined, and inferred."""

from __future__ import annotations

import numpy as np
import pytest

from natwork_ray.dependencies.graph import (
    ONLINE_BOUTIQUE,
    SOCK_SHOP,
    Call,
    DependencyGraph,
    Origin,
    from_calls,
    from_flows,
    from_topology,
)
from natwork_ray.dependencies.inference import infer_graph
from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.emulation.scenarios import grid
from natwork_ray.emulation.testbed import Testbed
from natwork_ray.errors import InputError


def pairs(graph: DependencyGraph) -> set[tuple[str, str]]:
    return {(c.caller, c.callee) for c in graph.calls}


def test_the_topology_says_who_calls_whom() -> None:
    topology = grid(10, seed=3).topology
    graph = from_topology(topology)
    assert pairs(graph) == {(c.name, d) for c in topology.containers for d in c.depends_on}
    caller = next(c for c in topology.containers if c.depends_on)
    assert set(graph.callees(caller.name)) == set(caller.depends_on)
    assert caller.name in graph.callers(caller.depends_on[0])
    matrix = graph.matrix(graph.containers)
    assert matrix.sum() == len(graph.calls)
    assert matrix[graph.containers.index(caller.name), graph.containers.index(caller.depends_on[0])] == 1.0


def test_flows_say_it_where_sources_are_containers() -> None:
    def flow(source: str, share: float) -> FlowShare:
        return FlowShare(source=source, request_share=share, failed_share=0.0)

    flows = {
        "orders": (flow("10.0.0.1", 0.7), flow("198.51.100.0/28", 0.295), flow("10.0.0.9", 0.005)),
        "gate": (flow("198.51.100.0/28", 1.0), flow("10.0.0.2", 0.02)),
    }
    addresses = {"10.0.0.1": "gate", "10.0.0.2": "orders", "10.0.0.9": "probe"}
    graph = from_flows(flows, addresses=addresses)
    assert pairs(graph) == {("gate", "orders"), ("orders", "gate")}  # a probe's half a per cent is no dependency
    assert {c.origin for c in graph.calls} == {Origin.FLOWS}
    with pytest.raises(InputError, match="least_share"):
        from_flows(flows, addresses=addresses, least_share=1.0)


def test_what_is_configured_is_believed_over_what_was_inferred() -> None:
    known = DependencyGraph(containers=("a", "b"), calls=(Call(caller="a", callee="b"),))
    guess = DependencyGraph(
        containers=("a", "b", "c"),
        calls=tuple(
            Call(caller=x, callee=y, weight=0.5, origin=Origin.INFERRED)
            for x, y in (("a", "b"), ("b", "a"), ("b", "c"))
        ),
    )
    for joined in (known.joined(guess), guess.joined(known)):
        assert joined.callees("a") == {"b": 1.0}
        assert pairs(joined) == {("a", "b"), ("b", "a"), ("b", "c")}
        assert set(joined.containers) == {"a", "b", "c"}


@pytest.mark.parametrize("weight", [0.0, 1.1, float("nan")])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(InputError):
        Call(caller="a", callee="b", weight=weight)


def test_strangers_doubles_and_loops_are_refused() -> None:
    call = Call(caller="a", callee="b")
    for containers, calls in ((("a",), (call,)), (("a", "b"), (call, call)), (("a", "a", "b"), ())):
        with pytest.raises(InputError):
            DependencyGraph(containers=containers, calls=calls)
    with pytest.raises(InputError):
        Call(caller="a", callee="a")


@pytest.mark.parametrize(
    ("table", "front", "leaf"), [(ONLINE_BOUTIQUE, "frontend", "emailservice"), (SOCK_SHOP, "front-end", "user-db")]
)
def test_published_graphs_reach_every_container_from_the_front(
    table: dict[str, tuple[str, ...]], front: str, leaf: str
) -> None:
    names = tuple(dict.fromkeys([*table, *(c for callees in table.values() for c in callees)]))
    graph = from_calls(names, table)
    reached, waiting = {front}, [front]
    while waiting:
        for callee in graph.callees(waiting.pop()):
            if callee not in reached:
                reached.add(callee)
                waiting.append(callee)
    assert leaf in reached
    assert not graph.callees(leaf)


def test_an_inferred_graph_finds_most_edges_and_few_false_ones() -> None:
    # Emulated: half of the edges at the least, nine tenths of those found are real. A wrong sign or no test fails this.
    found = wanted = right = 0
    for seed in (1, 2):
        scenario = grid(16, seed=seed)
        testbed = Testbed(scenario, seed=seed)
        testbed.advance(3600.0)
        inferred = infer_graph(testbed.window(end_s=3600.0, length=360))
        edges = {frozenset(p) for p in pairs(inferred)}
        real = {frozenset(p) for p in pairs(from_topology(scenario.topology))}
        found, wanted, right = found + len(edges), wanted + len(real), right + len(edges & real)
        assert {c.weight for c in inferred.calls} == {0.5}
        assert {(b, a) for a, b in pairs(inferred)} == pairs(inferred)  # no direction is claimed
    assert right / found >= 0.9
    assert right / wanted >= 0.5


def test_noise_alone_gives_hardly_any_edge(make_window) -> None:  # type: ignore[no-untyped-def]
    names = tuple(f"c{i}" for i in range(12))
    edges = sum(len(infer_graph(make_window(names, samples=300, seed=s)).calls) // 2 for s in range(10))
    assert edges <= 10  # of 660 pairs; the false discovery rate bounds how often there is any


def test_what_does_not_move_or_was_not_measured_has_no_edges(make_window) -> None:  # type: ignore[no-untyped-def]
    window = make_window(samples=100)
    window.values[0] = np.nan
    window.values[1] = 7.0
    assert infer_graph(window).calls == ()
    for bad in ({"fdr": 0.0}, {"fdr": 1.0}):
        with pytest.raises(InputError):
            infer_graph(window, **bad)
    with pytest.raises(InputError, match="59 samples"):
        infer_graph(make_window(samples=59))
