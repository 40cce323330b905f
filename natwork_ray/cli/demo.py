"""`natwork demo`: the whole loop on Ray, on an emulated testbed or on recordings, told as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from natwork_ray.backends import build_world, load_detector
from natwork_ray.cli import recordings
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, progress_bar, talk, write_json
from natwork_ray.cli.report import write_report
from natwork_ray.cli.run_record import Chronicle, make_record
from natwork_ray.cli.settings import named, settle
from natwork_ray.cli.summary import Story, summary_json, summary_table
from natwork_ray.config import Config, to_toml
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.runs import RunRecord
from natwork_ray.errors import UsageError

if TYPE_CHECKING:
    from agents.supervisor import Supervisor

EXAMPLES = """Examples:

natwork demo

natwork demo --seed 9 --mode observe

natwork demo --telemetry replay:FOLDER   (recordings in iAnomaly's format)

natwork demo --json --seed 7 | jq .anomalies
"""


def demo(
    scenario: Annotated[str | None, typer.Option(help="Emulated scenario: smart-city, grid-10, grid-100.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    telemetry: Annotated[
        str, typer.Option(help="'emulated', or 'replay:FOLDER' for recordings in iAnomaly's format.")
    ] = "emulated",
    mode: Annotated[Mode | None, typer.Option(help="How much the loop may do by itself (default: act).")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=1, help="Length of the emulated run on the virtual clock (default: 90).")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="Which recorded run to replay (default: the one with most services).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report, audit log and state (default: runs/...).")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running, with its HTTP doors open.")] = False,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Run the closed loop once: telemetry, verdicts, decisions, actions, audit; then a summary and a report."""
    output = chosen(output, as_json)
    if output is Format.CSV:
        raise UsageError("-o csv", hint="a run is told as a table or as JSON; `natwork decisions -o csv` lists rows")
    began = time.monotonic()
    folder = recordings.folder_of(telemetry)
    config = settle(
        backend="replay" if folder else "emulated",
        replay__folder=folder,
        replay__run=run,
        emulation__scenario=scenario,
        emulation__seed=seed,
        emulation__duration_s=minutes * 60 if minutes is not None else None,
        loop__mode=mode or (None if named("loop.mode") else Mode.ACT),
        sla__window_s=None if named("sla.window_s") else 86_400.0,
        http__port=None if named("http.port") else free_port(),
    )
    place = (out or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{config.emulation.seed}").absolute()
    if (place / "state").exists():
        raise UsageError(f"{place} holds a run already", hint="name another folder with --out")
    check_startable(config)
    place.mkdir(parents=True, exist_ok=True)
    config = config.model_copy(update={"state_dir": place / "state"})
    quiet = output is Format.JSON
    if folder is not None and config.model is None:
        config = recordings.train_on_other_runs(config, place)
    with _running_system(config, keep=keep) as url:
        record, told = asyncio.run(_turn_to_the_end(config, place, began, quiet=quiet))
    report = place / "report.html"
    write_report(record, report)
    if output is Format.JSON:
        write_json(summary_json(record))
    else:
        Console(highlight=False).print(summary_table(record))
    _where_to_look(place, report, url if keep else None, record, told)


async def _turn_to_the_end(config: Config, place: Path, began: float, *, quiet: bool) -> tuple[RunRecord, int]:
    from agents.supervisor import Supervisor

    supervisor = await Supervisor.begin(config, config.state_dir)
    facts = supervisor.facts
    before = await supervisor.crew.world.topology()
    talk.print(
        f"The loop has charge of {len(before.containers)} containers on {len(before.nodes)} nodes "
        f"({facts.backend}, {facts.scenario}, seed {facts.seed}), mode {config.loop.mode}."
    )
    chronicle = Chronicle()
    told = await _tell(supervisor, chronicle, quiet=quiet)
    record = await make_record(supervisor, config, chronicle, before, audit_file=place / "audit.log")
    return replace(record, wall_s=time.monotonic() - began), told


async def _tell(supervisor: Supervisor, chronicle: Chronicle, *, quiet: bool) -> int:
    facts = supervisor.facts
    turns = round((facts.ends_s - facts.begins_s) / facts.step_s)
    story, told = Story(origin_s=facts.begins_s), 0
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task(f"{facts.backend} time", total=turns)
        at_s = facts.begins_s
        for _ in range(turns):
            at_s += facts.step_s
            turn = await supervisor.turn(at_s)
            chronicle.add(turn)
            bar.advance(task)
            if quiet:
                continue
            quota: dict[str, Any] = {}
            if turn.outcomes:
                status = await supervisor.crew.control.status()
                quota = {account.container: account for account in status.quota}
            for line in story.tell(turn, quota=quota):
                bar.console.print(line)
                told += 1
    return told


@contextlib.contextmanager
def _running_system(config: Config, *, keep: bool) -> Iterator[str]:
    """A cluster with the applications on it; ended afterwards unless it is to be kept."""
    from agents import cluster

    state_dir = config.state_dir
    state_dir.mkdir(mode=0o700, parents=True)
    write_effective(config)
    os.environ.update(cluster.environment(state_dir))
    ended_well = False
    with talk.status("Starting Ray ..."):
        cluster.start(state_dir, dashboard=keep)
    try:
        with talk.status("Starting the model and the doors ..."):
            cluster.connect(state_dir)
            from serve_apps.deploy import deploy, make_token

            make_token(state_dir)
            url = deploy(config.http)
        # Ray tells its clients of a death in the cluster on stdout, where the result belongs.
        with contextlib.redirect_stdout(sys.stderr):
            yield url
        ended_well = True
    finally:
        if not (keep and ended_well):
            with talk.status("Ending Ray ..."):
                cluster.disconnect()
                cluster.end(state_dir)


def check_startable(config: Config) -> None:
    """Refuse a scenario, a length, a recording or a model that does not work, before Ray is started for it."""
    build_world(config)
    load_detector(config)


def write_effective(config: Config) -> None:
    """Write the settled configuration, where every process of the cluster reads it."""
    (config.state_dir / "natwork.toml").write_text(to_toml(config), encoding="utf-8")


def _where_to_look(place: Path, report: Path, url: str | None, record: RunRecord, told: int) -> None:
    talk.print(f"\nReport:     {report}", soft_wrap=True)
    talk.print(
        f"Audit log:  natwork audit verify {place / 'audit.log'} --public-key {place / 'state' / 'audit.pub'}",
        soft_wrap=True,
    )
    talk.print(f"Decisions:  natwork --set state_dir={place / 'state'} decisions", soft_wrap=True)
    if url:
        talk.print(f"HTTP:       {url}/api/v1/state   (token in {place / 'state' / 'api-token'})", soft_wrap=True)
        talk.print(f"End it:     natwork --set state_dir={place / 'state'} down", soft_wrap=True)
    talk.print(f"{told} lines of story, {record.wall_s:.0f} s in all.", style="dim")


def free_port() -> int:
    """A port of loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
