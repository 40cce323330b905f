"""The process that holds a one-machine cluster: `agents.cluster` starts it, and ending it ends the cluster.

`ray.init` rather than `ray start --head`: it needs half the time, and leaves out the Ray Client server, which would
listen beyond loopback and which nobody here uses.
"""

from __future__ import annotations

import argparse
import signal
from functools import partialmethod
from pathlib import Path

import ray
from ray._private.parameter import RayParams

from agents.cluster import ADDRESS_FILE
from agents.naming import HOST_LABEL, NAMESPACE, NODE_LABEL


def main() -> None:
    """Start Ray, say where it listens, and wait to be ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--temp-dir", type=Path, required=True)
    parser.add_argument("--object-store-bytes", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--agent-port", type=int, required=True)
    parser.add_argument("--dashboard-port", type=int)
    parser.add_argument("--cpus", type=int)
    options = parser.parse_args()
    # `ray.init` has no option for this port, whose default two clusters on one machine would share: the second could
    # not run jobs. Private, but Ray is pinned below 2.61.
    with_port = partialmethod(RayParams.__init__, dashboard_agent_listen_port=options.agent_port)
    setattr(RayParams, "__init__", with_port)  # noqa: B010 - an assignment would need two type ignores
    # Blocked before Ray starts its threads, so that the wait below is the one that gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    ray.init(
        num_cpus=options.cpus,
        object_store_memory=options.object_store_bytes,
        labels={HOST_LABEL: "yes", NODE_LABEL: "control"},
        namespace=NAMESPACE,
        include_dashboard=options.dashboard_port is not None,
        dashboard_host="127.0.0.1",
        dashboard_port=options.dashboard_port,
        log_to_driver=False,
        _temp_dir=str(options.temp_dir),
        _metrics_export_port=options.metrics_port,
    )
    written = options.temp_dir / f".{ADDRESS_FILE}"
    written.write_text(ray.get_runtime_context().gcs_address)
    written.replace(options.temp_dir / ADDRESS_FILE)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main()
