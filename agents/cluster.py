"""A Ray cluster of one machine, started and ended by us alone.

Ray's head runs below a process of its own (`agents.head`); what it was started with is written to `cluster.json` in the
state directory, so that a later command finds it. Ending it ends that process and what came from it, by process id and
start time, and nothing else: `ray stop` would end every Ray of this user.

This module imports Ray only where it must: Ray reads its authentication settings at import, so they have to be in the
environment before.

Everything that can be told to stay on loopback is; what cannot is listed in SECURITY.md. Token authentication is on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from agents import haproxy
from agents.naming import NAMESPACE
from natwork_ray.domain.values import decode, encode, value
from natwork_ray.errors import ConflictError, NotFoundError, PreconditionError, TimedOutError

CLUSTER_FILE = "cluster.json"
RAY_TOKEN_FILE = "ray-token"  # noqa: S105 - a file's name
LOG_FILE = "ray.log"
ADDRESS_FILE = "natwork-address"  # in the temporary folder, written by agents.head
CONFIG_FILE = "natwork.toml"  # the settled configuration, for the processes of the cluster
_RAY_FOLDER = "ray"
_TEMP_PREFIX = "natwork-"
START_PATIENCE_S = 60.0
END_PATIENCE_S = 20.0
OBJECT_STORE_BYTES = 200 * 2**20


@value
class ClusterRecord:
    """What is needed to find and to end a cluster that we started."""

    pid: int
    created_s: float  # the process's start time: a recycled process id is not ours
    address: str
    dashboard_port: int | None
    metrics_port: int
    temp_dir: str


def environment(state_dir: Path) -> dict[str, str]:
    """Variables that every process of the cluster, and every client of it, must have."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(state_dir / RAY_TOKEN_FILE),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",  # it tells of every handle and step; its files have it all
        "RAY_DEDUP_LOGS": "0",  # what is held back for that is printed to stdout at exit, after our results
        "OMP_NUM_THREADS": "1",
        "NATWORK_CONFIG": str(state_dir / CONFIG_FILE),
        **haproxy.environment(),
    }


def start(state_dir: Path, *, dashboard: bool, cpus: int | None = None) -> ClusterRecord:
    """Start a cluster whose state lies in `state_dir`, and wait until it answers.

    Raises:
        ConflictError: one runs there already.
        PreconditionError: Ray could not be started; the message ends with the last line of its log.
        TimedOutError: it did not answer in time.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if running(state_dir) is not None:
        raise ConflictError(
            f"a cluster of {state_dir} is running", hint="`natwork status` shows it, `natwork down` ends it"
        )
    token = state_dir / RAY_TOKEN_FILE
    if not token.exists():
        with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    # Unix sockets live below it, and their paths may have 107 characters: it cannot be inside any state directory.
    temp_dir = tempfile.mkdtemp(prefix=_TEMP_PREFIX)
    (Path(temp_dir) / _RAY_FOLDER).mkdir()
    metrics, agent, board, *of_haproxy = _free_ports(5)
    arguments = [
        f"--temp-dir={temp_dir}/{_RAY_FOLDER}",  # Ray opens its own folder to everyone; the one around it stays ours
        f"--object-store-bytes={OBJECT_STORE_BYTES}",
        f"--metrics-port={metrics}",
        f"--agent-port={agent}",
    ]
    if dashboard:
        arguments.append(f"--dashboard-port={board}")
    if cpus is not None:
        arguments.append(f"--cpus={cpus}")
    with (state_dir / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agents.head", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The settled configuration must not be overridden by variables that it has taken into account already.
            env={k: v for k, v in os.environ.items() if not k.startswith("NATWORK_")}
            | environment(state_dir)
            | haproxy.head_environment(Path(temp_dir), of_haproxy)
            # Jobs say `python` and mean the one that has natwork_ray, also when nobody activated its environment.
            | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))},
            start_new_session=True,
        )
    record = ClusterRecord(
        pid=process.pid,
        created_s=psutil.Process(process.pid).create_time(),
        address="",
        dashboard_port=board if dashboard else None,
        metrics_port=metrics,
        temp_dir=temp_dir,
    )
    (state_dir / CLUSTER_FILE).write_bytes(encode(record))
    try:
        record = replace(record, address=_await_address(process, Path(temp_dir) / _RAY_FOLDER, state_dir))
        (state_dir / CLUSTER_FILE).write_bytes(encode(record))
    except BaseException:
        end(state_dir)
        raise
    return record


def running(state_dir: Path) -> ClusterRecord | None:
    """The cluster of this state directory, or None when none runs."""
    try:
        record: ClusterRecord = decode(ClusterRecord, (state_dir / CLUSTER_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return record if _process(record) is not None else None


def connect(state_dir: Path) -> ClusterRecord:
    """Make this process a client of the cluster.

    Raises:
        NotFoundError: none runs there.
    """
    record = running(state_dir)
    if record is None:
        raise NotFoundError(f"no cluster of {state_dir} is running", hint="`natwork up` starts one")
    if not environment(state_dir).items() <= os.environ.items():
        raise ConflictError(
            "Ray's token was not in the environment before Ray was imported",
            hint="update os.environ with agents.cluster.environment(state_dir) first, then import the other agents",
        )
    import ray

    if not ray.is_initialized():
        ray.init(
            address=record.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.ERROR,
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells of every handle it makes
    return record


def disconnect() -> None:
    """Stop being a client, if this process is one."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def end(state_dir: Path) -> bool:
    """End the cluster, and whatever it started; False when none ran.

    Raises:
        TimedOutError: a process outlived SIGKILL.
    """
    path = state_dir / CLUSTER_FILE
    try:
        record: ClusterRecord = decode(ClusterRecord, path.read_bytes())
    except FileNotFoundError:
        return False
    head = _process(record)
    family = _strays(Path(record.temp_dir))
    if head is not None:
        family = list({p.pid: p for p in (head, *head.children(recursive=True), *family)}.values())
    # Ray's own ending waits long for each part in turn; what must last is in the journal, not in Ray.
    for signalled, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, END_PATIENCE_S)):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signalled)
        _, family = psutil.wait_procs(family, timeout=patience_s)
    if family:
        raise TimedOutError(f"processes {[p.pid for p in family]} of the cluster do not end", hint="end them by hand")
    if Path(record.temp_dir).name.startswith(_TEMP_PREFIX):  # a damaged record must not name what is removed
        shutil.rmtree(record.temp_dir, ignore_errors=True)
    path.unlink(missing_ok=True)
    return head is not None


def _process(record: ClusterRecord) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - record.created_s) < 1.0
    except (psutil.NoSuchProcess, ValueError):  # ValueError: no process can have that id
        return None
    return process if alive else None


def _strays(temp_dir: Path) -> list[psutil.Process]:
    """HAProxy processes of this cluster: they outlive the actor of Serve that started them, and then nobody owns them.

    The folder was made for this cluster alone, so a command line that names its configuration is ours.
    """
    if not temp_dir.name.startswith(_TEMP_PREFIX):  # a damaged record must not name who is ended
        return []
    mark = f"{temp_dir / haproxy.FOLDER}/"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith(mark) for argument in process.cmdline()):
                found.append(process)
    return found


def _await_address(process: subprocess.Popen[bytes], temp_dir: Path, state_dir: Path) -> str:
    """The address that Ray chose for itself: its nodes refuse clients that come by another one."""
    deadline = time.monotonic() + START_PATIENCE_S
    path = temp_dir / ADDRESS_FILE
    while time.monotonic() < deadline:
        if path.exists():
            return path.read_text().strip()
        if process.poll() is not None:
            lines = (state_dir / LOG_FILE).read_text(errors="replace").strip().splitlines()
            raise PreconditionError(
                f"Ray ended with {process.returncode}: {lines[-1] if lines else 'no output'}",
                hint=f"the whole output is in {state_dir / LOG_FILE}",
            )
        time.sleep(0.05)
    raise TimedOutError(f"Ray did not answer within {START_PATIENCE_S:.0f} s", hint=f"see {state_dir / LOG_FILE}")


def _free_ports(count: int) -> list[int]:
    """Ports free at this moment; held open together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
