"""`natwork bench`: measurements that compare in one run, as a table or as JSON. No test fails on a timing."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.bench import measure
from natwork_ray.cli import bench_chaos, bench_loop, bench_migration, bench_schedule, bench_serving
from natwork_ray.cli.bench_migration import BenchBackend, size_bytes
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, progress_bar, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.phases import MigrationMethod
from natwork_ray.errors import ExitCode, UsageError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure, on this machine, now.")


@app.command()
def audit(
    entries: Annotated[int, typer.Option(min=1000, help="Entries to append, export and verify.")] = 1_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Entries per group commit.")] = 500,
    as_json: JsonOption = False,
) -> None:
    """Append with group commit (fsync at each), export, and verify the export."""
    with tempfile.TemporaryDirectory(prefix="natwork-bench-") as folder, progress_bar(quiet=as_json) as bar:
        bar.add_task(f"{entries} entries", total=None)
        result = measure(
            lambda: SqliteJournal.open(Path(folder) / "state", origin="natwork-ray/bench"), entries=entries, batch=batch
        )
    document = asdict(result)
    if as_json:
        write_json(document)
    else:
        rows: list[dict[str, Any]] = [{"figure": key, "value": item} for key, item in document.items()]
        write_rows(rows, ("figure", "value"), Format.TABLE, title="audit log")


@app.command()
def loop(
    containers: Annotated[
        list[int] | None, typer.Option(min=1, max=5000, help="Fleet sizes (default: 10, 100 and 1000).")
    ] = None,
    turns: Annotated[int, typer.Option(min=5, help="Turns of the loop per size.")] = 100,
    ray: Annotated[bool, typer.Option(help="Also across Ray; --no-ray for in process only.")] = True,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Telemetry window to decision: p50 and p99, in process and through Ray, for growing fleets."""
    output = chosen(output, as_json)
    with progress_bar(quiet=output is Format.JSON) as bar:
        document = bench_loop.run(containers or [10, 100, 1000], turns=turns, with_ray=ray, bar=bar)
    if output is Format.JSON:
        write_json(document)
    else:
        columns = ("containers", "path", "p50_ms", "p99_ms", "windows_per_s", "share_of_interval", "slowest_part")
        write_rows(document["rows"], columns, output, title="rows")


@app.command()
def chaos(
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How many processes to kill, at random points.")] = 50,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the run and of the points.")] = 8,
    minutes: Annotated[float, typer.Option(min=1, help="Length of the run on the virtual clock.")] = 90,
    as_json: JsonOption = False,
) -> None:
    """Kill control actor, LiMi agents and model replicas during a run, and compare with a run that nobody disturbs.

    Exit 1 when anything was lost or done twice, or the loop stood still for longer than 30 s.
    """
    config = settle(
        backend="emulated",
        loop__mode=Mode.ACT,
        emulation__seed=seed,
        emulation__duration_s=minutes * 60,
        sla__window_s=86_400.0,
    )
    with progress_bar(quiet=as_json) as bar:
        document = bench_chaos.run(config, kills=kills, bar=bar)
    if as_json:
        write_json(document)
    else:
        rows: list[dict[str, Any]] = [{"figure": key, "value": str(item)} for key, item in document.items()]
        write_rows(rows, ("figure", "value"), Format.TABLE, title="kill campaign")
    if not document["passed"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def migration(
    backend: Annotated[BenchBackend, typer.Option(help="A testbed made for the run, or the emulation.")],
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of every arm.")] = 10,
    memory: Annotated[float, typer.Option(parser=size_bytes, help="Resident memory of the workload.")] = "64MiB",  # type: ignore[assignment]
    volume: Annotated[float, typer.Option(parser=size_bytes, help="Data in its writable file system.")] = "0",  # type: ignore[assignment]
    dirty: Annotated[
        float, typer.Option(parser=size_bytes, help="Memory that the workload writes per second, in distinct pages.")
    ] = "0",  # type: ignore[assignment]
    methods: Annotated[
        list[MigrationMethod] | None, typer.Option(help="Methods to measure (default: all four).")
    ] = None,
    peer: Annotated[bool, typer.Option(help="Also podman, where it is installed; --no-peer leaves it out.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of data, noise and intervals.")] = 3,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Total time and downtime of each method, beside the same commands by hand and beside podman, in one run."""
    output = chosen(output, as_json)
    chosen_methods = tuple(dict.fromkeys(methods or MigrationMethod))
    with progress_bar(quiet=output is Format.JSON) as bar:
        workload = bench_migration.Workload(memory_bytes=memory, volume_bytes=volume, dirty_bytes_per_s=dirty)
        if backend is BenchBackend.REAL:
            document = bench_migration.real(workload, runs=runs, methods=chosen_methods, seed=seed, peer=peer, bar=bar)
        else:
            document = bench_migration.emulated(workload, runs=runs, methods=chosen_methods, seed=seed, bar=bar)
    if output is Format.JSON:
        write_json(document)
    else:
        columns = ("method", "total_s_p50", "total_s_p95", "ideal_total_s_p50", "orchestration_overhead_pct",
                   "downtime_s_p50", "downtime_s_p95", "lost_replies")  # fmt: skip
        write_rows(bench_migration.rows(document), columns, output, title="migrations")


@app.command()
def faults(
    backend: Annotated[BenchBackend, typer.Option(help="Only real: the emulation's campaign is a property test.")],
    faults: Annotated[int, typer.Option(min=1, max=1000, help="How many faults to inject, one per migration.")] = 20,
    memory: Annotated[float, typer.Option(parser=size_bytes, help="Resident memory of the workload.")] = "32MiB",  # type: ignore[assignment]
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of kinds, methods, steps and moments.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Shoot at migrations on a real testbed: kill agents, CRIU and sshd, fill disks, cut links; look after each.

    Exit 1 when a container was not alive on exactly one node, memory was lost before the point of no return, or
    anything was left behind.
    """
    if backend is not BenchBackend.REAL:
        raise UsageError("faults are injected on the real backend only", hint="--backend real")
    from natwork_ray.cli import bench_faults

    with progress_bar(quiet=as_json) as bar:
        document = bench_faults.measure(faults=faults, seed=seed, memory_bytes=int(memory), bar=bar)
    if as_json:
        write_json(document)
    else:
        columns = ("number", "kind", "phase", "method", "state", "runs_on", "session_kept", "memory",
                   "recovery_s", "survived", "leftovers")  # fmt: skip
        write_rows(document["faults"], columns, Format.TABLE, title="faults")
    if not document["passed"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def schedule(
    services: Annotated[int, typer.Option(min=2, max=10_000, help="How many random services to move.")] = 100,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of services, loads and noise.")] = 7,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Random services of 2 to 16 containers: do they arrive together, and what does moving them cost (emulated)?"""
    output = chosen(output, as_json)
    with progress_bar(quiet=output is Format.JSON) as bar:
        document = bench_schedule.run(services, seed=seed, bar=bar)
    if output is Format.JSON:
        write_json(document)
    else:
        write_rows(bench_schedule.rows(document), bench_schedule.COLUMNS, output, title="ways")


@app.command()
def serving(
    seconds: Annotated[float, typer.Option(min=0.5, max=600, help="Time for each figure.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Turns in which Serve and uvicorn alternate.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Windows judged per second: in process, through Ray Serve, and behind plain uvicorn, in one run."""
    with progress_bar(quiet=as_json) as bar:
        document = bench_serving.run(seconds=seconds, rounds=rounds, bar=bar)
    if as_json:
        write_json(document)
    else:
        write_rows(bench_serving.rows(document), bench_serving.COLUMNS, Format.TABLE, title="serving")
