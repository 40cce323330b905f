"""Tests on the real machine: root, namespaces, sshd, runC and CRIU. Skipped, with the reason, where one is missing."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from natwork_ray.adapters import testbed as testbeds
from natwork_ray.adapters.testbed_requirements import Toolchain, require
from natwork_ray.adapters.testbed_state import TestbedRecord
from natwork_ray.errors import PreconditionError


@dataclass(frozen=True)
class RealTestbed:
    """A testbed of three nodes, and what made it."""

    state_dir: Path
    record: TestbedRecord
    tools: Toolchain


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    """The machine's programs; the reason for skipping where real migration is not possible."""
    try:
        return require()
    except PreconditionError as error:
        pytest.skip(str(error))


def _ended(folder: Path) -> None:
    """Take the testbed down and delete the folder, which has to be empty then. Nothing is ever deleted recursively: a
    container's bind mount that was left would lead to the machine's own /usr.
    """
    testbeds.down(folder)
    folder.rmdir()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory of the test's own, with a name that is short enough for SSH's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nwt-"))
    yield folder
    _ended(folder)


@pytest.fixture(scope="session")
def testbed(tools: Toolchain) -> Iterator[RealTestbed]:
    """One testbed for all tests of a session; nothing of it may be left."""
    rng = random.Random()
    folder = Path(tempfile.mkdtemp(prefix="nwt-"))
    record = testbeds.plan(folder, nodes=3, tools=tools, rng=rng, now_s=time.time())
    try:
        yield RealTestbed(folder, testbeds.up(record, tools=tools, rng=rng), tools)
    finally:
        _ended(folder)
    assert testbeds.traces(record) == ()
