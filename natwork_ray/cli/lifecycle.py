"""`natwork up`, `status`, `down`, `doctor`: the system as something that runs."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import math
import os
import platform
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from natwork_ray.adapters.journal_files import take_lock
from natwork_ray.adapters.key_files import PRIVATE, PUBLIC
from natwork_ray.adapters.sqlite_journal import DATABASE, LOCK
from natwork_ray.backends import load_detector
from natwork_ray.cli.demo import check_startable, write_effective
from natwork_ray.cli.doors import Doors
from natwork_ray.cli.output import Format, FormatOption, JsonOption, chosen, printable, talk, write_json, write_rows
from natwork_ray.cli.settings import named, settle
from natwork_ray.config import Config
from natwork_ray.domain.decisions import Mode
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
    _require_free_port(config)
    check_startable(config)
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = set_aside(state_dir)
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
    write_rows(rows, ("name", "node", "replicas", "cpu_limit_cores", "quota_left_s"), output, title="containers")
    if trouble:
        talk.print(f"the loop stands still: {printable(str(trouble))}", style="red", soft_wrap=True)
        raise typer.Exit(ExitCode.FAILED)


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
            if not wait or (state.get("turns") and not state.get("trouble")):
                return state
            why, hint = state.get("trouble") or "no turn yet", "the logs of Ray's session tell more"
        if time.monotonic() >= deadline:
            raise TimedOutError(f"not ready after {wait:.0f} s: {why}", hint=hint)
        time.sleep(0.5)


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


def doctor(output: FormatOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """What this machine has, what is missing, and how to get it. Exit 3 when something needed is missing."""
    config = settle()
    rows = [_examined(check, config) for check in _CHECKS]
    write_rows(rows, ("check", "state", "found", "hint"), chosen(output, as_json), title="checks")
    if any(row["state"] == "missing" for row in rows):
        raise typer.Exit(ExitCode.PRECONDITION)


def _require_free_port(config: Config) -> None:
    with socket.socket() as probe:
        # As the server itself will: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.http.host, config.http.port))
        except OSError as error:
            raise PreconditionError(
                f"{config.http.host}:{config.http.port} cannot be used: {error}", hint="--set http.port=ANOTHER"
            ) from error


Check = tuple[str, bool, Callable[[Config], str], str]


def _examined(check: Check, config: Config) -> dict[str, Any]:
    name, needed, look, hint = check
    try:
        return {"check": name, "state": "ok", "found": look(config), "hint": ""}
    except (OSError, ImportError, NatworkError, importlib.metadata.PackageNotFoundError) as error:
        return {"check": name, "state": "missing" if needed else "absent", "found": str(error), "hint": hint}


def _python(_: Config) -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - said to whoever runs it by other means than pip
        raise OSError(f"Python {platform.python_version()}")
    return platform.python_version()


def _package(name: str) -> Callable[[Config], str]:
    return lambda _: importlib.metadata.version(name)


def _program(name: str) -> Callable[[Config], str]:
    def look(_: Config) -> str:
        path = shutil.which(name)
        if path is None:
            raise OSError("not on the PATH")
        return path

    return look


def _memory(_: Config) -> str:
    import psutil

    available = psutil.virtual_memory().available
    if available < 2 * 2**30:
        raise OSError(f"{available / 2**30:.1f} GiB available")
    return f"{available / 2**30:.1f} GiB available, {os.cpu_count()} cores"


def _shared_memory(_: Config) -> str:
    free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - Ray's object store lies there
    if free < 256 * 2**20:
        raise OSError(f"{free / 2**20:.0f} MiB free in /dev/shm")
    return f"{free / 2**20:.0f} MiB free in /dev/shm"


def _port(config: Config) -> str:
    _require_free_port(config)
    return f"{config.http.host}:{config.http.port} is free"


def _model(config: Config) -> str:
    card = load_detector(config).card
    return f"{config.model or 'the shipped one'}, trained on {card.runs} {card.trained_on} runs"


def _data(config: Config) -> str:
    if config.data_dir is None or not config.data_dir.is_dir():
        raise OSError("no folder of public data sets")
    return str(config.data_dir)


_TESTBED = "only for real live migration, which is not in this version yet (docs/d3.3.md)"
_CHECKS: tuple[Check, ...] = (
    ("python", True, _python, "install Python 3.11 or newer"),
    ("ray", True, _package("ray"), "pip install -c constraints.txt -e ."),
    ("torch", True, _package("torch"), "pip install -c constraints.txt -e ."),
    ("memory", True, _memory, "about 2 GiB are needed"),
    ("shared memory", False, _shared_memory, "Ray falls back to /tmp, which is slower"),
    ("http port", False, _port, "the system may be running; else --set http.port=ANOTHER"),
    ("profiler model", True, _model, "natwork train profiler, then --set model=FILE"),
    ("plots", False, _package("plotly"), "pip install -c constraints.txt -e '.[plots]' for the HTML report"),
    ("public data", False, _data, "docs/data.md says where it is published; then set NATWORK_DATA_DIR"),
    ("runc", False, _program("runc"), _TESTBED),
    ("criu", False, _program("criu"), _TESTBED),
)
