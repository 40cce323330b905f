"""Who is told of suspect flows on a real network, by the configuration (`[sdn]`).

sdn_controller(config.sdn, now_s=time.time, addresses=lambda container: ("10.0.0.5",))
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from natwork_ray.adapters.open_vswitch import OpenVSwitch, SwitchSettings
from natwork_ray.adapters.sdn_rest import RestController, RestSettings
from natwork_ray.adapters.subprocesses import SubprocessRunner
from natwork_ray.config import SdnConfig
from natwork_ray.errors import PreconditionError
from natwork_ray.ports import SdnController

_MAX_TOKEN_BYTES = 4096


def sdn_controller(
    config: SdnConfig, *, now_s: Callable[[], float], addresses: Callable[[str], Sequence[str]] = lambda _: ()
) -> SdnController | None:
    """The configured controller; None where there is none. `addresses`: a container's IP addresses, as far as known.

    Raises:
        PreconditionError: Open vSwitch or the token's file is missing, or others may read it.
        UsageError: no usable address of a controller.
    """
    match config.kind:
        case "none":
            return None
        case "open-vswitch":
            if shutil.which("ovs-ofctl") is None or shutil.which("ovs-vsctl") is None:
                raise PreconditionError(
                    "Open vSwitch's programs are missing", hint="install Debian's package openvswitch-switch"
                )
            settings = SwitchSettings(
                database=config.database,
                management=config.management,
                rate_packets_per_s=config.rate_packets_per_s,
                mirror_port=config.mirror_port,
                timeout_s=config.timeout_s,
            )
            return OpenVSwitch(
                config.bridge, runner=SubprocessRunner(), now_s=now_s, settings=settings, addresses=addresses
            )
        case "webhook" | "onos":
            devices = tuple(name.strip() for name in config.devices.split(",") if name.strip())
            return RestController(
                config.url,
                token=read_token(config.token_file) if config.token_file else "",
                now_s=now_s,
                settings=RestSettings(dialect=config.kind, devices=devices, timeout_s=config.timeout_s),
                addresses=addresses,
            )


def read_token(path: Path) -> str:
    """The one line of a token's file.

    Raises:
        PreconditionError: it cannot be read, others may read it, or it holds no single line of plain characters.
    """
    file = path.expanduser()
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PreconditionError(f"cannot read {file}: {error.strerror}", hint="set sdn.token_file") from error
    with os.fdopen(descriptor, "rb") as stream:
        mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
        if mode & 0o077:
            raise PreconditionError(f"{file} has mode {mode:04o}: others may read it", hint=f"run: chmod 600 {file}")
        data = stream.read(_MAX_TOKEN_BYTES + 1)
    text = data.decode("ascii", errors="replace").strip()
    if not text or len(data) > _MAX_TOKEN_BYTES or not all(33 <= ord(c) <= 126 for c in text):
        raise PreconditionError(f"{file} holds no token", hint="one line of plain characters")
    return text
