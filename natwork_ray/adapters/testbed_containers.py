"""Containers of a real testbed: the workload started on a node, and what runs where.

A container gets an address of the testbed's network that no other has, and a MAC that belongs to it wherever it goes;
both are in the specification that lies in its bundle. The container is on the bridge only once it runs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil

from natwork_ray.adapters.l2_bridge import L2Bridge
from natwork_ray.adapters.runc_criu import RuncCriu
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import FIRST_CONTAINER
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.testbed_traces import delete_tree
from natwork_ray.adapters.testbed_world import specs_of
from natwork_ray.adapters.workload import BASE_MEMORY_BYTES, ECHO_PORT, Load, make_rootfs, workload_spec
from natwork_ray.domain.runtime import ContainerSpec, ContainerState
from natwork_ray.domain.values import value
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, RefusedError, TimedOutError, UsageError

# It is part of namespaces' and folders' names.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_MAX_CORES = 4096.0
_ASK_S = 1.0


@value
class Placed:
    """A container and where it is; `pid` is 0 unless it runs or stands frozen."""

    spec: ContainerSpec
    node: str
    state: ContainerState
    pid: int


def free_address(record: TestbedRecord) -> str:
    """The first address, with prefix length, that no container of the testbed has.

    Raises:
        RefusedError: all are taken.
    """
    network = ipaddress.IPv4Network(record.network)
    taken = {ipaddress.IPv4Interface(spec.address).ip for node in record.nodes for spec in specs_of(node)}
    for number in range(FIRST_CONTAINER, network.num_addresses - 1):
        if network[number] not in taken:
            return f"{network[number]}/{network.prefixlen}"
    raise RefusedError(f"all addresses of {record.network} are taken", hint="remove a container")


def new_spec(
    record: TestbedRecord,
    name: str,
    load: Load,
    *,
    cpu_limit_cores: float = 0.0,
    memory_limit_bytes: float = 0.0,
    service: str = "",
    depends_on: Sequence[str] = (),
) -> ContainerSpec:
    """A specification with an address of its own. Nothing is made. Those that it depends on need not be there yet.

    Raises:
        UsageError: a name cannot be one, it depends on itself, or a limit is out of range.
        ConflictError: a container of that name is there.
    """
    for each in (name, *depends_on, *([service] if service else [])):
        if not _NAME.fullmatch(each):
            raise UsageError(f"{each!r} cannot be a name", hint="a to z, 0 to 9 and dashes, at most 31")
    if not 0 <= cpu_limit_cores <= _MAX_CORES:
        raise UsageError(
            f"cpu limit {cpu_limit_cores:g} cores is not 0 to {_MAX_CORES:g}",
            hint="0 sets no limit; 0.5 is half a core",
        )
    if name in depends_on:
        raise UsageError(f"{name} cannot depend on itself", hint="name other containers of its service")
    for node in record.nodes:
        if any(spec.name == name for spec in specs_of(node)):
            raise ConflictError(f"there is a container {name} on {node.name}", hint="natwork testbed containers")
    address = free_address(record)
    spec = workload_spec(
        name,
        address=address,
        mac=mac_of(address),
        load=load,
        cpu_limit_cores=cpu_limit_cores,
        memory_limit_bytes=memory_limit_bytes,
    )
    return replace(spec, service=service, depends_on=tuple(depends_on))


def mac_of(address: str) -> str:
    """The MAC address that goes with an IPv4 address: locally administered, unicast, always the same one.

    An address that is used again would otherwise be out of reach for half a minute, until neighbours that remember the
    container before ask anew.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x6E, *ipaddress.ip_interface(address).ip.packed))


def require_room(layout: NodeLayout, load: Load, *, volume_bytes: int = 0) -> None:
    """Whether the machine can hold such a workload on the node, now. Nothing is made.

    Raises:
        RefusedError: too little memory is available, or too little of the disk is free.
    """
    available: int = psutil.virtual_memory().available
    needed = load.memory_bytes + BASE_MEMORY_BYTES
    if needed > available:
        raise RefusedError(
            f"the workload holds {needed} bytes of memory, {available} are available", hint="hold less, or free memory"
        )
    place = next(path for path in (layout.bundles, *layout.bundles.parents) if path.exists())
    free = shutil.disk_usage(place).free
    written = volume_bytes + load.storage_file_bytes
    if written > free:
        raise RefusedError(
            f"the workload's data takes {written} bytes, {free} are free in {place}", hint="less data, or free the disk"
        )


async def start(
    record: TestbedRecord,
    node: str,
    spec: ContainerSpec,
    *,
    tools: Toolchain,
    rng: random.Random,
    volume_bytes: int = 0,
    serve_within_s: float | None = None,
) -> Placed:
    """Make a workload's root file system on a node and run it there. What fails is taken away again.

    Args:
        serve_within_s: wait so long for its first answer; None does not wait.

    Raises:
        NotFoundError: there is no such node.
        ActionError: it did not start, or ended at once.
        TimedOutError: it did not answer.
    """
    layout = record.node(node)
    runtime, bridge = RuncCriu(layout, tools), L2Bridge(layout)
    try:
        make_rootfs(layout.rootfs(spec.name), volume_bytes=volume_bytes, rng=rng)
        await bridge.prepare(spec, key="start")
        await runtime.create_and_start(spec)
        await bridge.attach(spec.name)
        if serve_within_s is not None:
            await _until_serving(runtime, spec, patience_s=serve_within_s)
        status = await runtime.status(spec.name)
    except BaseException:
        await runtime.destroy(spec.name, key="start")
        await bridge.remove(spec.name)
        delete_tree(layout.bundle(spec.name))
        raise
    finally:
        await bridge.shut()
    return Placed(spec=spec, node=node, state=status.state, pid=status.pid)


async def _until_serving(runtime: RuncCriu, spec: ContainerSpec, *, patience_s: float) -> None:
    host = spec.address.partition("/")[0]
    deadline = time.monotonic() + patience_s
    while not await answers(host):
        status = await runtime.status(spec.name)
        if status.state is not ContainerState.RUNNING:
            raise ActionError(f"{spec.name} ended before it answered", hint="has it the memory that it holds?")
        if time.monotonic() > deadline:
            raise TimedOutError(
                f"{spec.name} at {host} did not answer within {patience_s:g} s", hint="hold less, or raise its limits"
            )
        await asyncio.sleep(0.05)


async def answers(host: str, port: int = ECHO_PORT) -> bool:
    """Whether a workload answers there: it does once it holds its memory."""
    try:
        async with asyncio.timeout(_ASK_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"0\n")
                return (await reader.readline()).startswith(b"0 ")
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):  # ValueError: a line without an end
        return False


async def containers(record: TestbedRecord, *, tools: Toolchain) -> tuple[Placed, ...]:
    """Every container of the testbed, on every node where something of it is."""
    found = []
    for layout in record.nodes:
        runtime = RuncCriu(layout, tools)
        for spec in specs_of(layout):
            status = await runtime.status(spec.name)
            if status.state is not ContainerState.ABSENT:
                found.append(Placed(spec=spec, node=layout.name, state=status.state, pid=status.pid))
    return tuple(found)


async def find(record: TestbedRecord, name: str, *, tools: Toolchain) -> Placed:
    """Where a container runs.

    Raises:
        NotFoundError: it runs nowhere.
    """
    for placed in await containers(record, tools=tools):
        if placed.spec.name == name and placed.state is ContainerState.RUNNING:
            return placed
    raise NotFoundError(f"no container {name} runs on this testbed", hint="natwork testbed containers")
