"""Shared by all tests: where the public data are, one thread per process, one Ray cluster and one real testbed for
those who need them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before numpy and torch are imported anywhere: more threads than cores cost a factor of ten.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Before Ray is imported anywhere: it reads these once.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from agents import haproxy  # noqa: E402 - imports no Ray

os.environ.update(haproxy.environment())

import psutil  # noqa: E402 - after the settings above
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# The same examples every time and no deadlines: a slow machine is no failure. To look for new ones:
# HYPOTHESIS_PROFILE=random pytest tests/unit --hypothesis-seed=random
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("random", deadline=None, derandomize=False, max_examples=200)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets; tests that need it are skipped, and say so, where it is absent."""
    named = os.environ.get("NATWORK_DATA_DIR")
    if not named:
        pytest.skip("NATWORK_DATA_DIR is not set: the public data sets are not here")
    path = Path(named)
    if not path.is_dir():
        pytest.fail(f"NATWORK_DATA_DIR names {path}, which is not a folder")
    return path


PINNED = "edge-2"  # the one node of smart-city that has a machine of its own in the test cluster


@dataclass(frozen=True)
class RayCluster:
    """A cluster of three machines in one: the emulation's host, the machine of PINNED, and one that nothing names."""

    state_dir: Path
    raylets: dict[str, int]  # process id of each machine's raylet, by its label natwork/node
    http: Any  # HttpConfig with a free port
    config: Any  # what the replicas of Serve read

    def child_of(self, pid: int) -> str:
        """On which machine a worker process runs."""
        ancestors = {process.pid for process in psutil.Process(pid).parents()}
        (name,) = [name for name, raylet in self.raylets.items() if raylet in ancestors]
        return name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """One cluster per pytest process. Tests keep apart by namespaces; nothing of it is left running."""
    import ray
    from ray.cluster_utils import Cluster

    from agents.naming import HOST_LABEL, NAMESPACE, NODE_LABEL
    from natwork_ray.config import HttpConfig, load_config, to_toml

    state_dir = tmp_path_factory.mktemp("ray") / "state"
    state_dir.mkdir(mode=0o700)
    http = HttpConfig(port=free_port())
    config = load_config(environ={}).model_copy(update={"state_dir": state_dir, "http": http})
    settled = state_dir / "natwork.toml"
    settled.write_text(to_toml(config), encoding="utf-8")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    store = 100 * 2**20
    with pytest.MonkeyPatch.context() as patch:
        # Inherited by all processes of the cluster, and by none of the tests.
        patch.setenv("NATWORK_CONFIG", str(settled))
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        short = Path(tempfile.mkdtemp(prefix="nwt-"))  # HAProxy's sockets lie there
        for name, text in haproxy.head_environment(short, (free_port(), free_port())).items():
            patch.setenv(name, text)
        head = {"labels": {HOST_LABEL: "yes", NODE_LABEL: "control"}, "num_cpus": 2, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": store})
        nodes: dict[str, Any] = {"control": cluster.head_node}
        for name in (PINNED, "unnamed"):
            labels = {NODE_LABEL: name} if name == PINNED else {}
            nodes[name] = cluster.add_node(num_cpus=1, labels=labels, object_store_memory=store)
    raylets = {name: node.all_processes["raylet"][0].process.pid for name, node in nodes.items()}
    ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield RayCluster(state_dir, raylets, http, config)
    finally:
        ours = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        with contextlib.suppress(RuntimeError):
            from ray import serve

            serve.shutdown()
        ray.shutdown()  # type: ignore[no-untyped-call]
        cluster.shutdown()  # type: ignore[no-untyped-call]
        shutil.rmtree(short)
        _, alive = psutil.wait_procs(ours, timeout=15)
        for process in alive:
            process.kill()
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE], "the cluster left processes behind"


@pytest.fixture
def namespace(ray_cluster: RayCluster) -> Iterator[str]:
    """A namespace of the test's own; its actors end with the test."""
    import ray
    from ray.util import list_named_actors

    name = f"test-{secrets.token_hex(4)}"
    yield name
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == name:
            ray.kill(ray.get_actor(actor["name"], namespace=name), no_restart=True)


@pytest.fixture(scope="session")
def anomaly_app(ray_cluster: RayCluster) -> str:
    """The anomaly model on Serve with two replicas, and the gateway beside it; the base URL."""
    from serve_apps.deploy import deploy, make_token

    make_token(ray_cluster.state_dir)
    return deploy(ray_cluster.http, replicas=2)


# A real testbed: root, namespaces, sshd, runC and CRIU.


@dataclass(frozen=True)
class RealTestbed:
    """A testbed of three nodes, and what made it."""

    state_dir: Path
    record: Any  # TestbedRecord
    tools: Any  # Toolchain


@pytest.fixture(scope="session")
def tools() -> Any:
    """The machine's programs; the reason for skipping where real migration is not possible.

    In the pipeline (CI=1), as root, everything was installed before: what is missing then is a failure.
    """
    from natwork_ray.adapters.testbed_requirements import require
    from natwork_ray.errors import PreconditionError

    try:
        return require()
    except PreconditionError as error:
        if os.geteuid() == 0 and os.environ.get("CI") == "1":
            pytest.fail(f"the pipeline has no real testbed: {error}")
        pytest.skip(str(error))


def _ended(folder: Path) -> None:
    """Take the testbed down and delete the folder, which has to be empty then. Nothing is ever deleted recursively: a
    container's bind mount that was left would lead to the machine's own /usr.
    """
    from natwork_ray.adapters import testbed as testbeds

    testbeds.down(folder)
    folder.rmdir()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state directory of the test's own, with a name that is short enough for SSH's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="nwt-"))
    yield folder
    _ended(folder)


@pytest.fixture(scope="session")
def testbed(tools: Any) -> Iterator[RealTestbed]:
    """One testbed for all tests of a session; nothing of it may be left."""
    from natwork_ray.adapters import testbed as testbeds

    rng = random.Random()
    folder = Path(tempfile.mkdtemp(prefix="nwt-"))
    record = testbeds.plan(folder, nodes=3, tools=tools, rng=rng, now_s=time.time())
    try:
        yield RealTestbed(folder, testbeds.up(record, tools=tools, rng=rng), tools)
    finally:
        _ended(folder)
    assert testbeds.traces(record) == ()


# A real Open vSwitch: root, and Debian's openvswitch-switch. Its userspace datapath needs no kernel module.


@dataclass(frozen=True)
class RealSwitch:
    """A switch of the test's own: its folder, its bridge, and how its programs reach it."""

    folder: Path
    bridge: str

    @property
    def database(self) -> str:
        return f"unix:{self.folder}/db.sock"

    @property
    def management(self) -> str:
        return f"unix:{self.folder}/{self.bridge}.mgmt"

    def vsctl(self, *words: str) -> str:
        return _said("ovs-vsctl", f"--db={self.database}", "--timeout=10", *words)

    def ofctl(self, verb: str, *words: str) -> str:
        return _said("ovs-ofctl", "-O", "OpenFlow13", verb, self.management, *words)


def _said(*argv: str, folder: Path | None = None) -> str:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    if folder is not None:
        env["OVS_RUNDIR"] = str(folder)  # where a switch puts the sockets of its bridges
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def open_vswitch() -> Iterator[RealSwitch]:
    """One bridge in userspace, with its own database, sockets and processes; nothing of it is left."""
    missing = [name for name in ("ovsdb-server", "ovs-vswitchd", "ovs-ofctl") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        if os.geteuid() == 0 and os.environ.get("CI") == "1":
            pytest.fail(f"the pipeline has no Open vSwitch: {missing} missing")
        pytest.skip("Open vSwitch needs root and Debian's openvswitch-switch")
    folder = Path(tempfile.mkdtemp(prefix="nwo-"))
    switch = RealSwitch(folder, f"nwb{secrets.token_hex(3)}")
    daemons: list[str] = []
    own = ("--detach", "--no-chdir")

    def start(name: str, *words: str) -> None:
        control = f"{folder}/{name}.ctl"
        logs = (f"--log-file={folder}/{name}.log", "-vconsole:off", f"--pidfile={folder}/{name}.pid")
        _said(name, *words, f"--unixctl={control}", *logs, *own, folder=folder)
        daemons.append(control)

    try:
        _said("ovsdb-tool", "create", f"{folder}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
        start("ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{folder}/db.sock")
        switch.vsctl("--no-wait", "init")
        start("ovs-vswitchd", switch.database)
        switch.vsctl("add-br", switch.bridge, "--", "set", "bridge", switch.bridge, "datapath_type=netdev")
        switch.vsctl("set", "bridge", switch.bridge, "protocols=OpenFlow10,OpenFlow13,OpenFlow14")
        yield switch
    finally:
        for control in reversed(daemons):
            _said("ovs-appctl", "-t", control, "exit", *(["--cleanup"] if "vswitchd" in control else []))
        pids = [Path(folder / f"{name}.pid") for name in ("ovs-vswitchd", "ovsdb-server")]
        deadline = time.monotonic() + 10
        while any(path.exists() for path in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(folder)
    assert not any(path.exists() for path in pids)
