"""The OCI configuration that is made of a spec, and the bundle on disk."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from natwork_ray.adapters.runc_bundle import Bundle, check_name, config, quota_us
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.domain.runtime import ContainerSpec
from natwork_ray.errors import ActionError, InputError, NotFoundError, UsageError

SPEC = ContainerSpec(
    name="web",
    image="natwork-workload",
    address="10.77.3.50/24",
    mac="02:00:00:00:00:01",
    command=("/usr/bin/python3", "-c", "pass"),
    environment=(("PATH", "/usr/bin"), ("A", "b=c")),
    cpu_limit_cores=0.5,
    memory_limit_bytes=64e6,
)


@pytest.fixture
def layout(tmp_path: Path) -> NodeLayout:
    return NodeLayout(
        testbed="nwtest", name="node-0", folder=tmp_path / "node", images=tmp_path / "images", netns="nwtest-node-0",
        address="10.77.3.2", ssh_port=2201, bridge="nwtestbr",
    )  # fmt: skip


def made(spec: ContainerSpec = SPEC) -> dict:  # type: ignore[type-arg]
    return config(spec, netns=Path("/run/netns/n"), cgroup="/nwtest/node-0/web", criu_conf=Path("/b/criu.conf"))


def test_the_network_namespace_is_external_and_the_others_are_the_containers_own() -> None:
    namespaces = {entry["type"]: entry.get("path") for entry in made()["linux"]["namespaces"]}
    assert namespaces == {"pid": None, "ipc": None, "uts": None, "mount": None, "network": "/run/netns/n"}


def test_usr_is_bound_read_only_and_without_devices() -> None:
    usr = next(mount for mount in made()["mounts"] if mount["destination"] == "/usr")
    assert usr["source"] == "/usr"
    assert {"rbind", "ro", "nosuid", "nodev"} <= set(usr["options"])


def test_criu_reads_its_settings_from_the_bundle_and_runc_the_cgroup_from_the_layout() -> None:
    assert made()["annotations"] == {"org.criu.config": "/b/criu.conf"}
    assert made()["linux"]["cgroupsPath"] == "/nwtest/node-0/web"


def test_limits_are_the_cgroups_and_zero_is_none() -> None:
    assert made()["linux"]["resources"]["cpu"] == {"period": 100_000, "quota": 50_000}
    assert made()["linux"]["resources"]["memory"] == {"limit": 64_000_000}
    unlimited = made(replace(SPEC, cpu_limit_cores=0.0, memory_limit_bytes=0.0))["linux"]["resources"]
    assert set(unlimited) == {"devices"}
    assert (quota_us(0.0), quota_us(1e-6), quota_us(2.0)) == (-1, 1000, 200_000)


def test_the_container_cannot_gain_rights_or_write_to_the_kernel() -> None:
    document = made()
    assert document["process"]["noNewPrivileges"]
    assert not {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_MKNOD"} & set(
        document["process"]["capabilities"]["bounding"]
    )
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(document["linux"]["readonlyPaths"])
    assert document["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]


def test_environment_and_root_follow_the_spec() -> None:
    assert made()["process"]["env"] == ["PATH=/usr/bin", "A=b=c"]
    assert made(replace(SPEC, environment=()))["process"]["env"] == ["PATH=/usr/bin:/bin"]
    assert made()["root"] == {"path": "rootfs", "readonly": False}
    assert made(replace(SPEC, writable_root=False))["root"]["readonly"]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "../x", "a..b", "x" * 64, "a\n", "ü"])
def test_a_name_that_would_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="container name"):
        check_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"command": ()},
        {"command": ("",)},
        {"command": ("a", "b\0c")},
        {"environment": (("A=B", "c"),)},
        {"environment": (("A", "x\0y"),)},
        {"cpu_limit_cores": -1.0},
        {"memory_limit_bytes": float("inf")},
    ],
)
def test_a_spec_that_is_no_container_is_refused(change: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError):
        made(replace(SPEC, **change))


def test_a_bundle_holds_what_another_node_has_to_know(layout: NodeLayout) -> None:
    bundle = Bundle(layout, "web")
    assert not bundle.exists
    with pytest.raises(NotFoundError, match="no container 'web'"):
        bundle.describe()
    bundle.write(SPEC)
    assert bundle.exists
    assert bundle.describe() == SPEC
    document = json.loads((bundle.folder / "config.json").read_bytes())
    assert document["linux"]["namespaces"][-1]["path"].endswith("/nwtest-node-0-web")
    assert (bundle.rootfs / "usr").is_dir()
    assert "network-lock skip" in bundle.criu_conf.read_text()
    bundle.write(replace(SPEC, cpu_limit_cores=2.0))
    assert bundle.describe().cpu_limit_cores == 2.0
    bundle.remove()
    assert not bundle.folder.exists()
    bundle.remove()


def test_links_of_the_root_file_system_are_those_of_the_machine_and_stay_as_they_are(layout: NodeLayout) -> None:
    bundle = Bundle(layout, "web")
    bundle.rootfs.mkdir(parents=True)
    (bundle.rootfs / "lib").symlink_to("elsewhere")
    bundle.write(SPEC)
    assert str((bundle.rootfs / "lib").readlink()) == "elsewhere"
    for name in ("bin", "lib64"):
        if Path("/", name).is_symlink():
            assert (bundle.rootfs / name).readlink() == Path("/", name).readlink()


def test_a_damaged_or_endless_spec_is_refused(layout: NodeLayout) -> None:
    bundle = Bundle(layout, "web")
    bundle.write(SPEC)
    (bundle.folder / "spec.json").write_bytes(b"{")
    with pytest.raises(InputError):
        bundle.describe()
    (bundle.folder / "spec.json").write_bytes(b" " * 300_000)
    with pytest.raises(InputError, match="too long"):
        bundle.describe()


def test_a_disk_that_refuses_is_told(layout: NodeLayout) -> None:
    layout.folder.parent.mkdir(exist_ok=True)
    layout.folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(ActionError, match="bundle of web"):
        Bundle(layout, "web").write(SPEC)


def test_the_freeze_script_freezes_at_the_beginning_of_a_dump_only(layout: NodeLayout, tmp_path: Path) -> None:
    bundle = Bundle(layout, "web")
    bundle.write(SPEC)
    freezer, sign = tmp_path / "freezer.state", tmp_path / "stood"
    freezer.write_text("THAWED\n")
    script = bundle.freeze_script(freezer, "FROZEN", sign)
    subprocess.run([str(script)], env={"CRTOOLS_SCRIPT_ACTION": "post-dump"}, check=True)
    assert freezer.read_text() == "THAWED\n"
    assert not sign.exists()
    subprocess.run([str(script)], env={"CRTOOLS_SCRIPT_ACTION": "pre-dump"}, check=True)
    assert freezer.read_text() == "FROZEN\n"
    assert sign.exists()


def test_a_path_that_a_shell_would_read_otherwise_is_refused(layout: NodeLayout, tmp_path: Path) -> None:
    bundle = Bundle(layout, "web")
    bundle.write(SPEC)
    with pytest.raises(UsageError, match="script"):
        bundle.freeze_script(tmp_path / "a;b", "FROZEN", tmp_path / "s")
