"""`natwork testbed`: nodes on this machine for real live migration, and workloads on them. Needs root.

What drives containers is imported by the commands that need it: every other command of `natwork` would wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from natwork_ray.adapters import testbed as testbeds
from natwork_ray.adapters import testbed_orphans
from natwork_ray.adapters.prober import probe as probe_once
from natwork_ray.adapters.testbed_orphans import Owner, Standing
from natwork_ray.adapters.testbed_requirements import require, toolchain
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.adapters.traffic import Traffic
from natwork_ray.adapters.workload import Load, load_of
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.domain.migrations import LoadClass, LoadLevel
from natwork_ray.domain.values import plain
from natwork_ray.errors import ConflictError, ExitCode, NotFoundError, UsageError

if TYPE_CHECKING:
    from natwork_ray.adapters.testbed_containers import Placed

app = typer.Typer(
    help="Nodes on this machine for real live migration: namespaces, bridge, SSH, containers.", no_args_is_help=True
)

UP_EXAMPLES = "Examples: sudo natwork testbed up; sudo natwork testbed up --nodes 2 --bandwidth 1Gbit"
RUN_EXAMPLES = (
    "Examples: natwork testbed run web --node node-0 --memory 64MiB; "
    "natwork testbed run db --node node-1 --load cpu-medium_memory-high_storage-low_network-zero --volume 256MiB"
)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(B|KiB|MiB|GiB|kB|MB|GB)?")
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(Mbit|Gbit)")
_RATES = {"Mbit": 125_000, "Gbit": 125_000_000}

# A workload fills its memory before it answers; a slow machine writes at least so much per second.
_SERVE_S, _FILL_BYTES_PER_S = 20.0, 50e6

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]


def size_of(text: str, option: str) -> int:
    """Bytes of `64MiB`, `1.5GB`, `4096`.

    Raises:
        UsageError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text}: no size", hint="such as 64MiB, 1.5GB or 65536")
    return int(float(match[1]) * _SIZES[match[2] or "B"])


def rate_of(text: str) -> float:
    """Bytes per second of `100Mbit` or `1Gbit`.

    Raises:
        UsageError: it is no rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--bandwidth {text}: no rate", hint="such as 100Mbit or 1Gbit")
    rate = float(match[1]) * _RATES[match[2]]
    if not rate:
        raise UsageError("--bandwidth 0: nothing would move", hint="leave it out for no limit")
    return rate


def levels_of(text: str) -> LoadClass:
    """The load class of a name such as `cpu-low_memory-high_storage-low_network-zero`; what is left out is low.

    Raises:
        UsageError: unknown resource or level.
    """
    levels = {"cpu": LoadLevel.LOW, "memory": LoadLevel.LOW, "storage": LoadLevel.LOW, "network": LoadLevel.ZERO}
    for part in text.split("_") if text else []:
        resource, _, level = part.partition("-")
        if resource not in levels or level not in set(LoadLevel):
            raise UsageError(
                f"--load {text}: {part!r} is no level",
                hint="cpu, memory, storage or network, a dash, and low, medium or high (network also zero)",
            )
        levels[resource] = LoadLevel(level)
    return LoadClass(**levels)


@app.command(epilog=UP_EXAMPLES)
def up(
    nodes: Annotated[int, typer.Option(help="Number of nodes, 2 to 16.")] = 3,
    bandwidth: Annotated[
        str | None, typer.Option(help="Hold what each node sends to a rate, such as 1Gbit. Default: no limit.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Room for checkpoints per node, in memory. Default: 2GiB or less.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a testbed: nodes as network namespaces on one bridge, each with an sshd of its own."""
    config, rng = settle(), random.SystemRandom()
    images_bytes = 0 if images is None else size_of(images, "--images")
    if images is not None and not images_bytes:
        raise UsageError(f"--images {images}: no room for a checkpoint", hint="leave it out for the default")
    tools = toolchain() if dry_run else require()
    record = testbeds.plan(
        config.state_dir,
        nodes=nodes,
        bandwidth_bytes_per_s=0.0 if bandwidth is None else rate_of(bandwidth),
        images_bytes=images_bytes,
        tools=tools,
        rng=rng,
        now_s=time.time(),
    )
    if not dry_run:
        record = testbeds.up(record, tools=tools, rng=rng, told=lambda text: talk.print(printable(text)))
    if as_json:
        write_json({"done": not dry_run, "testbed": plain(record)})
    else:
        verb = "would make" if dry_run else "made"
        talk.print(f"{verb} testbed {record.id}: {len(record.nodes)} nodes on {record.network} in {record.folder}")


@app.command()
def status(output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Whether every node is whole, and what other testbeds are on the machine. Exit 3 when a node is not."""
    state_dir = settle().state_dir
    own = testbeds.testbed_folder(state_dir)
    others = [one for one in testbed_orphans.standing() if one.folder != own]
    try:
        standing = testbeds.status(state_dir)
    except NotFoundError:
        _tell(others)
        raise
    if chosen(output, as_json) is Format.JSON:
        write_json({"healthy": standing.healthy, **plain(standing), "others": [plain(one) for one in others]})
    else:
        _tell(others)
        rows = [plain(node) for node in standing.nodes]
        columns = ("name", "address", "namespace", "sshd", "images_used_bytes", "images_bytes", "containers")
        write_rows(rows, columns, output, title="nodes")
    if not standing.healthy:
        talk.print("hint: natwork testbed down, then up, or start again what died")
        raise typer.Exit(ExitCode.PRECONDITION)


def _tell(others: list[Standing]) -> None:
    for one in others:
        state_dir = one.folder.parent
        made_by, command = {
            Owner.NONE: ("", f"natwork --set state_dir={state_dir} testbed down"),
            Owner.ALIVE: (", its owner is alive", "it ends with its owner"),
            Owner.DEAD: (", its owner is dead", "natwork testbed down --orphans"),
        }[one.owner]
        talk.print(printable(f"another testbed: {one.id} in {state_dir}{made_by} ({command})"), soft_wrap=True)


@app.command()
def down(
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Instead, those of benchmarks and collections that were killed.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also while the system runs on it.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove every trace of the testbed of this state directory, also of a half-made one."""
    if orphans:
        _down_orphans(dry_run=dry_run, as_json=as_json)
        return
    state_dir = settle().state_dir
    if not dry_run and not force and _in_use(state_dir):
        raise ConflictError(f"the system of {state_dir} runs on this testbed", hint="`natwork down` first, or --force")
    found = [str(trace) for trace in testbeds.traces_of(state_dir)]
    testbed = None if dry_run else testbeds.down(state_dir)
    if as_json:
        write_json({"testbed": testbed, "dry_run": dry_run, "traces": found})
    elif dry_run:
        for trace in found:
            talk.print(printable(f"would remove {trace}"))
    else:
        talk.print(f"removed testbed {testbed}, {len(found)} traces" if testbed else "there was no testbed")


def _down_orphans(*, dry_run: bool, as_json: bool) -> None:
    if dry_run:
        ids = tuple(one.id for one in testbed_orphans.standing() if one.owner is Owner.DEAD)
    else:
        ids = testbed_orphans.take_down_orphans()
    if as_json:
        write_json({"orphans": list(ids), "dry_run": dry_run})
    else:
        verb = "would remove" if dry_run else "removed"
        talk.print(f"{verb} {', '.join(ids)}" if ids else "there was no orphan")


def _in_use(state_dir: Path) -> bool:
    """Whether a system of this state directory runs, and on the testbed, as far as its configuration says."""
    from agents import cluster

    return cluster.running(state_dir) is not None and _backend_of(state_dir) in ("testbed", None)


def _backend_of(state_dir: Path) -> object:
    try:
        return tomllib.loads((state_dir / "natwork.toml").read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError):
        return None  # nothing says that it is another


@contextlib.contextmanager
def _cleared_when_ended() -> Iterator[None]:
    """SIGTERM unwinds as an exception does, so that what is half made is taken away again."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def containers(output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """What runs where."""
    from natwork_ray.adapters import testbed_containers

    state_dir = settle().state_dir
    record = testbeds.current(state_dir)
    placed = asyncio.run(testbed_containers.containers(record, tools=toolchain()))
    rows = [_row(one) for one in placed]
    columns = ("name", "node", "state", "address", "pid", "cpu_limit_cores", "memory_limit_bytes")
    write_rows(rows, columns, chosen(output, as_json), title="containers")
    from natwork_ray.cli.migrating import left_open
    from natwork_ray.cli.migration_view import LEFT_OPEN

    for migration in left_open(state_dir):
        i = migration.instruction
        talk.print(printable(f"{i.key} of {i.container}: {LEFT_OPEN}"), soft_wrap=True)


@app.command(epilog=RUN_EXAMPLES)
def run(
    name: Annotated[str, typer.Argument(help="Name of the container.")],
    node: Annotated[str, typer.Option(help="Where it starts.")],
    load: Annotated[
        str, typer.Option(help="Levels: cpu-LEVEL_memory-LEVEL_storage-LEVEL_network-LEVEL. Default: no load.")
    ] = "",
    memory: Annotated[str | None, typer.Option(help="Memory that it holds. Default: by level.")] = None,
    volume: Annotated[str, typer.Option(help="Data in its writable root file system.")] = "0",
    cpu_limit: Annotated[float, typer.Option(help="Cores that it may use; 0 sets no limit.")] = 0.0,
    memory_limit: Annotated[str, typer.Option(help="Memory that it may use; 0 sets no limit.")] = "0",
    service: Annotated[str, typer.Option(help="Network service that it belongs to. Default: one of its own.")] = "",
    depends_on: Annotated[
        list[str] | None, typer.Option(help="A container that it calls; may be given several times.")
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start the workload as a container, and wait until it answers."""
    from natwork_ray.adapters import testbed_containers

    rng, record = random.SystemRandom(), testbeds.current(settle().state_dir)
    record.node(node)
    held = None if memory is None else size_of(memory, "--memory")
    burnt = load_of(levels_of(load), memory_bytes=held) if load else Load(memory_bytes=held or 0)
    spec = testbed_containers.new_spec(
        record,
        name,
        burnt,
        cpu_limit_cores=cpu_limit,
        memory_limit_bytes=float(size_of(memory_limit, "--memory-limit")),
        service=service,
        depends_on=depends_on or (),
    )
    volume_bytes = size_of(volume, "--volume")
    testbed_containers.require_room(record.node(node), burnt, volume_bytes=volume_bytes)
    if dry_run:
        row: dict[str, Any] = {"name": name, "node": node, "state": "planned", "address": spec.address, "pid": 0}
    else:
        tools, patience_s = require(), _SERVE_S + burnt.memory_bytes / _FILL_BYTES_PER_S
        with _cleared_when_ended():
            placed = asyncio.run(
                testbed_containers.start(
                    record, node, spec, tools=tools, rng=rng, volume_bytes=volume_bytes, serve_within_s=patience_s
                )
            )
        row = _row(placed)
    if as_json:
        write_json(row)
    else:
        talk.print(f"{row['state']}: {name} on {node} at {spec.address}")


@app.command()
def probe(
    name: Annotated[str, typer.Argument(help="Name of the container.")],
    seconds: Annotated[float, typer.Option(help="How long to ask, up to a day.", min=0.1, max=86_400)] = 5.0,
    every: Annotated[float, typer.Option(help="Seconds between two requests.", min=0.001, max=10)] = 0.005,
    users: Annotated[int, typer.Option(help="Also let so many Locust users ask by HTTP.", min=0, max=1000)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Ask a container numbered questions over one TCP session. Exit 1 when answers were lost, doubled or reordered."""
    record = testbeds.current(settle().state_dir)
    seen = asyncio.run(_probed(record, name, seconds=seconds, every_s=every, users=users))
    if as_json:
        write_json(seen)
    else:
        talk.print(
            f"{seen['answered']} of {seen['sent']} answered, longest gap {1000 * seen['longest_gap_s']:.1f} ms, "
            f"median {1000 * seen['latency_p50_s']:.2f} ms"
        )
    if not seen["whole"]:
        talk.print(f"the session is not whole: {printable(seen['error']) or 'see --json'}", style="red")
        raise typer.Exit(ExitCode.FAILED)


async def _probed(record: TestbedRecord, name: str, *, seconds: float, every_s: float, users: int) -> dict[str, Any]:
    from natwork_ray.adapters import testbed_containers

    placed = await testbed_containers.find(record, name, tools=toolchain())
    host = placed.spec.address.partition("/")[0]
    traffic = Traffic(host, users=users, limit_s=seconds + 60) if users else None
    if traffic is not None:
        await traffic.start()
    report = await probe_once(host, seconds=seconds, every_s=every_s)
    seen = {"whole": report.whole, **plain(report)}
    if traffic is not None:
        # Locust's users count too: the count is no longer the prober's alone.
        seen["users"] = plain(await traffic.stop())
        seen["whole"] = not report.error and report.lost + report.duplicated + report.reordered == 0
    return seen


def _row(placed: Placed) -> dict[str, Any]:
    spec = placed.spec
    return {
        "name": spec.name,
        "node": placed.node,
        "state": str(placed.state),
        "address": spec.address,
        "mac": spec.mac,
        "service": spec.service or spec.name,
        "depends_on": list(spec.depends_on),
        "pid": placed.pid,
        "cpu_limit_cores": spec.cpu_limit_cores,
        "memory_limit_bytes": spec.memory_limit_bytes,
    }
