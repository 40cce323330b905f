"""`natwork mitigations`: the table, the objects, and what --apply asks of a cluster."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from natwork_ray.adapters.kubernetes_objects import Workload
from natwork_ray.domain.actions import ActionOutcome, Instruction, SetLimits
from natwork_ray.domain.topology import Container
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ExitCode, NotFoundError

RENDER = ("mitigations", "render", "--anomaly", "high_cpu", "--action", "vertical_cpu", "--container", "web")


class Cluster:
    """A cluster that remembers what it was told."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.told: list[Instruction] = []

    async def workload(self, name: str) -> Workload:
        if name != "web":
            raise NotFoundError(f"there is no Deployment {name!r}", hint="there are: web")
        container = Container(
            name="web", service="web", network_service="shop", slice="s", node="edge-1", replicas=2,
            cpu_limit_cores=0.2, memory_limit_bytes=2.0**28,
        )  # fmt: skip
        return replace(Workload.of(container, self.config.namespace), pods=("web-0", "web-1"))

    async def carry_out(self, instruction: Instruction) -> ActionOutcome:
        self.told.append(instruction)
        return ActionOutcome(
            key=instruction.key, done=True, started_at_s=0.0, finished_at_s=1.0, downtime_s=0.0, backend=Backend.REAL,
            detail="web: limits resized in place",
        )  # fmt: skip


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    made: list[Cluster] = []

    def connect(config: Any, *, now_s: Any) -> Cluster:
        made.append(Cluster(config))
        return made[-1]

    monkeypatch.setattr("natwork_ray.cli.mitigations.kubernetes_cluster", connect)
    return made


def test_the_table_is_whole(natwork: Any) -> None:
    rows = json.loads(natwork("mitigations", "list", "--json").out)["mitigations"]
    assert len(rows) == 15
    found = {(row["anomaly"], row["action"]): row for row in rows}
    assert found["network_latency", "mesh_retry"]["objects"] == ["VirtualService", "DestinationRule"]
    assert found["network_latency", "topology_move"]["objects"] == ["Deployment patch"]
    assert found["unknown", "notify"] | {"effect": ""} == {
        "anomaly": "unknown", "action": "notify", "table_4": "", "effect": "", "objects": [], "needs": ["a person"],
    }  # fmt: skip
    of_table = [row["anomaly"] for row in rows if row["table_4"]]
    assert all(of_table.count(anomaly) == 2 for anomaly in set(of_table))
    lines = list(csv.DictReader(io.StringIO(natwork("mitigations", "list", "-o", "csv").out)))
    assert lines[0]["objects"] == "VerticalPodAutoscaler, Deployment patch"


def test_objects_as_yaml_and_json(natwork: Any) -> None:
    told = natwork(*RENDER, "--key", "k/0", "--cpu-limit", "2", "--validate")
    first, second = yaml.safe_load_all(told.out)
    assert (first["kind"], second["kind"]) == ("VerticalPodAutoscaler", "Deployment")
    assert second["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "3"}
    assert "2 object(s) valid against the schemas of Kubernetes 1.30 and" in told.err
    assert "needs the Vertical Pod Autoscaler" in told.err
    document = json.loads(natwork(*RENDER, "--key", "k/0", "--cpu-limit", "2", "-o", "json").out)
    assert document == {"apiVersion": "v1", "kind": "List", "items": [first, second]}
    mesh = ("mitigations", "render", "--anomaly", "network_latency", "--action", "mesh_retry", "--container", "upf")
    assert "valid against reduced schemas of their CRDs" in natwork(*mesh, "--validate").err


def test_rights(natwork: Any) -> None:
    documents = list(yaml.safe_load_all(natwork("mitigations", "rbac", "--namespace", "shop").out))
    assert [d["kind"] for d in documents] == [
        "ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "PriorityClass",
    ]  # fmt: skip
    assert documents[1]["metadata"]["namespace"] == "shop"


def test_a_container_is_looked_up_in_the_cluster(natwork: Any, clusters: list[Cluster]) -> None:
    documents = list(yaml.safe_load_all(natwork(*RENDER, "--cluster").out))
    assert [d["metadata"]["name"] for d in documents] == ["natwork-ray-web", "web-0", "web-1"]
    assert documents[1]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "300m"}
    absent = [*RENDER[:-1], "nobody", "--cluster"]
    assert natwork(*absent).code == ExitCode.FAILED


def test_nothing_is_applied_unasked(natwork: Any, clusters: list[Cluster]) -> None:
    told = natwork(*RENDER, "--apply")
    assert told.code == ExitCode.REFUSED
    assert "apply VerticalPodAutoscaler natwork-ray-web" in told.err
    assert not any(cluster.told for cluster in clusters)


@pytest.mark.parametrize(("options", "dry"), [(("--yes",), "none"), (("--dry-run", "server"), "server")])
def test_applying(natwork: Any, clusters: list[Cluster], options: tuple[str, ...], dry: str) -> None:
    told = natwork(*RENDER, "--apply", *options, "--key", "k/0", "-o", "json")
    assert json.loads(told.out) == {
        "key": "k/0",
        "done": True,
        "downtime_s": 0.0,
        "detail": "web: limits resized in place",
    }
    assert clusters[-1].told == [SetLimits(key="k/0", container="web", cpu_limit_cores=0.3)]
    assert clusters[-1].config.dry_run == dry
    assert yaml.safe_load(natwork(*RENDER, "--apply", *options).out)["done"] is True


@pytest.mark.parametrize(
    "options",
    [
        ("--yes",),
        ("--dry-run", "server"),
        ("--cluster", "--replicas", "3"),
        ("--action", "mesh_retry"),
        ("--replicas", "0"),
    ],
)
def test_what_makes_no_sense(natwork: Any, clusters: list[Cluster], options: tuple[str, ...]) -> None:
    told = natwork(*RENDER, *options)
    assert told.code == ExitCode.USAGE
    assert told.out == ""
