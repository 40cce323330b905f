"""`natwork bench`: measurements that compare in one run, as a table or as JSON. No test fails on a timing."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.sqlite_journal import SqliteJournal
from natwork_ray.audit.bench import measure
from natwork_ray.cli import bench_chaos, bench_loop
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, progress_bar, write_json, write_rows
from natwork_ray.cli.settings import settle
from natwork_ray.domain.decisions import Mode
from natwork_ray.errors import ExitCode

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
