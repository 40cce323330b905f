"""The nodes' SSH: keys made per testbed, host keys pinned on every node, one sshd per namespace (D3.3 section 2.1).

Rules kept: Ed25519 only, no passwords, no `StrictHostKeyChecking=no`; a node trusts the other nodes' client keys, from
the testbed's network only, for commands and for forwards that listen on loopback; each sshd listens on its node's
address alone. AES-128-GCM is the only cipher: where the processor has instructions for it, it is the fastest that
authenticates.

`StrictModes` is off, since it looks at every folder above the keys, which a temporary folder of the machine fails; the
testbed's own folder has mode 0700 and belongs to root, which says the same. The sessions' home is the node's own
folder: root's start-up files would run before every command, and cost more time than the transfer of a small
checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from natwork_ray.adapters import arrival
from natwork_ray.adapters.machine import Machine
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_network import NETNS, checked
from natwork_ray.adapters.testbed_requirements import Toolchain
from natwork_ray.adapters.testbed_state import OwnProcess, identify
from natwork_ray.errors import ActionError, NotFoundError, PreconditionError

HOST_KEY, CLIENT_KEY, KNOWN_HOSTS, AUTHORIZED = "host_ed25519", "client_ed25519", "known_hosts", "authorized_keys"
SERVER_CONFIG, CLIENT_CONFIG, PID, LOG = "sshd_config", "ssh_config", "sshd.pid", "sshd.log"
ARRIVAL = "arrival.py"  # the program at the far end of a way, as every node has it
MARKER = "NATWORK_TESTBED"
_START_S = 10.0
# sun_path has 108 bytes; ssh first binds the name with 17 more and then renames it. Ours is ctl-NODE-HEX.
MAX_SSH_FOLDER = 108 - 17 - 1 - 24

_SERVER = """\
Port {port}
ListenAddress {address}
AddressFamily inet
HostKey "{ssh}/host_ed25519"
AuthorizedKeysFile "{ssh}/authorized_keys"
PidFile "{ssh}/sshd.pid"
AllowUsers root
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
StrictModes no
HostKeyAlgorithms ssh-ed25519
PubkeyAcceptedAlgorithms ssh-ed25519
KexAlgorithms curve25519-sha256
Ciphers aes128-gcm@openssh.com
Compression no
UseDNS no
AllowTcpForwarding remote
GatewayPorts no
AllowAgentForwarding no
AllowStreamLocalForwarding no
X11Forwarding no
PermitTTY no
PermitTunnel no
PermitUserRC no
PrintMotd no
PrintLastLog no
MaxSessions 64
ClientAliveInterval 5
ClientAliveCountMax 3
LogLevel VERBOSE
SetEnv {marker}={testbed} "HOME={ssh}"
"""

_CLIENT = """\
Host *
    User root
    Port {port}
    BatchMode yes
    IdentityFile "{ssh}/client_ed25519"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "{ssh}/known_hosts"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    PreferredAuthentications publickey
    HostKeyAlgorithms ssh-ed25519
    KexAlgorithms curve25519-sha256
    Ciphers aes128-gcm@openssh.com
    Compression no
    ForwardAgent no
    ForwardX11 no
    PermitLocalCommand no
    ControlPersist no
    ConnectTimeout 5
    ServerAliveInterval 2
    ServerAliveCountMax 3
    ExitOnForwardFailure yes
    IPQoS throughput
    LogLevel ERROR
"""


def environment(testbed: str) -> dict[str, str]:
    """The environment of everything that is started for a testbed: `down` knows its own by the marker."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    return {"PATH": path, "LC_ALL": "C", MARKER: testbed}


def _secret(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
        stream.write(data)


def _make_pair(path: Path) -> str:
    """Write a private key; the public one as one line of OpenSSH's."""
    key = Ed25519PrivateKey.generate()
    form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    _secret(path, key.private_bytes(serialization.Encoding.PEM, form, plain))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode("ascii")


def make_keys(layouts: Sequence[NodeLayout], *, network: str, pam: bool) -> None:
    """Keys, pinned host keys and configuration of all nodes; their `ssh` folders exist and are empty.

    Raises:
        PreconditionError: the folder's path is too long for a socket, or holds a quotation mark.
    """
    for layout in layouts:
        if len(os.fsencode(layout.ssh)) > MAX_SSH_FOLDER or '"' in str(layout.ssh) or "%" in str(layout.ssh):
            raise PreconditionError(
                f"{layout.ssh} cannot hold SSH's sockets",
                hint=f"at most {MAX_SSH_FOLDER} bytes, without quotation or percent marks: --set state_dir=SHORTER",
            )
    hosts = {layout.name: _make_pair(layout.ssh / HOST_KEY) for layout in layouts}
    clients = {layout.name: _make_pair(layout.ssh / CLIENT_KEY) for layout in layouts}
    for layout in layouts:
        others = [other for other in layouts if other.name != layout.name]
        pins = "".join(f"[{o.address}]:{o.ssh_port} {hosts[o.name]}\n" for o in others)
        rights = f'restrict,port-forwarding,permitlisten="localhost:*",permitlisten="127.0.0.1:*",from="{network}"'
        allowed = "".join(f"{rights} {clients[other.name]} {other.name}\n" for other in others)
        server = _SERVER.format(
            port=layout.ssh_port, address=layout.address, ssh=layout.ssh, pam="yes" if pam else "no",
            marker=MARKER, testbed=layout.testbed,
        )  # fmt: skip
        client = _CLIENT.format(port=layout.ssh_port, ssh=layout.ssh)
        for name, text in (
            (KNOWN_HOSTS, pins),
            (AUTHORIZED, allowed),
            (SERVER_CONFIG, server),
            (CLIENT_CONFIG, client),
        ):
            _secret(layout.ssh / name, text.encode())
        _secret(layout.ssh / ARRIVAL, Path(arrival.__file__).read_bytes())


def root_is_locked(shadow: Path = Path("/etc/shadow")) -> bool:
    """Whether root's password is locked: sshd then lets nobody in by key unless PAM decides."""
    try:
        lines = shadow.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith("root:!") for line in lines)


def start_sshd(machine: Machine, tools: Toolchain, layout: NodeLayout, *, env: Mapping[str, str]) -> OwnProcess:
    """Start the node's sshd in its namespace, and wait until it listens. It becomes a daemon: nobody has to reap it.

    Raises:
        ActionError: it ended, or does not listen; the message holds the last line of its log.
    """
    enter = [str(tools.nsenter), f"--net={NETNS / layout.netns}", "--", "/usr/bin/env", "-i"]
    pairs = [f"{name}={text}" for name, text in env.items()]
    (layout.ssh / PID).unlink(missing_ok=True)
    config = ["-f", str(layout.ssh / SERVER_CONFIG), "-E", str(layout.ssh / LOG)]
    checked(machine, [*enter, *pairs, str(tools.sshd), *config])
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        pid = _read_pid(layout.ssh / PID)  # written once it listens
        if pid:
            try:
                return identify(pid, f"sshd of {layout.name}")
            except NotFoundError:
                break
        time.sleep(0.005)
    log = layout.ssh / LOG
    last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
    raise ActionError(f"sshd of {layout.name} does not listen: {last[0] if last else 'no log'}", hint="natwork doctor")


def _read_pid(path: Path) -> int:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() else 0
