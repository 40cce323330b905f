"""`natwork up`, `status`, `down`: the system as something that runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sqlite3
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.journal_files import take_lock
from natwork_ray.adapters.key_files import PRIVATE, PUBLIC
from natwork_ray.adapters.sqlite_journal import DATABASE, LOCK
from natwork_ray.cli.demo import check_startable, write_effective
from natwork_ray.cli.doors import Doors
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.replayed import replayed_loop
from natwork_ray.cli.settings import named, settle
from natwork_ray.config import Config
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.values import Backend
from natwork_ray.errors import (
    ConflictError,
    ExitCode,
    InputError,
    NatworkError,
    PreconditionError,
    TimedOutError,
    UsageError,
)

UP_EXAMPLES = """Examples:

natwork up                      (observe only, emulated world, ten times as fast as the clock)

natwork up --mode approve

natwork --set emulation.speed=60 up --hours 4

sudo natwork --set backend=testbed up      (the real testbed of this machine: `natwork testbed up` first)
"""

_UP_HOURS = 24.0


def up(
    mode: Annotated[Mode | None, typer.Option(help="How much the loop may do by itself (default: observe).")] = None,
    hours: Annotated[float | None, typer.Option(min=0.1, help="Length of the emulated world (default: 24).")] = None,
    dashboard: Annotated[bool, typer.Option(help="Ray's dashboard and job server, on loopback.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Start the system on this machine and leave it running; `natwork down` ends it."""
    length_s = hours * 3600 if hours is not None else None if named("emulation.duration_s") else _UP_HOURS * 3600
    config = settle(loop__mode=mode, emulation__duration_s=length_s)
    state_dir = config.state_dir
    from agents import cluster

    if cluster.running(state_dir) is not None:
        raise ConflictError(f"the system of {state_dir} runs already", hint="`natwork status` shows it")
    require_free_port(config)
    check_startable(config)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = None if _goes_on(config) else set_aside(state_dir)
    if aside is not None:
        talk.print(f"A new world begins; the journal of the one before is in {aside}", soft_wrap=True)
    write_effective(config)
    os.environ.update(cluster.environment(state_dir))
    with talk.status("Starting Ray ..."):
        record = cluster.start(state_dir, dashboard=dashboard)
    try:
        with talk.status("Starting the model, the doors and the loop ..."):
            cluster.connect(state_dir)
            from agents.supervisor import start_supervisor
            from serve_apps.deploy import deploy, make_token

            token = make_token(state_dir)
            url = deploy(config.http)
            supervisor = start_supervisor(config, state_dir)
            asyncio.run(supervisor.call("pid"))
    except BaseException:
        cluster.disconnect()
        cluster.end(state_dir)
        raise
    cluster.disconnect()
    result = {
        "state_dir": str(state_dir),
        "url": url,
        "token_file": str(token),
        "ray_address": record.address,
        "dashboard": f"http://127.0.0.1:{record.dashboard_port}" if record.dashboard_port else None,
        "metrics": f"http://127.0.0.1:{record.metrics_port}/metrics",
    }
    if as_json:
        write_json(result)
        return
    for name, item in result.items():
        talk.print(f"{name:12} {item}", soft_wrap=True)
    if record.dashboard_port:
        talk.print(
            f"jobs         export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={state_dir / cluster.RAY_TOKEN_FILE}\n"
            f"             ray job submit --address http://127.0.0.1:{record.dashboard_port} --working-dir . "
            "-- python scripts/run_loop.py --help",
            soft_wrap=True,
        )


def _goes_on(config: Config) -> bool:
    """Whether the journal that is there is of the real world to be watched again: its quota goes on counting."""
    if config.backend != "testbed" or not (config.state_dir / DATABASE).exists():
        return False
    loop = replayed_loop(config.state_dir)
    return loop.started and loop.status().backend is Backend.REAL


def set_aside(state_dir: Path) -> Path | None:
    """Move the journal of an ended world, with its key, into a folder of its own; None when there is none.

    An emulated world ends with its process, and its clock with it, so the next one gets a journal of its own. The old
    one stays readable: `natwork --set state_dir=FOLDER decisions`.

    Raises:
        PreconditionError: somebody still writes it.
    """
    database = state_dir / DATABASE
    if not database.exists():
        return None
    lock = take_lock(state_dir / LOCK)  # whoever still writes keeps it
    try:
        ended = state_dir / "ended"
        ended.mkdir(mode=0o700, exist_ok=True)
        numbers = [int(path.name) for path in ended.iterdir() if path.name.isdigit()]
        folder = ended / str(max(numbers, default=0) + 1)
        folder.mkdir(mode=0o700)
        # All into the one file first, so that one rename moves it: a kill between two leaves no half a journal.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", PRIVATE, PUBLIC):
            if (state_dir / name).exists():
                (state_dir / name).rename(folder / name)
    finally:
        os.close(lock)
    return folder


def status(
    wait: Annotated[float, typer.Option(min=0, help="Wait so many seconds until the loop turns (exit 6 if not).")] = 0,
    output: FormatOption = Format.TABLE,
    as_json: JsonOption = False,
) -> None:
    """What runs, where the loop stands, and what of the downtime quota is left."""
    output = chosen(output, as_json)
    state_dir = settle().state_dir
    if not math.isfinite(wait):
        raise UsageError(f"--wait {wait}", hint="give a number of seconds")
    state = _state(state_dir, wait)
    trouble = state.get("trouble")
    if output is Format.JSON:
        write_json(state)
        raise typer.Exit(ExitCode.FAILED if trouble else ExitCode.DONE)
    try:
        rows = _containers(state)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"the answer is no state of a loop: {error!r}", hint="the running system may be of another version"
        ) from error
    keys = ("backend", "scenario", "mode", "at_s", "turns", "windows", "alarms", "decisions", "awaiting_approval",
            "done", "failed", "quota_violations")  # fmt: skip
    if output is Format.TABLE:
        for key in keys:
            talk.print(f"{key:18} {printable(str(state.get(key)))}")
        for line in _ahead(state):
            talk.print(printable(line), soft_wrap=True)
    write_rows(rows, ("name", "node", "replicas", "cpu_limit_cores", "quota_left_s"), output, title="containers")
    if not trouble and state.get("backend") == Backend.REAL.value and not state.get("turns"):
        talk.print(f"ready: orders are taken; profiles are being learnt {_learning(state_dir)}", soft_wrap=True)
    if trouble:
        talk.print(f"the loop stands still: {printable(str(trouble))}", style="red", soft_wrap=True)
        raise typer.Exit(ExitCode.FAILED)


def _ahead(state: dict[str, Any]) -> list[str]:
    """What is expected, and whether what is taken for normal still holds, in words; nothing where nothing is known."""
    lines = []
    drifted = state.get("drifted") or []
    if drifted:
        lines.append(
            f"profile drifted    {', '.join(map(str, drifted))}: read verdicts with care (natwork profile drift)"
        )
    outlook = state.get("outlook") or {}
    if outlook.get("containers"):
        told = f"{outlook['containers']} containers, {outlook.get('stable', 0)} stable"
        for key, word in (("rising", "rising"), ("resilience", "resilience first")):
            if outlook.get(key):
                told += f"; {word}: {', '.join(outlook[key][:5])}"
        lines.append(f"{'forecast':18} {told}")
        lines += [f"{'':18} {a.get('reason')}" for a in (outlook.get("advised") or [])[:5]]
    if outlook.get("degraded"):
        lines.append(f"forecasts degraded {outlook['degraded']}")
    return lines


def _state(state_dir: Path, wait: float) -> dict[str, Any]:
    """The loop's state; with `wait`, once it turns.

    Raises:
        TimedOutError: it does not turn within `wait` seconds; the message says what stands in the way.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            state: dict[str, Any] = Doors(state_dir).get("/state")
        except NatworkError as error:
            if not wait:
                raise
            why, hint = error.what, error.hint
        else:
            # A real world's loop takes orders from the moment it has charge; turns begin when profiles were learnt.
            ready = state.get("turns") or state.get("backend") == Backend.REAL.value
            if not wait or (ready and not state.get("trouble")):
                return state
            why, hint = state.get("trouble") or "no turn yet", "the logs of Ray's session tell more"
        if time.monotonic() >= deadline:
            raise TimedOutError(f"not ready after {wait:.0f} s: {why}", hint=hint)
        time.sleep(0.5)


def _learning(state_dir: Path) -> str:
    """Until when profiles are learnt: the commissioning time, counted from the start of the system."""
    from agents import cluster

    length_s, record = Doors(state_dir).config.loop.commissioning_s, cluster.running(state_dir)
    if record is None:
        return f"for {length_s:.0f} s from the start"
    until = time.strftime("%H:%M:%S", time.localtime(record.created_s + length_s))
    return f"for {length_s:.0f} s from the start, until about {until}"


def _containers(state: dict[str, Any]) -> list[dict[str, Any]]:
    left = {a["container"]: a["budget_s"] - a["spent_s"] - a["reserved_s"] for a in state["quota"]}
    return [{**c, "quota_left_s": left.get(c["name"])} for c in state["topology"]["containers"]]


def down(as_json: JsonOption = False) -> None:
    """End the system of this state directory: only what `natwork up` or `demo --keep` started. State is kept."""
    from agents import cluster

    ended = cluster.end(settle().state_dir)
    if as_json:
        write_json({"ended": ended})
    else:
        talk.print("ended" if ended else "nothing was running")


def require_free_port(config: Config) -> None:
    """The address of the HTTP doors can be bound.

    Raises:
        PreconditionError: it cannot; somebody else has it, or it is not this machine's.
    """
    with socket.socket() as probe:
        # As the server itself will: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.http.host, config.http.port))
        except OSError as error:
            raise PreconditionError(
                f"{config.http.host}:{config.http.port} cannot be used: {error}", hint="--set http.port=ANOTHER"
            ) from error
