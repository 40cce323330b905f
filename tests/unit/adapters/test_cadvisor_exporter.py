"""The exporter: cgroup files of both versions, processes, and cAdvisor's names; absent is absent."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from natwork_ray.adapters import cadvisor_processes
from natwork_ray.adapters.cadvisor_cgroup import read_cgroup
from natwork_ray.adapters.cadvisor_exporter import ContainerExporter, Exported, serving
from natwork_ray.adapters.cadvisor_processes import family_of, first_of, interfaces, look, own_network
from natwork_ray.adapters.cadvisor_testbed import exported_of
from natwork_ray.adapters.container_cgroup import ContainerCgroup
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.errors import NotFoundError, PreconditionError, UsageError

V2 = {
    "cgroup.procs": "",
    "cpu.stat": "usage_usec 12500000\nuser_usec 10000000\nsystem_usec 2500000\n"
    "nr_periods 100\nnr_throttled 7\nthrottled_usec 1500000\n",
    "cpu.max": "50000 100000\n",
    "memory.current": "10000000\n",
    "memory.peak": "20000000\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.stat": "anon 6000000\nfile 3000000\nfile_mapped 1000\ninactive_file 2500000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
    "pids.max": "512\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n259:1 rbytes=1 wbytes=1 rios=1 wios=1\n",
}
V1 = {
    "cpuacct/cpuacct.usage": "12500000000\n",
    "cpuacct/cpuacct.stat": "user 1000\nsystem 250\n",
    "cpu/cpu.stat": "nr_periods 100\nnr_throttled 7\nthrottled_time 1500000000\n",
    "cpu/cpu.cfs_quota_us": "-1\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "memory/memory.usage_in_bytes": "10000000\n",
    "memory/memory.max_usage_in_bytes": "20000000\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "memory/memory.stat": "rss 1\ntotal_rss 6000000\ntotal_cache 3000000\ntotal_mapped_file 1000\n"
    "total_inactive_file 2500000\ntotal_swap 0\n",
    "pids/pids.max": "max\n",
    "pids/cgroup.procs": "",
    "blkio/blkio.throttle.io_service_bytes": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\nTotal 12288\n",
    "blkio/blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
}


def version_2(root: Path, files: Mapping[str, str] = V2, pids: Iterable[int] = ()) -> Path:
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory io pids\n")
    _write(root / "a" / "web", {**files, "cgroup.procs": "".join(f"{pid}\n" for pid in pids)})
    return root


def version_1(root: Path, files: Mapping[str, str] = V1) -> Path:
    for name, text in files.items():
        controller, _, file = name.partition("/")
        _write(root / controller / "a" / "web", {file: text})
    return root


def _write(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def scrape(exporter: ContainerExporter) -> dict[str, dict[tuple[str, ...], float]]:
    """Value by name and (container, device or interface or node)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(exporter)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            more = [sample.labels[k] for k in ("device", "interface", "node") if sample.labels.get(k)]
            found.setdefault(sample.name, {})[(sample.labels.get("container", ""), *more)] = sample.value
    return found


@pytest.mark.parametrize("version", [version_1, version_2])
def test_both_versions_say_the_same(tmp_path: Path, version: object) -> None:
    root = (version_1 if version is version_1 else version_2)(tmp_path / "cgroup")
    counts = read_cgroup(ContainerCgroup("/a/web", root))
    assert counts is not None
    assert (counts.cpu_s, counts.cpu_user_s, counts.cpu_system_s) == pytest.approx((12.5, 10.0, 2.5))
    assert (counts.periods, counts.throttled_periods, counts.throttled_s) == (100, 7, pytest.approx(1.5))
    assert (counts.memory_usage_bytes, counts.memory_max_usage_bytes) == (10e6, 20e6)
    assert (counts.memory_rss_bytes, counts.memory_cache_bytes, counts.memory_working_set_bytes) == (6e6, 3e6, 7.5e6)
    assert (counts.memory_limit_bytes, counts.memory_failures, counts.oom_kills) == (None, 3, 1)
    assert counts.disks is not None
    first = counts.disks[0]
    assert (first.device, first.read_bytes, first.written_bytes, first.reads, first.writes) == ("8:0", 4096, 8192, 1, 2)
    assert counts.period_us == 100_000


def test_a_quota_and_none(tmp_path: Path) -> None:
    two, one = version_2(tmp_path / "2"), version_1(tmp_path / "1")
    limited, unlimited = read_cgroup(ContainerCgroup("/a/web", two)), read_cgroup(ContainerCgroup("/a/web", one))
    assert limited is not None
    assert unlimited is not None
    assert (limited.quota_us, limited.processes_limit) == (50_000, 512)
    assert (unlimited.quota_us, unlimited.processes_limit) == (None, None)


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_not_counted_is_none(tmp_path: Path, version: int) -> None:
    if version == 1:
        root = version_1(
            tmp_path / "c", {"cpuacct/cpuacct.usage": "not a number\n", "memory/memory.stat": "\xff rss\n"}
        )
    else:
        root = version_2(tmp_path / "c", {"cpu.stat": "usage_usec -\nx\n"})
    counts = read_cgroup(ContainerCgroup("/a/web", root))
    assert counts is not None
    assert all(number is None for number in vars(counts).values())
    assert read_cgroup(ContainerCgroup("/a/gone", root)) is None


def test_disks_that_were_not_used_are_zero(tmp_path: Path) -> None:
    root = version_2(tmp_path / "c", {**V2, "io.stat": ""})
    told = scrape(ContainerExporter(lambda: [Exported(name="web", cgroup="/a/web")], root=root))
    assert told["container_fs_reads_bytes_total"] == {("web",): 0}
    root = version_1(tmp_path / "d", {k: v for k, v in V1.items() if not k.startswith("blkio")})
    told = scrape(ContainerExporter(lambda: [Exported(name="web", cgroup="/a/web")], root=root))
    assert "container_fs_reads_bytes_total" not in told


def test_a_cgroup_in_cadvisors_names(tmp_path: Path) -> None:
    root = version_2(tmp_path / "cgroup", pids=[os.getpid()])
    what = Exported(name="web", cgroup="/a/web", node="edge-1", namespace="shop", pod="web-1", service="front")
    told = scrape(ContainerExporter(lambda: [what], nodes=["edge-2"], root=root))
    assert told["container_cpu_usage_seconds_total"] == {("web", "edge-1"): 12.5}
    assert told["container_fs_reads_bytes_total"] == {("web", "8:0", "edge-1"): 4096, ("web", "259:1", "edge-1"): 1}
    assert told["container_spec_cpu_quota"] == {("web", "edge-1"): 50_000}
    assert "container_spec_memory_limit_bytes" not in told
    assert told["container_oom_events_total"] == {("web", "edge-1"): 1}
    assert told["container_processes"] == {("web", "edge-1"): 1}
    assert told["container_start_time_seconds"][("web", "edge-1")] == pytest.approx(
        psutil.Process().create_time(), abs=1
    )
    assert told["natwork_container_virtual_memory_bytes"][("web", "edge-1")] > 1e6
    assert set(told["machine_cpu_cores"]) == {("", "edge-1"), ("", "edge-2")}
    assert told["container_scrape_error"] == {("",): 0}
    # A process on the machine's network: its traffic cannot be told from everybody's.
    assert "container_network_receive_bytes_total" not in told


def test_a_process_in_cadvisors_names() -> None:
    told = scrape(ContainerExporter(lambda: [Exported(name="me", pid=os.getpid())]))
    times = psutil.Process().cpu_times()
    spent = times.user + times.system + times.children_user + times.children_system
    assert told["container_cpu_usage_seconds_total"][("me",)] == pytest.approx(spent, abs=0.5)
    assert told["container_memory_rss"][("me",)] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert told["container_file_descriptors"][("me",)] >= 3
    assert "container_spec_cpu_quota" not in told
    assert ("me",) in told["container_fs_writes_bytes_total"]
    assert "container_fs_writes_total" not in told


def test_what_has_ended_is_absent(tmp_path: Path) -> None:
    root = version_2(tmp_path / "cgroup")
    gone = [Exported(name="a", cgroup="/a/gone"), Exported(name="b", pid=2**30)]
    told = scrape(ContainerExporter(lambda: gone, root=root))
    assert set(told) == {"machine_cpu_cores", "machine_memory_bytes", "container_scrape_error"}
    assert told["container_scrape_error"] == {("",): 0}


def test_a_container_that_cannot_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[Exported]:
        raise NotFoundError("the testbed is gone", hint="h")

    assert scrape(ContainerExporter(fail))["container_scrape_error"] == {("",): 1}

    def refuse(self: object) -> tuple[int, ...]:
        raise PermissionError("no")

    monkeypatch.setattr(ContainerCgroup, "members", refuse)
    root = version_2(tmp_path / "cgroup")
    both = [Exported(name="web", cgroup="/a/web"), Exported(name="me", pid=os.getpid())]
    told = scrape(ContainerExporter(lambda: both, root=root))
    assert told["container_scrape_error"] == {("",): 1}
    assert ("me",) in told["container_memory_rss"]


@pytest.mark.parametrize("more", [{}, {"cgroup": "/x", "pid": 1}])
def test_a_cgroup_or_a_process(more: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Exported(name="x", **more)  # type: ignore[arg-type]


def test_scrapes_are_answered_until_left() -> None:
    with serving(ContainerExporter(list), host="127.0.0.1", port=0) as (host, port):
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
            assert b"machine_cpu_cores" in answer.read()
        with (
            pytest.raises(PreconditionError, match="cannot listen"),
            serving(ContainerExporter(list), host="127.0.0.1", port=port),
        ):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5)


def test_processes_that_are_gone() -> None:
    assert family_of(2**30) == ()
    assert look([2**30]) is None
    assert first_of([2**30]) is None
    assert interfaces(2**30) == ()
    assert not own_network(2**30)
    assert not own_network(os.getpid())


def test_interfaces_of_a_network_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(
        tmp_path / "7" / "net",
        {
            "dev": "Inter-| Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n"
            "  eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n  odd: x\n"
        },
    )
    monkeypatch.setattr(cadvisor_processes, "PROC", tmp_path)
    (eth,) = interfaces(7)
    assert (eth.interface, eth.rx_bytes, eth.rx_packets, eth.rx_errors, eth.rx_dropped) == ("eth0", 100, 2, 3, 4)
    assert (eth.tx_bytes, eth.tx_packets, eth.tx_errors, eth.tx_dropped) == (200, 5, 6, 7)


def test_sums_need_all_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> object:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "io_counters", refuse)
    counts = look([os.getpid()])
    assert counts is not None
    assert counts.read_bytes is None
    told = scrape(ContainerExporter(lambda: [Exported(name="me", pid=os.getpid())]))
    assert "container_fs_reads_bytes_total" not in told


def test_containers_of_a_testbed(tmp_path: Path) -> None:
    layout = NodeLayout(
        testbed="nwtest", name="node-0", folder=tmp_path, images=tmp_path, netns="n", address="10.0.0.1", ssh_port=22,
        bridge="b",
    )  # fmt: skip
    assert exported_of([layout]) == ()
    from natwork_ray.adapters.workload import Load, workload_spec
    from natwork_ray.domain.values import encode

    spec = workload_spec("web", address="10.0.0.9/24", mac="02:00:00:00:00:01", load=Load())
    _write(layout.bundle("web"), {"spec.json": encode(spec).decode()})
    assert exported_of([layout]) == (Exported(name="web", cgroup="/nwtest/node-0/web", node="node-0", service="web"),)
