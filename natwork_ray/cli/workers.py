"""A Ray cluster of our own for as long as one command takes: `--workers`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from natwork_ray.cli.output import talk


@contextlib.contextmanager
def own_cluster(workers: int, *, prefix: str = "natwork-workers-") -> Iterator[None]:
    """Start a cluster with so many CPUs, connect to it, and end it again, whatever happens."""
    from agents import cluster

    state_dir = Path(tempfile.mkdtemp(prefix=prefix))
    os.environ.update(cluster.environment(state_dir))
    try:
        talk.print(f"Starting Ray with {workers} workers ...")
        cluster.start(state_dir, dashboard=False, cpus=workers)
        cluster.connect(state_dir)
        yield
    finally:
        cluster.disconnect()
        cluster.end(state_dir)
        shutil.rmtree(state_dir, ignore_errors=True)
