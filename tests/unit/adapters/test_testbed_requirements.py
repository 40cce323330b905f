"""What real migration needs: each piece taken away once from a machine that has everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters import testbed_requirements as needs
from natwork_ray.adapters.machine import NOT_STARTED, TIMED_OUT, Answer, Machine, run_bounded
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.errors import PreconditionError

CRIU = "/opt/natwork-testbed/bin/criu"
ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"
CGROUP_V1 = "cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n"
CGROUP_V2 = "none /sys/fs/cgroup cgroup2 rw 0 0\n"
PIPES = "/proc/sys/fs/pipe-max-size"


def machine(
    *,
    absent: Sequence[str] = (),
    says: dict[str, Answer] | None = None,
    files: dict[str, str] | None = None,
    uid: int = 0,
    release: str = "6.18.44",
    environ: dict[str, str] | None = None,
    installed: str | None = CRIU,
    writable: bool = False,
    asked: list[tuple[str, ...]] | None = None,
) -> Machine:
    """A machine that has everything, but for what is said. `says` maps the end of a command line to its answer."""
    contents = {
        "/proc/self/status": ALL_CAPABILITIES,
        "/proc/self/mounts": CGROUP_V1,
        PIPES: "1048576\n",
        **(files or {}),
    }

    def run(argv: Sequence[str]) -> Answer:
        if asked is not None:
            asked.append(tuple(argv))
        line = " ".join(argv)
        for end, answer in (says or {}).items():
            if line.endswith(end):
                return answer
        return Answer(status=0, text="Version: 4.2.1\nGitID: v4.2.1" if argv[-1] == "--version" else "")

    return Machine(
        run=run,
        which=lambda name: None if name in absent else Path("/usr/bin") / name,
        is_file=lambda path: str(path) == installed,
        read=lambda path: contents.get(str(path), ""),
        writable=lambda _: writable,
        uid=lambda: uid,
        release=lambda: release,
        environ=environ or {},
    )


def missing(of: Machine) -> dict[str, needs.Requirement]:
    return {r.name: r for r in needs.requirements(of) if not r.found}


def test_a_machine_with_everything() -> None:
    found = needs.requirements(machine())
    assert all(r.found and r.detail and not r.hint and r.purpose for r in found)
    assert len({r.name for r in found}) == len(found)
    able = needs.abilities(found)
    assert (able.methods, able.dirty_tracking, able.reasons) == (tuple(MigrationMethod), True, ())
    tools = needs.require(MigrationMethod, machine())
    assert tools == needs.toolchain(machine())
    assert str(tools.criu) == CRIU
    assert str(tools.ssh_keygen) == "/usr/bin/ssh-keygen"
    assert str(tools.iptables_restore) == "/usr/bin/iptables-restore"


PROGRAMS = ("runc", "rsync", "sshd", "ssh", "ssh-keygen", "ip", "nsenter", "arping", "iptables-restore")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_missing(program: str) -> None:
    poor = machine(absent=[program])
    lacking = missing(poor)[program]
    assert lacking.needed_for == tuple(MigrationMethod)
    assert lacking.hint == "sudo scripts/install_testbed"
    assert "package" in lacking.detail
    with pytest.raises(PreconditionError, match=f"{program}: not on the PATH") as refused:
        needs.require([MigrationMethod.COLD], poor)
    assert refused.value.hint == "sudo scripts/install_testbed"
    with pytest.raises(PreconditionError, match=f"needs {program}, which is not here"):
        needs.toolchain(poor)


def test_podman_is_only_the_peer() -> None:
    poor = machine(absent=["podman"])
    assert list(missing(poor)) == ["podman"]
    assert "--with-podman" in missing(poor)["podman"].hint
    needs.require(MigrationMethod, poor)


def test_root_is_missing_and_nothing_is_started_that_needs_it() -> None:
    asked: list[tuple[str, ...]] = []
    user = machine(uid=1000, files={"/proc/self/status": "CapEff:\t0000000000000000\n"}, asked=asked)
    with pytest.raises(PreconditionError, match=r"cold, pre-copy, post-copy, hybrid .*: root: ") as refused:
        needs.require(MigrationMethod, user)
    assert "sudo" in refused.value.hint
    assert {argv[1:] for argv in asked} == {("--version",)}
    assert all("sudo" in r.hint for r in missing(user).values() if r.detail == "only root can ask")
    assert needs.abilities(needs.requirements(user)).methods == ()


def test_a_capability_is_missing() -> None:
    everything = int(ALL_CAPABILITIES.split()[1], 16)
    for name, number in needs.CAPABILITIES.items():
        held = f"CapEff:\t{everything & ~(1 << number):016x}\n"
        assert missing(machine(files={"/proc/self/status": held}))["capabilities"].detail == f"missing: {name}"
    assert "CAP_SYS_ADMIN" in missing(machine(files={"/proc/self/status": "nothing"}))["capabilities"].detail


def test_where_criu_is_looked_for() -> None:
    assert needs.criu_path(machine()) == Path(CRIU)
    assert needs.criu_path(machine(installed=None)) == Path("/usr/bin/criu")
    assert needs.criu_path(machine(installed=None, absent=["criu"])) is None
    elsewhere = machine(installed="/srv/testbed/bin/criu", environ={"NATWORK_TESTBED_DIR": "/srv/testbed"})
    assert needs.criu_path(elsewhere) == Path("/srv/testbed/bin/criu")
    assert needs.criu_path(machine(environ={"NATWORK_TESTBED_DIR": ""})) == Path(CRIU)


def test_no_criu() -> None:
    poor = machine(installed=None, absent=["criu"])
    lacking = missing(poor)
    assert set(lacking) == {"criu", "criu check", needs.LAZY_PAGES, needs.DIRTY_TRACKING}
    assert "neither installed" in lacking["criu"].detail
    for name in ("criu check", needs.LAZY_PAGES, needs.DIRTY_TRACKING):
        assert lacking[name].hint == "CRIU is missing: sudo scripts/install_testbed"
    assert missing(machine(installed=None, absent=["criu"], uid=1000))[needs.LAZY_PAGES].hint.startswith(
        "CRIU is missing"
    )
    with pytest.raises(PreconditionError, match="criu: neither installed"):
        needs.require([MigrationMethod.COLD], poor)
    with pytest.raises(PreconditionError, match="needs criu, which is not here"):
        needs.toolchain(poor)


@pytest.mark.parametrize(
    ("release", "version", "fine"),
    [
        ("6.18.44-fc", "3.17.1", False),
        ("6.16.0", "4.1.1", False),
        ("7.0-rc1", "4.1", False),
        ("6.16.0", "4.2", True),
        ("6.18.44", "4.10", True),
        ("6.15.9", "3.17.1", True),
        ("6.1.0-28-amd64", "3.17.1", True),
        ("unheard of", "3.17.1", True),
    ],
)
def test_an_old_criu_on_a_new_kernel(release: str, version: str, fine: bool) -> None:
    told = machine(release=release, says={"criu --version": Answer(status=0, text=f"Version: {version}")})
    assert ("criu" in missing(told)) is not fine
    if not fine:
        assert f"is {version}, and kernel {release} needs 4.2 or newer" in missing(told)["criu"].detail


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=NOT_STARTED, text="cannot be started: Permission denied"), "Permission denied"),
        (Answer(status=1, text=""), "exit status 1"),
        (Answer(status=0, text="Version: many"), "many"),
    ],
)
def test_a_criu_that_does_not_work(answer: Answer, said: str) -> None:
    lacking = missing(machine(says={"criu --version": answer}))
    assert said in lacking["criu"].detail
    assert lacking["criu check"].detail == "there is no usable criu"
    assert {lacking[n].hint for n in ("criu check", needs.LAZY_PAGES, needs.DIRTY_TRACKING)} == {
        "CRIU does not work: sudo scripts/install_testbed"
    }


def test_criu_refuses() -> None:
    text = "Warn  (criu/x.c:1): some\nError (criu/cr-check.c:12): ptrace is broken\n"
    poor = machine(says={"criu check": Answer(status=1, text=text)})
    assert missing(poor)["criu check"].detail == "ptrace is broken"
    with pytest.raises(PreconditionError, match="criu check: ptrace is broken"):
        needs.require([MigrationMethod.COLD], poor)


def test_without_lazy_pages_cold_and_pre_copy_remain() -> None:
    poor = machine(says={"--feature uffd-noncoop": Answer(status=1, text="")})
    needs.require([MigrationMethod.COLD, MigrationMethod.PRE_COPY], poor)
    with pytest.raises(PreconditionError, match="real hybrid migration is not possible here: criu uffd-noncoop"):
        needs.require([MigrationMethod.COLD, MigrationMethod.HYBRID], poor)
    able = needs.abilities(needs.requirements(poor))
    assert able.methods == (MigrationMethod.COLD, MigrationMethod.PRE_COPY)
    assert [method for method, _ in able.reasons] == [MigrationMethod.POST_COPY, MigrationMethod.HYBRID]
    assert "CONFIG_USERFAULTFD" in able.reasons[0][1]


def test_without_dirty_tracking_every_method_remains() -> None:
    poor = machine(says={"--feature mem_dirty_track": Answer(status=1, text="Dirty tracking is OFF.")})
    assert missing(poor)[needs.DIRTY_TRACKING].detail == "Dirty tracking is OFF."
    needs.require(MigrationMethod, poor)
    able = needs.abilities(needs.requirements(poor))
    assert (able.methods, able.dirty_tracking) == (tuple(MigrationMethod), False)


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("/usr/bin/true", "network namespaces"),
        ("type bridge", "bridge"),
        ("type veth peer nw1", "veth"),
        ("--numeric --list", "packet filter"),
    ],
)
def test_a_kernel_without_a_feature_of_the_network(end: str, name: str) -> None:
    poor = machine(says={end: Answer(status=2, text="Error: Unknown device type.")})
    assert missing(poor)[name].detail == "Error: Unknown device type."
    assert "a kernel with CONFIG_" in missing(poor)[name].hint


def test_the_network_is_tried_in_a_namespace_of_its_own() -> None:
    asked: list[tuple[str, ...]] = []
    needs.requirements(machine(asked=asked))
    assert all(argv[0] == CRIU or argv[:3] == ("/usr/bin/unshare", "--net", "--") for argv in asked)
    assert "cannot be tried without unshare" in missing(machine(absent=["unshare"]))["bridge"].detail
    assert "cannot be tried without iptables" in missing(machine(absent=["iptables"]))["packet filter"].detail


@pytest.mark.parametrize(
    ("mounts", "detail"),
    [
        (CGROUP_V1, "cgroups version 1"),
        (CGROUP_V2, "cgroups version 2"),
        ("c /sys/fs/cgroup/unified cgroup2 rw 0 0\n" + CGROUP_V1, "cgroups version 1"),
        ("c /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nc /sys/fs/cgroup/unified cgroup2 rw 0 0", ""),
        ("torn line\n", ""),
        ("", ""),
    ],
)
def test_cgroup_freezer(mounts: str, detail: str) -> None:
    found = {r.name: r for r in needs.requirements(machine(files={"/proc/self/mounts": mounts}))}["cgroup freezer"]
    assert found.found is bool(detail)
    assert found.detail == (detail or "no cgroup hierarchy with a freezer is mounted")


def test_pipe_limits() -> None:
    unlimited = int(ALL_CAPABILITIES.split()[1], 16)
    poor = {"/proc/self/status": f"CapEff:\t{unlimited & ~(1 << 24):016x}\n"}
    stuck = missing(machine(files=poor))["pipe limits"]
    assert stuck.detail == "fs.pipe-max-size = 1048576, and it cannot be changed"
    assert stuck.needed_for == needs.LAZY
    assert "pipe limits" not in missing(machine(files=poor, writable=True))


@given(st.sets(st.sampled_from([*PROGRAMS, "criu", "unshare", "iptables", "podman"])), st.booleans())
def test_abilities_and_require_agree(absent: set[str], root: bool) -> None:
    """A method is named as possible exactly when it is not refused, whatever is missing."""
    some = machine(absent=sorted(absent), installed=None, uid=0 if root else 1000)
    able = needs.abilities(needs.requirements(some))
    for method in MigrationMethod:
        try:
            needs.require([method], some)
            allowed = True
        except PreconditionError:
            allowed = False
        assert allowed is (method in able.methods)
        assert allowed is (method not in dict(able.reasons))


def test_a_real_program_is_run_bounded() -> None:
    # The interpreter at hand is the one program that every machine with these tests has.
    python = sys.executable
    assert run_bounded([python, "-c", "print(' said ')"]) == Answer(status=0, text="said")
    failed = run_bounded([python, "-c", "import sys; sys.stderr.write('no'); sys.exit(3)"])
    assert (failed.status, failed.text) == (3, "no")
    assert len(run_bounded([python, "-c", "print('x' * 200_000)"]).text) == 65_536
    assert run_bounded([python, "-c", "import sys; print(repr(sys.stdin.read()))"]).text == "''"
    assert run_bounded([python, "-c", "input()"], timeout_s=60).status == 1
    assert run_bounded(["/nowhere/at/all"]).status == NOT_STARTED
    slow = run_bounded([python, "-c", "import threading; threading.Event().wait()"], timeout_s=0.2)
    assert (slow.status, slow.text) == (TIMED_OUT, "no answer within 0.2 s")


def test_the_environment_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_THE_USER", "evil")
    said = run_bounded([sys.executable, "-c", "import os; print(sorted(os.environ))"]).text
    assert "LD_PRELOAD_OF_THE_USER" not in said
    assert "PATH" in said


def test_the_machine_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    here: Any = Machine()
    assert here.which("tool") == program
    assert here.which("no-such-tool") is None
    assert here.read(program) == ""
    assert here.read(tmp_path / "absent") == ""
    assert here.writable(program)
    assert here.uid() == os.geteuid()
    assert here.release() == os.uname().release
    assert here.environ is os.environ
