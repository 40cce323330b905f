"""`natwork` as a user runs it: a process of its own, in an environment without this test run's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]


class Shell:
    """Runs commands in a folder; remembers nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "NATWORK_", "COV_"))}
        self.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        # Not the test run's own PATH: nobody has to activate the environment.
        self.bin = Path(sys.executable).parent

    def run(
        self, *command: str, code: int = 0, timeout_s: float = 120, cwd: Path | None = None, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=self.environ | environ, timeout=timeout_s, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, (
            f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def natwork(self, *arguments: str, code: int = 0, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "natwork_ray.cli.main", *arguments, code=code, timeout_s=timeout_s)

    def json(self, *arguments: str, **options: Any) -> Any:
        """The one JSON document on stdout; anything else there fails."""
        return json.loads(self.natwork(*arguments, **options).stdout)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a temporary folder; whatever it leaves running fails the test, and is ended."""
    before = {process.pid for process in psutil.process_iter()}
    yield Shell(tmp_path)
    left = []
    for process in psutil.process_iter():
        if process.pid in before:
            continue
        try:
            if str(tmp_path) in " ".join((*process.cmdline(), *process.environ().values())):
                left.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    _, left = psutil.wait_procs(left, timeout=10)
    names = [" ".join(p.cmdline())[:100] for p in left if p.is_running()]
    for process in left:
        process.kill()
    assert not names, f"left running: {names}"
