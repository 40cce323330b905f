"""A real testbed on one Linux machine: nodes are network namespaces on one bridge, each with an sshd of its own.

This is where D3.3 section 2.1 is measured without a second machine: containers, checkpoints, SSH, addresses and TCP
sessions are real, the kernel is shared. `up` makes it, `down` removes every trace, also of an `up` or an agent that was
killed. Needs root; what else it needs is told by `natwork doctor` (natwork_ray.adapters.testbed_requirements).

Rules kept: the record is written before the first thing is made; everything outside the testbed's folder carries its
random id in its name; one testbed per state directory, any number per machine. Checkpoints lie on a tmpfs of limited
size per node, so that a full one is a fault of one node and not of the machine. Randomness and time are arguments.

Left out: kernels of their own per node (a machine per node is the Kubernetes testbed's), packet delay and loss.

    record = up(state_dir, tools=require(), rng=random.SystemRandom(), now_s=time.time())
    record.node("node-1").address
    down(state_dir)
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil

from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import (
    NETNS,
    checked,
    choose_network,
    make_bridge,
    make_node,
)
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_sshd import environment, make_keys, root_is_locked, start_sshd
from natwork_ray.adapters.testbed_state import (
    OwnProcess,
    TestbedRecord,
    join,
    leave,
    load,
    members,
    save,
    started_ticks,
)
from natwork_ray.adapters.testbed_traces import CGROUPS, LINKS, Trace, leftovers, remove
from natwork_ray.domain.values import value
from natwork_ray.errors import ConflictError, InputError, NotFoundError, PreconditionError, UsageError

FOLDER = "testbed"
MAX_NODES = 16
SSH_PORT = 2222
MIB = 2**20
_DEFAULT_IMAGES_BYTES = 2048 * MIB


@value
class NodeStatus:
    """One node: whether its namespace and its sshd are there, and how full its folder of checkpoints is."""

    name: str
    address: str
    namespace: bool
    sshd: bool
    images_used_bytes: int
    images_bytes: int
    containers: tuple[str, ...]


@value
class TestbedStatus:
    """What stands of a testbed."""

    record: TestbedRecord
    nodes: tuple[NodeStatus, ...]

    __test__ = False  # its name is not meant for pytest

    @property
    def healthy(self) -> bool:
        """Whether every node is whole."""
        return self.record.complete and all(node.namespace and node.sshd for node in self.nodes)


def plan(
    state_dir: Path,
    *,
    nodes: int = 3,
    bandwidth_bytes_per_s: float = 0.0,
    images_bytes: int = 0,
    tools: Toolchain,
    rng: random.Random,
    now_s: float,
    machine: Machine | None = None,
) -> TestbedRecord:
    """What `up` would make. Nothing is changed.

    Args:
        nodes: 2 to 16.
        bandwidth_bytes_per_s: hold each node's link to that rate; 0 leaves it as fast as the machine.
        images_bytes: size of each node's tmpfs; 0 takes 2 GiB, or less on a small machine.

    Raises:
        UsageError: a value out of range.
        PreconditionError: no root, or no free address range.
        ConflictError: a testbed is there already.
    """
    machine = machine or Machine()
    if not 2 <= nodes <= MAX_NODES:
        raise UsageError(f"nodes = {nodes} is not 2 to {MAX_NODES}", hint="3 are enough for everything here")
    if bandwidth_bytes_per_s and not 125_000 <= bandwidth_bytes_per_s <= 1e11:
        raise UsageError(
            f"bandwidth = {bandwidth_bytes_per_s:g} bytes/s is not 125000 to 1e11", hint="125000 bytes/s are 1 Mbit/s"
        )
    if images_bytes and images_bytes < MIB:
        raise UsageError(f"images = {images_bytes} bytes is less than 1 MiB", hint="a checkpoint is larger")
    memory: int = psutil.virtual_memory().total
    if images_bytes > memory:
        raise UsageError(
            f"images = {images_bytes} bytes is more than the {memory} bytes of memory of this machine",
            hint="checkpoints lie in memory: choose less, or leave it out",
        )
    if machine.uid() != 0:
        raise PreconditionError("a testbed needs root: it makes namespaces and mounts", hint="use sudo")
    folder = testbed_folder(state_dir)
    there = load(folder)
    if there is not None:
        names = ", ".join(layout.name for layout in there.nodes)
        whole = "" if there.complete else " (half made)"
        raise ConflictError(
            f"testbed {there.id} is there already{whole}: {names} on {there.network}",
            hint="natwork testbed status, or natwork testbed down",
        )
    if folder.exists():
        raise ConflictError(f"{folder} is there, but holds no testbed", hint="look into it, and move it away")
    available: int = psutil.virtual_memory().available
    images_bytes = images_bytes or min(_DEFAULT_IMAGES_BYTES, max(available // (2 * nodes), MIB))
    testbed, network = _fresh_id(rng), choose_network(machine, tools.ip, rng)
    layouts = tuple(
        NodeLayout(
            testbed=testbed,
            name=f"node-{i}",
            folder=folder / "nodes" / f"node-{i}",
            images=folder / "nodes" / f"node-{i}" / "images",
            netns=f"{testbed}-node-{i}",
            address=str(network[i + 2]),
            ssh_port=SSH_PORT,
            bridge=f"{testbed}br",
        )
        for i in range(nodes)
    )
    return TestbedRecord(
        id=testbed,
        folder=folder,
        network=str(network),
        gateway=str(network[1]),
        bridge=f"{testbed}br",
        nodes=layouts,
        started_at_s=now_s,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        images_bytes=images_bytes,
    )


def up(
    record: TestbedRecord,
    *,
    tools: Toolchain,
    rng: random.Random,
    machine: Machine | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> TestbedRecord:
    """Make the testbed that `plan` described; the record with its processes. What fails is taken down again.

    Args:
        told: hears what is being made, step by step.

    Raises:
        ActionError: something would not work; nothing of the testbed is left.
    """
    machine = machine or Machine()
    record.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    record.folder.mkdir(mode=0o700)
    try:
        save(record)
        return _make(record, tools, rng, machine, told)
    except BaseException:
        down(record.folder.parent, machine=machine)
        raise


def _make(
    record: TestbedRecord, tools: Toolchain, rng: random.Random, machine: Machine, told: Callable[[str], None]
) -> TestbedRecord:
    mount = machine.which("mount")
    if mount is None:
        raise PreconditionError("there is no mount on the PATH", hint="install the package mount")
    join(record.id, record.folder)
    told(f"bridge {record.bridge} on {record.network}")
    make_bridge(machine, tools.ip, record, new_mac(rng))
    for layout in record.nodes:
        for folder in (layout.folder, layout.runc_root, layout.bundles, layout.ssh, layout.journal, layout.images):
            folder.mkdir(mode=0o700, parents=True)
        options = f"size={record.images_bytes},mode=0700,nosuid,nodev"
        checked(machine, [str(mount), "-t", "tmpfs", "-o", options, record.id, str(layout.images)])
    make_keys(record.nodes, network=record.network, pam=root_is_locked())
    started: list[OwnProcess] = []
    for layout in record.nodes:
        told(f"{layout.name} at {layout.address}")
        make_node(machine, tools.ip, record, layout)
        started.append(start_sshd(machine, tools, layout, env=environment(record.id)))
        record = replaced(record, processes=tuple(started))
        save(record)
    record = replaced(record, complete=True)
    save(record)
    return record


def down(state_dir: Path, *, machine: Machine | None = None) -> str | None:
    """Remove every trace of the testbed of this state directory; its id, None when there was none. Can be repeated.

    Raises:
        PreconditionError: no root.
        InputError: the record is damaged, and no testbed is registered for this folder either.
        ActionError: something would not go.
    """
    machine = machine or Machine()
    folder = testbed_folder(state_dir)
    testbed, record = _found(folder)
    if testbed is None:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # killed between the folder and the record
        return None
    if machine.uid() != 0:
        raise PreconditionError("taking a testbed down needs root", hint="use sudo")
    remove(machine, testbed, folder, record.processes if record else ())
    leave(testbed)
    return testbed


def status(state_dir: Path) -> TestbedStatus:
    """What stands of the testbed of this state directory.

    Raises:
        NotFoundError: there is none.
    """
    record = current(state_dir)
    running = {process.what for process in record.processes if started_ticks(process.pid) == process.started_ticks}
    nodes = []
    for layout in record.nodes:
        usage = shutil.disk_usage(layout.images) if layout.images.is_mount() else None
        bundles = sorted(entry.name for entry in layout.bundles.iterdir()) if layout.bundles.is_dir() else []
        nodes.append(
            NodeStatus(
                name=layout.name,
                address=layout.address,
                namespace=(NETNS / layout.netns).exists(),
                sshd=f"sshd of {layout.name}" in running,
                images_used_bytes=usage.used if usage else 0,
                images_bytes=usage.total if usage else 0,
                containers=tuple(bundles),
            )
        )
    return TestbedStatus(record=record, nodes=tuple(nodes))


def current(state_dir: Path) -> TestbedRecord:
    """The testbed of this state directory.

    Raises:
        NotFoundError: there is none.
    """
    record = load(testbed_folder(state_dir))
    if record is None:
        raise NotFoundError(f"there is no testbed in {state_dir}", hint="natwork testbed up")
    return record


def restart_sshd(
    record: TestbedRecord, node: str, *, tools: Toolchain, machine: Machine | None = None
) -> TestbedRecord:
    """Start the sshd of a node again, after it died; the new record, saved."""
    layout = record.node(node)
    process = start_sshd(machine or Machine(), tools, layout, env=environment(record.id))
    others = tuple(old for old in record.processes if old.what != process.what)
    record = replaced(record, processes=(*others, process))
    save(record)
    return record


def traces(record: TestbedRecord) -> tuple[Trace, ...]:
    """Everything on the machine that carries the testbed's id: empty after `down`."""
    return leftovers(record.id, record.folder, record.processes)


def testbed_folder(state_dir: Path) -> Path:
    """Where the testbed of a state directory lies, without symbolic links: as the kernel names mounts."""
    return state_dir.resolve() / FOLDER


def traces_of(state_dir: Path) -> tuple[Trace, ...]:
    """The same, of whatever testbed was made in this state directory, even if its record is gone."""
    folder = testbed_folder(state_dir)
    testbed, record = _found(folder)
    if testbed is None:
        return ()
    return leftovers(testbed, folder, record.processes if record else ())


def _found(folder: Path) -> tuple[str | None, TestbedRecord | None]:
    """Id and record of the testbed in a folder; the id alone where the record is damaged or missing.

    Raises:
        InputError: the record is damaged, and no testbed is registered for this folder either.
    """
    registered = next((name for name, path in members() if path == folder), None)
    try:
        record = load(folder)
    except InputError:
        if registered is None:
            raise
        record = None
    return (record.id if record else registered), record


def new_mac(rng: random.Random) -> str:
    """A random MAC address: locally administered, unicast."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *(rng.randrange(256) for _ in range(5))))


def replaced(record: TestbedRecord, **changes: object) -> TestbedRecord:
    """The record with other fields."""
    return TestbedRecord(**{**vars(record), **changes})


def _fresh_id(rng: random.Random) -> str:
    names = [entry.name for place in (LINKS, NETNS, CGROUPS) if place.is_dir() for entry in os.scandir(place)]
    names += [name for name, _ in members()]
    for _ in range(1000):
        testbed = f"nw{rng.randrange(16**4):04x}"
        if not any(name.startswith(testbed) for name in names):
            return testbed
    raise PreconditionError("no free id for a testbed", hint="natwork testbed down, in other state directories")
