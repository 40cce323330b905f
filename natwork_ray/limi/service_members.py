"""From measured containers and forecasts to what the schedule plans with (`natwork_ray.limi.service_plan`).

A forecast says how long a migration and its downtime take; the schedule also has to know when the link is used. The
laws of the phases (`natwork_ray.limi.phase_times`) split the forecast into sections, with the rounds of pre-copy that
`natwork_ray.limi.plan` would make; then the sections are stretched so that they add up to what was forecast. Whoever
forecasts better (`natwork_ray.limi.choosing`) thus makes a better schedule, without a word changed here.

    >>> web = member_of("web", load, forecast, source="edge", target="core", path=("edge>core",))   # doctest: +SKIP
    >>> web.stopped.transfer_bytes                                                                  # doctest: +SKIP
    2097152.0

Left out: transfers that run beside each other in one section are counted as one after the other on the link, which is
the same as soon as the link is what limits them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

from natwork_ray.domain.migrations import ContainerLoad, MigrationForecast, MigrationOutlook
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.domain.topology import Container, Topology
from natwork_ray.errors import NotFoundError, PreconditionError, UsageError
from natwork_ray.limi import phase_times
from natwork_ray.limi.durations import TYPICAL_DIRTY_SHARE_PER_S, TYPICAL_VOLUME_BYTES, TYPICAL_WORKING_SET_SHARE
from natwork_ray.limi.phase_times import DEFAULT_PARAMETERS, DurationParameters
from natwork_ray.limi.plan import LAZY, ROUNDS, another_round
from natwork_ray.limi.schedule import plan
from natwork_ray.limi.service_plan import (
    Gate,
    Growth,
    LinkCapacity,
    Member,
    MigrationPlan,
    NodeDistance,
    NodeRoom,
    OnFailure,
    ScheduleRequest,
    Section,
)

_STRETCH = (0.25, 4.0)  # further from the laws than that, a forecast says nothing about when the link is used
_MAX_ROUNDS = 5


def member_of(
    container: str,
    load: ContainerLoad,
    forecast: MigrationForecast,
    *,
    source: str,
    target: str,
    path: tuple[str, ...],
    claims: tuple[float, float] = (0.0, 0.0),
    calls: tuple[str, ...] = (),
    parameters: DurationParameters = DEFAULT_PARAMETERS,
) -> Member:
    """One container of a service. `claims` are the cores and bytes of memory that a node holds free for it.

    Raises:
        UsageError: the load has no bandwidth.
    """
    if not load.bandwidth_bytes_per_s > 0:
        raise UsageError(f"the path of {container} has no bandwidth", hint="measure the path as well as the container")
    p, method = parameters, forecast.method
    rate, lazy_rate = p.transfer_share * load.bandwidth_bytes_per_s, p.lazy_share * load.bandwidth_bytes_per_s
    start_s = phase_times.transfer_start_s(load.rtt_s, p)
    volume = load.volume_delta_bytes
    live = Section(fixed_s=p.check_s + max(p.open_path_s, p.prepare_s + p.check_s))
    residual = 0.0
    if method in ROUNDS:
        live, residual, since_volume_s = _rounds(load, method, live, rate, start_s, p)
        volume = phase_times.volume_residual_bytes(
            volume_bytes=load.volume_bytes,
            write_bytes_per_s=load.volume_write_bytes_per_s,
            elapsed_s=since_volume_s,
            p=p,
        )
    dumped = residual if method is MigrationMethod.PRE_COPY else 0.0 if method in LAZY else load.memory_bytes
    dump_s = phase_times.dump_s(dumped, cpu_limit_cores=load.cpu_limit_cores, p=p)
    sent = dumped + p.minimal_dump_bytes * (method is not MigrationMethod.COLD)
    # The volume starts with the dump: what it sends meanwhile is not waited for.
    beside = max(0.0, dump_s + start_s - phase_times.volume_start_s(load.volume_bytes, load.rtt_s, p)) * rate
    stopped = Section(fixed_s=p.freeze_s + dump_s + start_s, transfer_bytes=sent + max(0.0, volume - beside))
    restore_s = phase_times.restore_s(load.memory_bytes, lazy=method in LAZY, cpu_limit_cores=load.cpu_limit_cores, p=p)
    pages = {MigrationMethod.POST_COPY: load.memory_bytes, MigrationMethod.HYBRID: residual}.get(method, 0.0)
    waits_s = phase_times.demand_faults_s(pages, load.working_set_bytes, load.rtt_s, p)
    lazy = Section(fixed_s=waits_s, transfer_bytes=pages)

    down_s = stopped.alone_s(rate) + restore_s + p.address_move_s
    longer = _stretch(forecast.downtime_p50_s, down_s)
    rest_s = live.alone_s(rate) + lazy.alone_s(lazy_rate)
    slower = _stretch(forecast.total_p50_s - forecast.downtime_p50_s, rest_s)
    return Member(
        container=container,
        source=source,
        target=target,
        forecast=forecast,
        path=path,
        rate_bytes_per_s=rate,
        lazy_rate_bytes_per_s=lazy_rate,
        live=_stretched(live, slower),
        stopped=_stretched(stopped, longer),
        restore_s=restore_s * longer,
        attach_s=p.address_move_s * longer,
        lazy=_stretched(lazy, slower),
        cpu_cores=claims[0],
        memory_bytes=claims[1],
        calls=calls,
        growth=_growth(load, method, residual, volume),
    )


def _rounds(
    load: ContainerLoad, method: MigrationMethod, before: Section, rate: float, start_s: float, p: DurationParameters
) -> tuple[Section, float, float]:
    """The live section with its rounds, the residual after them, and the time since the volume's copy was begun."""
    fixed_s, sent, since_volume_s = before.fixed_s, 0.0, 0.0
    carried: tuple[float, ...] = ()
    size = load.memory_bytes
    while another_round(method, max_rounds=_MAX_ROUNDS, residuals=carried):
        round_fixed_s = start_s + phase_times.pre_dump_s(
            size, cpu_cores=load.cpu_cores, cpu_limit_cores=load.cpu_limit_cores, p=p
        )
        beside = 0.0 if carried else load.volume_delta_bytes
        took_s = round_fixed_s + (size + beside) / rate
        fixed_s, sent, since_volume_s = fixed_s + round_fixed_s, sent + size + beside, since_volume_s + took_s
        carried = (*carried, size)
        size = phase_times.residual_bytes(
            working_set_bytes=min(load.working_set_bytes, load.memory_bytes),
            dirty_bytes_per_s=load.dirty_bytes_per_s,
            elapsed_s=took_s,
        )
    return Section(fixed_s=fixed_s, transfer_bytes=sent), size, since_volume_s


def _growth(load: ContainerLoad, method: MigrationMethod, residual: float, volume: float) -> tuple[Growth, ...]:
    """What waiting adds: files since they were last copied, or since they were measured; memory after a round."""
    files = Growth(
        bytes_per_s=load.volume_write_bytes_per_s,
        room_bytes=max(0.0, load.volume_bytes - volume),
        from_start=method not in ROUNDS,
    )
    if method not in ROUNDS:
        return (files,)
    room = max(0.0, min(load.working_set_bytes, load.memory_bytes) - residual)
    return files, Growth(bytes_per_s=load.dirty_bytes_per_s, room_bytes=room, lazy=method in LAZY)


def _stretch(forecast_s: float, laws_s: float) -> float:
    least, most = _STRETCH
    return min(most, max(least, forecast_s / laws_s)) if laws_s > 0 else 1.0


def _stretched(section: Section, factor: float) -> Section:
    return Section(fixed_s=section.fixed_s * factor, transfer_bytes=section.transfer_bytes * factor)


def plan_service(
    service: str,
    outlooks: Sequence[MigrationOutlook],
    topology: Topology,
    *,
    gates: tuple[Gate, ...] = (),
    on_failure: OnFailure = OnFailure.CARRY_ON,
    parameters: DurationParameters = DEFAULT_PARAMETERS,
) -> tuple[ScheduleRequest, MigrationPlan]:
    """The schedule of a service, from one outlook (dry run) per container, and the request that it was made from.

    Each outlook has to have chosen a method. Where nothing was measured, the container's limits stand for its load.
    The caller says at which gates it can hold members; without any, start times are all there is.

    Raises:
        UsageError: no outlook, a container twice, or one that is on its target already.
        NotFoundError: a container or a node that the topology does not have.
        PreconditionError: no method is possible for a container, or no way leads to its target.
        ScheduleRefusedError: the nodes have no room, in whatever order.
    """
    members: list[Member] = []
    offered: dict[str, list[float]] = {}
    for outlook in outlooks:
        container = topology.container(outlook.container)
        if container is None or topology.node(outlook.target) is None:
            raise NotFoundError(
                f"container {outlook.container} or node {outlook.target} does not exist",
                hint="`natwork status` lists what runs where",
            )
        chosen = outlook.forecast()
        if chosen is None:
            raise PreconditionError(
                f"no method is possible for {outlook.container}",
                hint="; ".join(f"{i.method}: {i.reason}" for i in outlook.impossible) or "see `natwork doctor`",
            )
        hops = route(topology, outlook.source, outlook.target)
        path = tuple(f"{a}>{b}" for a, b in hops)
        links = [topology.link(a, b) for a, b in hops]
        bandwidth = min(k.bandwidth_bytes_per_s for k in links if k is not None)
        rtt_s = sum(k.rtt_s for k in links if k is not None)
        load = outlook.load or _load_of_limits(container, bandwidth, rtt_s)
        for name, link in zip(path, links, strict=True):
            # Measured rates tell what clients leave over; a link that others of the service cross has one capacity.
            known = load.bandwidth_bytes_per_s if len(path) == 1 else link.bandwidth_bytes_per_s if link else 0.0
            offered.setdefault(name, []).append(known)
        members.append(
            member_of(
                container.name,
                load,
                chosen,
                source=outlook.source,
                target=outlook.target,
                path=path,
                claims=_claims(container),
                calls=container.depends_on,
                parameters=parameters,
            )
        )
    request = ScheduleRequest(
        service=service,
        members=tuple(members),
        links=tuple(LinkCapacity(name=name, bytes_per_s=median(rates)) for name, rates in offered.items()),
        rooms=rooms(topology),
        distances=distances(topology),
        gates=gates,
        on_failure=on_failure,
    )
    return request, plan(request)


def route(topology: Topology, source: str, target: str) -> tuple[tuple[str, str], ...]:
    """The links of a way with the fewest hops, in order, as (from, to).

    Raises:
        PreconditionError: no way leads there.
    """
    near: dict[str, list[str]] = {}
    for link in topology.links:
        near.setdefault(link.a, []).append(link.b)
        near.setdefault(link.b, []).append(link.a)
    came: dict[str, str] = {source: source}
    queue = deque([source])
    while queue and target not in came:
        node = queue.popleft()
        for other in near.get(node, ()):
            if other not in came:
                came[other] = node
                queue.append(other)
    if target not in came or source == target:
        raise PreconditionError(f"no link leads from {source} to {target}", hint="choose a node that can be reached")
    hops: list[tuple[str, str]] = []
    node = target
    while node != source:
        hops.append((came[node], node))
        node = came[node]
    return tuple(reversed(hops))


def rooms(topology: Topology) -> tuple[NodeRoom, ...]:
    """What limits of the containers leave free on each node; an overbooked node has nothing."""
    taken: Mapping[str, list[float]] = {node.name: [0.0, 0.0] for node in topology.nodes}
    for container in topology.containers:
        if container.node in taken:
            cores, memory = _claims(container)
            taken[container.node][0] += cores
            taken[container.node][1] += memory
    return tuple(
        NodeRoom(
            node=node.name,
            cpu_cores=max(0.0, node.cpu_cores - taken[node.name][0]),
            memory_bytes=max(0.0, node.memory_bytes - taken[node.name][1]),
        )
        for node in topology.nodes
    )


def distances(topology: Topology) -> tuple[NodeDistance, ...]:
    """Round trips between nodes that are linked."""
    return tuple(NodeDistance(a=link.a, b=link.b, rtt_s=link.rtt_s) for link in topology.links)


def _claims(container: Container) -> tuple[float, float]:
    return container.replicas * container.cpu_limit_cores, container.replicas * container.memory_limit_bytes


def _load_of_limits(container: Container, bandwidth_bytes_per_s: float, rtt_s: float) -> ContainerLoad:
    """A cautious guess: everything unknown at the upper end of what is usual."""
    cores, memory = _claims(container)
    return ContainerLoad(
        memory_bytes=memory,
        dirty_bytes_per_s=TYPICAL_DIRTY_SHARE_PER_S * memory,
        working_set_bytes=TYPICAL_WORKING_SET_SHARE * memory,
        cpu_cores=cores,
        cpu_limit_cores=cores,
        volume_bytes=TYPICAL_VOLUME_BYTES,
        volume_delta_bytes=TYPICAL_VOLUME_BYTES,
        volume_write_bytes_per_s=0.0,
        network_rx_bytes_per_s=0.0,
        network_tx_bytes_per_s=0.0,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        rtt_s=rtt_s,
        observed_s=0.0,
    )
