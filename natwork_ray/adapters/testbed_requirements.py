"""What real live migration needs of a machine (D3.3 section 2.1), asked of the machine itself, and how to get it.

`requirements()` looks at everything and never raises; `require(methods)` refuses with the first thing that is missing
and says how to get it; `toolchain()` names the programs that the other adapters start. Nothing is changed by asking:
what has to be tried (a bridge, a packet filter) is tried in a network namespace of its own that ends with the attempt.

Rules kept: CRIU is asked (`criu check`, `criu check --feature`), never guessed from the kernel's version, but for one
thing that it finds out too late: from kernel 6.16 on, releases before 4.2 begin a dump and then fail on the vDSO (3.17)
or on TCP sockets (4.1). The CRIU of `scripts/install_testbed` goes before one on the PATH.

Left out: cgroup limits and the profiles of SELinux or AppArmor, which show only with a container in hand; runC reports
them then.

    >>> [r.name for r in requirements(Machine(uid=lambda: 1000)) if not r.found][0]
    'root'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from natwork_ray.adapters.machine import Answer, Machine
from natwork_ray.domain.actions import MigrationMethod
from natwork_ray.domain.runtime import RuntimeAbilities
from natwork_ray.domain.values import value
from natwork_ray.errors import PreconditionError

ALL = tuple(MigrationMethod)
LAZY = (MigrationMethod.POST_COPY, MigrationMethod.HYBRID)

DIRECTORY_VARIABLE = "NATWORK_TESTBED_DIR"
DEFAULT_DIRECTORY = Path("/opt/natwork-testbed")
INSTALL = "sudo scripts/install_testbed"

# From this kernel on, CRIU has to be that new.
NEW_KERNEL, NEW_CRIU = (6, 16), (4, 2)

# What CRIU, runC and the bridge do with it: man 7 capabilities; numbers from linux/capability.h.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}
_CAP_SYS_RESOURCE = 24

_PIPE_SIZE, _PIPE_PAGES = Path("/proc/sys/fs/pipe-max-size"), Path("/proc/sys/fs/pipe-user-pages-soft")


@value
class Requirement:
    """One thing that real migration needs, and whether it is here.

    Attributes:
        detail: version or path when found, else what is wrong.
        hint: how to get it.
        needed_for: methods that do not work without it; empty for what only makes something better.
        purpose: the same in words, also for what is not needed by any method.
    """

    name: str
    found: bool
    detail: str
    hint: str
    needed_for: tuple[MigrationMethod, ...]
    purpose: str


@value
class Toolchain:
    """Absolute paths of the programs that the adapters start."""

    runc: Path
    criu: Path
    rsync: Path
    sshd: Path
    ssh: Path
    ssh_keygen: Path
    ip: Path
    nsenter: Path
    arping: Path
    iptables_restore: Path


# Field of Toolchain: (program, Debian's package).
_PROGRAMS = {
    "runc": ("runc", "runc"),
    "rsync": ("rsync", "rsync"),
    "sshd": ("sshd", "openssh-server"),
    "ssh": ("ssh", "openssh-client"),
    "ssh_keygen": ("ssh-keygen", "openssh-client"),
    "ip": ("ip", "iproute2"),
    "nsenter": ("nsenter", "util-linux"),
    "arping": ("arping", "iputils-arping"),
    "iptables_restore": ("iptables-restore", "iptables"),
}


def criu_path(machine: Machine | None = None) -> Path | None:
    """The CRIU to use: that of scripts/install_testbed, else the first on the PATH, else None."""
    machine = machine or Machine()
    folder = Path(machine.environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY)
    installed = folder.absolute() / "bin" / "criu"
    return installed if machine.is_file(installed) else machine.which("criu")


def toolchain(machine: Machine | None = None) -> Toolchain:
    """Where every program is; see `require` for whether they work.

    Raises:
        PreconditionError: a program is missing; the message names it and the hint how to get it.
    """
    machine = machine or Machine()
    paths = {name: machine.which(program) for name, (program, _) in _PROGRAMS.items()}
    paths["criu"] = criu_path(machine)
    for name, path in paths.items():
        if path is None:
            program = name.replace("_", "-")
            raise PreconditionError(f"real migration needs {program}, which is not here", hint=INSTALL)
    return Toolchain(**{name: path for name, path in paths.items() if path is not None})


def requirements(machine: Machine | None = None) -> tuple[Requirement, ...]:
    """Everything that real migration needs or can use, found or not. Takes about half a second as root."""
    machine = machine or Machine()
    root = machine.uid() == 0
    found = [_root(root), _capabilities(machine)]
    found += [_program(machine, program, package) for program, package in _PROGRAMS.values()]
    found += _criu(machine, root=root)
    found += [*_network(machine, root=root), _freezer(machine), _pipes(machine)]
    podman = machine.which("podman")
    found.append(
        Requirement(
            name="podman",
            found=podman is not None,
            detail=str(podman) if podman else "not on the PATH",
            hint="" if podman else f"{INSTALL} --with-podman",
            needed_for=(),
            purpose="the peer in the migration benchmark",
        )
    )
    return tuple(found)


def require(methods: Iterable[MigrationMethod] = ALL, machine: Machine | None = None) -> Toolchain:
    """The toolchain, once everything that these methods need was found. Changes nothing.

    Raises:
        PreconditionError: the first thing that is missing, and how to get it.
    """
    machine = machine or Machine()
    wanted = tuple(methods)
    for requirement in requirements(machine):
        blocked = [str(method) for method in wanted if method in requirement.needed_for]
        if blocked and not requirement.found:
            raise PreconditionError(
                f"real {', '.join(blocked)} migration is not possible here: {requirement.name}: {requirement.detail}",
                hint=requirement.hint,
            )
    return toolchain(machine)


def abilities(found: Iterable[Requirement]) -> RuntimeAbilities:
    """Which methods work with what was found, and for each of the others the first reason why not."""
    reasons: dict[MigrationMethod, str] = {}
    dirty_tracking = False
    for requirement in found:
        if requirement.found:
            dirty_tracking = dirty_tracking or requirement.name == DIRTY_TRACKING
            continue
        for method in requirement.needed_for:
            reasons.setdefault(method, f"{requirement.name}: {requirement.detail}; {requirement.hint}")
    return RuntimeAbilities(
        methods=tuple(method for method in ALL if method not in reasons),
        dirty_tracking=dirty_tracking,
        reasons=tuple((method, reasons[method]) for method in ALL if method in reasons),
    )


DIRTY_TRACKING = "criu mem_dirty_track"
LAZY_PAGES = "criu uffd-noncoop"
_NOT_ASKED = "only root can ask"


def _needed(name: str, wrong: str, good: str, *, hint: str, methods: tuple[MigrationMethod, ...] = ALL) -> Requirement:
    """A requirement that is missing when `wrong` says something."""
    purpose = "all methods" if methods == ALL else " and ".join(str(method) for method in methods)
    return Requirement(
        name=name,
        found=not wrong,
        detail=wrong or good,
        hint=hint if wrong else "",
        needed_for=methods,
        purpose=purpose,
    )


def _root(root: bool) -> Requirement:
    return _needed(
        "root",
        "" if root else "not the effective user",
        "the effective user",
        hint="start the command with sudo: CRIU and network namespaces need root",
    )


def _effective_capabilities(machine: Machine) -> int:
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", machine.read(Path("/proc/self/status")), re.MULTILINE)
    return int(match[1], 16) if match else 0


def _capabilities(machine: Machine) -> Requirement:
    held = _effective_capabilities(machine)
    missing = [name for name, number in CAPABILITIES.items() if not held >> number & 1]
    return _needed(
        "capabilities",
        f"missing: {', '.join(missing)}" if missing else "",
        f"{len(CAPABILITIES)} of {len(CAPABILITIES)}",
        hint="run as root, outside a container or in a privileged one",
    )


def _program(machine: Machine, program: str, package: str) -> Requirement:
    path = machine.which(program)
    return _needed(
        program,
        "" if path else f"not on the PATH (package {package})",
        str(path),
        hint=INSTALL,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _criu(machine: Machine, *, root: bool) -> list[Requirement]:
    path = criu_path(machine)
    version = "" if path is None else _criu_version(machine, path)
    asked = root and bool(version)
    # Without a CRIU nothing is known of the kernel: no hint may blame it.
    if path is None:
        not_asked, first = "there is no usable criu", f"CRIU is missing: {INSTALL}"
    elif not root:
        not_asked, first = _NOT_ASKED, "sudo natwork doctor"
    else:
        not_asked, first = "there is no usable criu", "" if version else f"CRIU does not work: {INSTALL}"
    return [
        _needed("criu", _criu_flaw(machine, path, version), f"{version} {path}", hint=INSTALL),
        _needed(
            "criu check",
            _refusal(machine, [str(path), "check"]) if asked else not_asked,
            "looks good",
            hint=first or f"{INSTALL}; if it stays, the kernel lacks what the message names",
        ),
        _needed(
            LAZY_PAGES,
            _refusal(machine, [str(path), "check", "--feature", "uffd-noncoop"]) if asked else not_asked,
            "supported",
            hint=first or "a kernel with CONFIG_USERFAULTFD and a CRIU that knows it",
            methods=LAZY,
        ),
        _dirty_tracking(
            _refusal(machine, [str(path), "check", "--feature", "mem_dirty_track"]) if asked else not_asked,
            hint=first or "a kernel with CONFIG_MEM_SOFT_DIRTY; pre-copy works without it, by rsync differences",
        ),
    ]


def _dirty_tracking(wrong: str, *, hint: str) -> Requirement:
    return Requirement(
        name=DIRTY_TRACKING,
        found=not wrong,
        detail=wrong or "supported",
        hint=hint if wrong else "",
        needed_for=(),
        purpose="CRIU's own incremental pre-dump",
    )


def _criu_version(machine: Machine, path: Path) -> str:
    match = re.search(
        r"^Version:\s*(\d{1,4}(?:\.\d{1,4}){1,3})", machine.run([str(path), "--version"]).text, re.MULTILINE
    )
    return match[1] if match else ""


def _criu_flaw(machine: Machine, path: Path | None, version: str) -> str:
    if path is None:
        return "neither installed by scripts/install_testbed nor on the PATH"
    if not version:
        answer = machine.run([str(path), "--version"])
        return f"{path} says no version: {_last_line(answer)}"
    kernel = re.match(r"(\d{1,4})\.(\d{1,4})", machine.release())
    if kernel and (int(kernel[1]), int(kernel[2])) >= NEW_KERNEL and _numbers(version) < NEW_CRIU:
        wanted = ".".join(str(part) for part in NEW_CRIU)
        return f"{path} is {version}, and kernel {machine.release()} needs {wanted} or newer"
    return ""


def _last_line(answer: Answer) -> str:
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    # CRIU puts the place in its source before what it says.
    said = re.sub(r"^(?:Error|Warn)\s+\([^)]*\):\s*", "", lines[-1]) if lines else ""
    return said[:200] or f"exit status {answer.status}"


def _refusal(machine: Machine, argv: list[str]) -> str:
    """Empty when the program was content, else its last word."""
    answer = machine.run(argv)
    return "" if answer.status == 0 else _last_line(answer)


# Interfaces tried in a namespace that ends with the program: their names meet nobody.
_ATTEMPTS = (
    ("network namespaces", ("true",), "a kernel with CONFIG_NET_NS"),
    ("bridge", ("ip", "link", "add", "nw0", "type", "bridge"), "a kernel with CONFIG_BRIDGE (modprobe bridge)"),
    ("veth", ("ip", "link", "add", "nw0", "type", "veth", "peer", "nw1"), "a kernel with CONFIG_VETH (modprobe veth)"),
    (
        "packet filter",
        ("iptables", "--numeric", "--list"),
        "a kernel with CONFIG_NF_TABLES or CONFIG_IP_NF_IPTABLES: CRIU locks a container's network with it",
    ),
)


def _network(machine: Machine, *, root: bool) -> list[Requirement]:
    unshare = machine.which("unshare")
    found = []
    for name, attempt, hint in _ATTEMPTS:
        program = machine.which(attempt[0])
        if not root:
            wrong, hint = _NOT_ASKED, "sudo natwork doctor"
        elif unshare is None or program is None:
            wrong, hint = f"cannot be tried without {'unshare' if unshare is None else attempt[0]}", INSTALL
        else:
            wrong = _refusal(machine, [str(unshare), "--net", "--", str(program), *attempt[1:]])
        found.append(_needed(name, wrong, "tried", hint=hint))
    return found


def _freezer(machine: Machine) -> Requirement:
    # Version 1 lists it among the mount's options; version 2 has it built in (Linux 5.2), where runC finds it only
    # when it is the one hierarchy at the usual place.
    mounts = [line.split(" ") for line in machine.read(Path("/proc/self/mounts")).splitlines()]
    mounts = [fields for fields in mounts if len(fields) >= 4]
    if any(fields[2] == "cgroup" and "freezer" in fields[3].split(",") for fields in mounts):
        kind = "version 1"
    elif any(fields[2] == "cgroup2" and fields[1] == "/sys/fs/cgroup" for fields in mounts):
        kind = "version 2"
    else:
        kind = ""
    return _needed(
        "cgroup freezer",
        "" if kind else "no cgroup hierarchy with a freezer is mounted",
        f"cgroups {kind}",
        hint="mount the cgroup freezer, or boot with cgroups version 2",
    )


def _pipes(machine: Machine) -> Requirement:
    """Lazy pages go through pipes as large as the memory; the kernel caps them for whoever lacks CAP_SYS_RESOURCE."""
    if _effective_capabilities(machine) >> _CAP_SYS_RESOURCE & 1:
        wrong, good = "", "not limited (CAP_SYS_RESOURCE)"
    else:
        now = f"fs.pipe-max-size = {machine.read(_PIPE_SIZE).strip() or '?'}"
        can = machine.writable(_PIPE_SIZE) and machine.writable(_PIPE_PAGES)
        wrong, good = "" if can else f"{now}, and it cannot be changed", f"{now}, adjustable"
    return _needed(
        "pipe limits",
        wrong,
        good,
        hint="set fs.pipe-max-size=1073741824 and fs.pipe-user-pages-soft=0 outside this container",
        methods=LAZY,
    )
