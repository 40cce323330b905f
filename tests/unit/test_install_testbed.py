"""scripts/install_testbed as far as it goes without root and network: what it says, refuses, and leaves alone.

Programs on the PATH are stand-ins, so the answers are the same on every machine and no package is ever installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_testbed"
TOOLS = ("runc", "rsync", "sshd", "ssh", "ssh-keygen", "ip", "arping", "iptables-restore", "nsenter", "patchelf")
POLICY = """cat <<END
criu:
  Installed: (none)
  Candidate: {0}
END"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stands_in(tmp_path: Path) -> Callable[[str, str], Path]:
    """`stands_in("uname", "echo 6.18.1")`: from now on that is the program of this name."""
    (tmp_path / "programs").mkdir()

    def make(name: str, script: str) -> Path:
        path = tmp_path / "programs" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    for tool in TOOLS:
        make(tool, "exit 0")
    make("uname", "echo 6.18.1-test")
    make("apt-cache", POLICY.format("3.17.1-2+deb12u2"))
    make("apt-get", f'[ "$1" = indextargets ] || echo "$@" >>"{tmp_path}/apt-was-called"; exit 1')
    make("criu", "exit 1")
    return make


@pytest.fixture
def run(tmp_path: Path, stands_in: Callable[[str, str], Path]) -> Run:
    """The script with arguments; its folder is `testbed` below tmp_path unless told otherwise."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            env={
                "PATH": f"{tmp_path / 'programs'}:{os.environ['PATH']}",
                "NATWORK_TESTBED_DIR": str(tmp_path / "testbed"),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


@pytest.fixture(autouse=True)
def _no_package_is_asked_for(tmp_path: Path) -> object:
    yield
    assert not (tmp_path / "apt-was-called").exists()


def _criu(tmp_path: Path, version: str, *, refuses: str = "") -> None:
    """A CRIU in the script's folder; `refuses` is the end of a command line that it fails on."""
    path = tmp_path / "testbed" / "bin" / "criu"
    path.parent.mkdir(parents=True)
    path.write_text(
        f'#!/bin/sh\ncase "$*" in --version) echo "Version: {version}" ;; *"{refuses or "nothing"}") '
        "echo 'Error (x.c:1): no'; exit 1 ;; esac\n"
    )
    path.chmod(0o755)


def test_help_names_every_option(run: Run) -> None:
    ended = run("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    options = (
        "--with-podman",
        "--with-prometheus",
        "--dir",
        "--dry-run",
        "--check",
        "--remove",
        "--purge",
        "--json",
        "Examples:",
    )
    assert all(option in ended.stdout for option in options)


@pytest.mark.parametrize(
    "arguments",
    [["--bogus"], ["--purge"], ["--dir"], ["--dir", "relative"], ["--dir", "/a/../b"], ["--dir", "/a b"],
     ["--dir", "/$(id)"], ["--check", "--remove"]],
)  # fmt: skip
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1


def test_dry_run_does_nothing(run: Run, tmp_path: Path, stands_in: Callable[[str, str], Path]) -> None:
    ended = run("--dry-run", "--json")
    assert ended.returncode == 0
    assert "all packages are there" in ended.stderr
    assert "kernel 6.18.1-test needs 4.2 or newer; this machine's sources offer 3.17.1" in ended.stderr
    assert not (tmp_path / "testbed").exists()
    told = json.loads(ended.stdout)
    assert (told["action"], told["changed"], told["criu"]["usable"]) == ("dry-run", False, False)
    assert told["dir"] == str(tmp_path / "testbed")

    stands_in("apt-cache", POLICY.format("1:4.2.1-1~bpo13+1"))
    assert "would install criu 4.2.1 from this machine's package sources" in run("--dry-run").stderr
    stands_in("criu", "[ $1 != --version ] || echo Version: 4.10")
    assert f"would link {tmp_path}/testbed/bin/criu" in run("--dry-run").stderr
    stands_in("uname", "echo 6.1.0")
    stands_in("criu", "exit 1")
    stands_in("apt-cache", POLICY.format("3.17.1-2"))
    assert "would install criu 3.17.1 from" in run("--dry-run").stderr


def test_check_of_a_machine_with_everything(run: Run, tmp_path: Path) -> None:
    _criu(tmp_path, "4.2.1", refuses="mem_dirty_track")
    ended = run("--check", "--json")
    assert ended.returncode == 0
    assert "missing" not in ended.stderr
    told = json.loads(ended.stdout)
    assert (told["packages_missing"], told["criu"]["usable"]) == ([], True)
    assert (told["criu"]["mem_dirty_track"], told["criu"]["lazy_pages"]) == (False, True)


@pytest.mark.parametrize("version", ["3.17.1", "4.1.1"])
def test_check_finds_a_criu_that_is_too_old(run: Run, tmp_path: Path, version: str) -> None:
    _criu(tmp_path, version)
    ended = run("--check")
    assert ended.returncode == 3
    assert f"{version}; kernel 6.18.1-test needs 4.2 or newer" in ended.stderr
    assert "sudo scripts/install_testbed" in ended.stderr


def test_check_finds_what_is_missing(run: Run, tmp_path: Path) -> None:
    assert run("--check").returncode == 3  # no criu
    _criu(tmp_path, "4.2.1", refuses="check" if os.geteuid() == 0 else "--version")
    ended = run("--check")
    assert ended.returncode == 3
    assert "missing  criu" in ended.stderr


def test_a_folder_of_somebody_else_is_left_alone(run: Run, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter").write_text("mine")
    for arguments in ([], ["--remove"]):
        ended = run("--dir", str(foreign), *arguments)
        assert (ended.returncode, ended.stdout) == (3, "")
        assert [path.name for path in foreign.iterdir()] == ["letter"]
    assert run("--remove").returncode == 0  # nothing there, nothing to do
