"""A container's bundle: the OCI runtime configuration made from a `ContainerSpec`, so that CRIU can move it.

What migration asks of it (recipe of docs/testbed.md):

- the network namespace is external, by path: the node's bridge makes it, with the same address on every node;
- /usr is the machine's own, bound read-only, as a real folder; /lib and the like are links in the root file system: a
  bind over a symbolic link dumps, and then does not restore;
- the root file system is the container's own folder in the bundle and writable, unless the spec says otherwise;
- /dev is a small tmpfs and /proc its own, with what can harm the machine masked or read-only; there is no /sys,
  /dev/shm or /dev/pts: each file system more costs 5 ms of downtime, as CRIU packs and unpacks its contents;
- one cgroup path for all controllers; CRIU is told to look at one controller only, since runC makes the target's
  cgroups itself and CRIU's walk through all of them takes 20 ms.

CRIU's settings go through a file that is named by the annotation `org.criu.config` and read at every dump and restore;
they win over what runC says where runC says nothing.

    >>> config(ContainerSpec(name="web", image="i", address="10.0.0.2/24", mac="02:00:00:00:00:01", command=("sleep",)),
    ...     netns=Path("/run/netns/n"), cgroup="/t/n/web", criu_conf=Path("/b/criu.conf"))["hostname"]
    'web'
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import decode, encode
from natwork_ray.errors import ActionError, InputError, NotFoundError, UsageError

CONFIG, SPEC, CRIU_CONF, FREEZE_SCRIPT = "config.json", "spec.json", "criu.conf", "freeze-at-dump"
MAX_SPEC_BYTES = 262_144
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1000  # the kernel's own bound
_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETPCAP", "SETUID")
)
_MASKED = ("/proc/kcore", "/proc/timer_list")
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_FOLDERS = ("dev", "proc", "usr")


def check_name(name: str) -> str:
    """A container's name, which goes into paths, cgroups and a host name.

    Raises:
        UsageError: it has other characters, or is too long.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise UsageError(f"container name {name!r}", hint="up to 63 letters, digits, dots, dashes; no ..")
    return name


def check(spec: ContainerSpec) -> None:
    """Whether a container can be made of it.

    Raises:
        UsageError: what cannot.
    """
    check_name(spec.name)
    if not spec.command or not all(spec.command[:1]) or any("\0" in part for part in spec.command):
        raise UsageError(f"{spec.name}: command = {spec.command!r}", hint="a program and its arguments, without NUL")
    for name, text in spec.environment:
        if not _VARIABLE.fullmatch(name) or "\0" in text:
            raise UsageError(f"{spec.name}: variable {name!r}", hint="letters, digits and underscores; no NUL")
    for field, number in (("cpu_limit_cores", spec.cpu_limit_cores), ("memory_limit_bytes", spec.memory_limit_bytes)):
        if not 0 <= number < float("inf"):
            raise UsageError(f"{spec.name}: {field} = {number}", hint="0 for no limit, or a positive number")


def resources(spec: ContainerSpec) -> dict[str, Any]:
    """`linux.resources`: limits, and no device but the usual harmless ones, which runC adds by itself."""
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if spec.cpu_limit_cores:
        found["cpu"] = {"period": _PERIOD_US, "quota": quota_us(spec.cpu_limit_cores)}
    if spec.memory_limit_bytes:
        found["memory"] = {"limit": int(spec.memory_limit_bytes)}
    return found


def quota_us(cores: float) -> int:
    """Processor time per period of 0.1 s; -1 for no limit."""
    return max(int(cores * _PERIOD_US), _LEAST_QUOTA_US) if cores else -1


def config(spec: ContainerSpec, *, netns: Path, cgroup: str, criu_conf: Path) -> dict[str, Any]:
    """The OCI runtime configuration (config.json, version 1.0.2) of a container on one node.

    Raises:
        UsageError: the spec does not describe a container.
    """
    check(spec)
    kinds = ("pid", "ipc", "uts", "mount")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(spec.command),
            "env": [f"{name}={text}" for name, text in spec.environment] or ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": not spec.writable_root},
        "hostname": spec.name,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64m"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro", "nosuid", "nodev"]},
        ],
        "annotations": {"org.criu.config": str(criu_conf)},
        "linux": {
            "cgroupsPath": cgroup,
            "resources": resources(spec),
            "namespaces": [*({"type": kind} for kind in kinds), {"type": "network", "path": str(netns)}],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }  # fmt: skip


class Bundle:
    """One container's bundle on one node."""

    def __init__(self, layout: NodeLayout, container: str) -> None:
        self._layout = layout
        self.container = check_name(container)
        self.folder = layout.bundle(container)
        self.rootfs = layout.rootfs(container)
        self.criu_conf = self.folder / CRIU_CONF

    def describe(self) -> ContainerSpec:
        """The spec that it was made of.

        Raises:
            NotFoundError: there is no bundle.
            InputError: it is damaged.
        """
        try:
            with (self.folder / SPEC).open("rb") as stream:
                data = stream.read(MAX_SPEC_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{self._layout.name} has no container {self.container!r}", hint="`natwork testbed status` lists them"
            ) from error
        if len(data) > MAX_SPEC_BYTES:
            raise InputError(f"{self.folder / SPEC} is too long", hint="was it written by something else?")
        return decode(ContainerSpec, data)

    @property
    def exists(self) -> bool:
        """Whether there is a bundle, which is so from the moment that its spec is written."""
        return (self.folder / SPEC).exists()

    def write(self, spec: ContainerSpec) -> None:
        """Make or change the bundle. The root file system is left as it is, but for folders to mount on.

        Raises:
            UsageError: the spec does not describe a container.
            ActionError: the disk refused.
        """
        document = config(
            spec,
            netns=NETNS / self._layout.container_netns(spec.name),
            cgroup=self._layout.cgroup(spec.name),
            criu_conf=self.criu_conf,
        )
        try:
            self.rootfs.mkdir(mode=0o755, parents=True, exist_ok=True)
            if spec.writable_root:
                self._mount_points()
            self.configure("")
            self._put(CONFIG, json.dumps(document, indent=1).encode())
            # Last: a bundle with a spec is whole.
            self._put(SPEC, encode(spec))
        except OSError as error:
            raise ActionError(f"bundle of {spec.name}: {error}", hint="is the disk full?") from error

    def configure(self, settings: str) -> None:
        """What CRIU is told at the next dump or restore, beyond what is the same for all."""
        self._put(CRIU_CONF, f"network-lock skip\ncgroup-dump-controller cpu\n{settings}".encode())

    def freeze_script(self, freezer: Path, word: str, sign: Path) -> Path:
        """A program that CRIU calls as it starts a dump (`action-script`), and that freezes the container then.

        So the container still runs while runC and CRIU start. Contents are fixed but for three paths and a word that
        consist of letters, digits and `/._-` alone. `sign` is made before the container stands still.
        """
        for part in (str(freezer), word, str(sign)):
            if not re.fullmatch(r"[A-Za-z0-9/._-]+", part):
                raise UsageError(f"path {part!r} cannot be used in a script", hint="letters, digits, / . _ - only")
        path = self.folder / FREEZE_SCRIPT
        text = (
            "#!/bin/sh\n"
            '[ "$CRTOOLS_SCRIPT_ACTION" = pre-dump ] || exit 0\n'
            f": > {sign} || exit 1\n"
            "tries=0\n"
            "while [ $tries -lt 10000 ]; do\n"
            f"  echo {word} > {freezer} || exit 1\n"
            f"  read -r state < {freezer}\n"
            f'  [ "$state" = {word} ] && exit 0\n'
            "  tries=$((tries + 1))\n"
            "done\n"
            "exit 1\n"
        )
        self._put(FREEZE_SCRIPT, text.encode(), mode=0o700)
        return path

    def remove(self) -> None:
        """Delete it with its root file system. The caller has seen to it that nothing is mounted there.

        Raises:
            ActionError: it would not go.
        """
        try:
            (self.folder / SPEC).unlink(missing_ok=True)
            if self.folder.exists():
                shutil.rmtree(self.folder)
        except OSError as error:
            raise ActionError(f"bundle of {self.container}: {error}", hint="natwork testbed down removes it") from error

    def _mount_points(self) -> None:
        for name in _FOLDERS:
            (self.rootfs / name).mkdir(mode=0o755, exist_ok=True)
        for name in _LINKS:
            if Path("/", name).is_symlink() and not os.path.lexists(self.rootfs / name):
                (self.rootfs / name).symlink_to(Path("/", name).readlink())

    def _put(self, name: str, data: bytes, *, mode: int = 0o600) -> None:
        part = self.folder / f".{name}-{secrets.token_hex(4)}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(data)
        part.replace(self.folder / name)
