"""The dynamic containerised workload: its levels of load, its root file system, its specification (D3.3 section 2.1).

A level sets what one type of resource sees. The figures are chosen so that all of them fit beside each other on one
small machine and so that the methods differ: `high` memory writes pages faster than a link of 1 Gbit/s carries them.

    spec = workload_spec("web", address="10.77.3.50/24", mac="02:00:00:00:00:01", load=IDLE)
    make_rootfs(node.rootfs("web"), volume_bytes=0, rng=random.Random(1))
"""

from __future__ import annotations

import ipaddress
import json
import random
import shutil
from pathlib import Path

from natwork_ray.adapters.ssh_way import system_python
from natwork_ray.adapters.workload import service
from natwork_ray.domain.migrations import LoadClass, LoadLevel
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.domain.values import value
from natwork_ray.errors import PreconditionError, UsageError

MIB = 2**20
IMAGE = "natwork-workload"
ECHO_PORT, HTTP_PORT = service.ECHO_PORT, service.HTTP_PORT
# What Python itself takes before the first byte of load.
BASE_MEMORY_BYTES = 20 * MIB
_PROGRAM = "srv/service.py"
_FILE_BYTES = 16 * MIB
_FOLDERS = ("data", "dev", "etc", "proc", "run", "srv", "sys", "tmp", "usr")
_LINKS = ("bin", "lib", "lib64", "sbin")


@value
class Load:
    """What a workload burns.

    Attributes:
        memory_bytes: memory that it holds, all of it written once.
        working_set_bytes: the part that it writes over and over; dirty_bytes_per_s: how fast, in distinct pages.
        cpu_cores: 0 to 1.
        storage_bytes_per_s: writes to a file of `storage_file_bytes`, over and over.
        network_bytes_per_s: datagrams sent.
    """

    memory_bytes: int = 0
    working_set_bytes: int = 0
    dirty_bytes_per_s: int = 0
    cpu_cores: float = 0.0
    storage_bytes_per_s: int = 0
    storage_file_bytes: int = 0
    network_bytes_per_s: int = 0


IDLE = Load()

# Level: (held, written over and over, distinct pages written per second).
MEMORY = {
    LoadLevel.LOW: (16 * MIB, 2 * MIB, 1 * MIB),
    LoadLevel.MEDIUM: (64 * MIB, 16 * MIB, 16 * MIB),
    LoadLevel.HIGH: (192 * MIB, 160 * MIB, 160 * MIB),
}
CPU_CORES = {LoadLevel.LOW: 0.05, LoadLevel.MEDIUM: 0.3, LoadLevel.HIGH: 0.8}
# Level: (bytes per second, size of the file).
STORAGE = {
    LoadLevel.LOW: (64 * 1024, 2 * MIB),
    LoadLevel.MEDIUM: (2 * MIB, 16 * MIB),
    LoadLevel.HIGH: (16 * MIB, 64 * MIB),
}
NETWORK_BYTES_PER_S = {LoadLevel.ZERO: 0, LoadLevel.LOW: 50_000, LoadLevel.MEDIUM: 1_000_000, LoadLevel.HIGH: 8_000_000}


def load_of(levels: LoadClass, *, memory_bytes: int | None = None) -> Load:
    """What the levels mean. `memory_bytes` overrides how much memory is held.

    Raises:
        UsageError: `zero` where only networking knows it.
    """
    for name, level in (("cpu", levels.cpu), ("memory", levels.memory), ("storage", levels.storage)):
        if level is LoadLevel.ZERO:
            raise UsageError(f"{name} = zero", hint="low, medium or high; only network knows zero")
    held, working_set, dirty = MEMORY[levels.memory]
    held = held if memory_bytes is None else memory_bytes
    storage, file_bytes = STORAGE[levels.storage]
    return Load(
        memory_bytes=held,
        working_set_bytes=min(working_set, held),
        dirty_bytes_per_s=dirty,
        cpu_cores=CPU_CORES[levels.cpu],
        storage_bytes_per_s=storage,
        storage_file_bytes=file_bytes,
        network_bytes_per_s=NETWORK_BYTES_PER_S[levels.network],
    )


def workload_spec(
    name: str, *, address: str, mac: str, load: Load, cpu_limit_cores: float = 0.0, memory_limit_bytes: float = 0.0
) -> ContainerSpec:
    """The workload as a container. Network load goes to the first address of its network, which is the bridge's.

    Raises:
        UsageError: the address is none, or a limit is below what the load needs.
    """
    try:
        network = ipaddress.IPv4Interface(address).network
    except ValueError as error:
        raise UsageError(f"address = {address!r}: {error}", hint="such as 10.77.3.50/24") from error
    needed = load.memory_bytes + BASE_MEMORY_BYTES
    if memory_limit_bytes and memory_limit_bytes < needed:
        raise UsageError(
            f"memory limit {memory_limit_bytes / MIB:.0f} MiB is below the {needed / MIB:.0f} MiB that the load holds",
            hint="raise the limit or hold less",
        )
    told = {**vars(load), "peer": str(network[1])}
    return ContainerSpec(
        name=name,
        image=IMAGE,
        address=address,
        mac=mac,
        command=(str(system_python()), "-I", "-S", f"/{_PROGRAM}", json.dumps(told)),
        environment=(("PATH", "/usr/bin:/bin"), ("PYTHONDONTWRITEBYTECODE", "1"), ("LC_ALL", "C.UTF-8")),
        cpu_limit_cores=cpu_limit_cores,
        memory_limit_bytes=memory_limit_bytes,
    )


def make_rootfs(folder: Path, *, volume_bytes: int, rng: random.Random) -> None:
    """A small writable root file system in an empty or missing folder. /usr is left empty: the runtime binds the
    machine's own over it, read-only.

    Args:
        volume_bytes: data that it starts with, below /data.

    Raises:
        PreconditionError: the machine's /lib is not a link into /usr, so that programs would miss their libraries.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o1777 if name == "tmp" else 0o755, exist_ok=True)
    for name in _LINKS:
        machines = Path("/", name)
        if machines.is_symlink():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(machines.readlink())
        elif machines.is_dir():
            raise PreconditionError(
                f"/{name} is a folder of its own on this machine", hint="the workload needs a merged /usr (usrmerge)"
            )
    (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n", encoding="ascii")
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n", encoding="ascii")
    shutil.copyfile(service.__file__, folder / _PROGRAM)
    for number, start in enumerate(range(0, volume_bytes, _FILE_BYTES)):
        with (folder / "data" / f"part-{number:04d}").open("wb") as stream:
            left = min(_FILE_BYTES, volume_bytes - start)
            while left > 0:
                block = rng.randbytes(min(left, MIB))
                stream.write(block)
                left -= len(block)
