"""Table 4 as objects: complete, valid by the published schemas of several releases, with the values decided."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.adapters.kubernetes_mitigations import Rendering, mitigation, render, renderable
from natwork_ray.adapters.kubernetes_objects import (
    ClusterSettings,
    Manifest,
    Verb,
    Workload,
    applied,
    cores,
    label_value,
    memory,
    own_name,
    patched,
    rate,
)
from natwork_ray.adapters.kubernetes_rbac import documents
from natwork_ray.adapters.kubernetes_schemas import CRDS, OLDEST, validate, validate_document
from natwork_ray.control.catalogue import CATALOGUE
from natwork_ray.domain.actions import BlockSource, FlowAlert, Migrate, Restart, Scale, ScaleSignal, SetLimits
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import MitigationKind
from natwork_ray.domain.flow_alerts import FlowAdvice
from natwork_ray.domain.topology import Container
from natwork_ray.errors import ActionError, PreconditionError, UsageError, VerificationError

A, M = AnomalyKind, MitigationKind
MIB = 2**20
WEB = Workload.of(
    Container(
        name="web", service="web", network_service="shop", slice="default", node="edge-1", replicas=2,
        cpu_limit_cores=0.5, memory_limit_bytes=256 * MIB, depends_on=("db",),
    ),
    "shop",
)  # fmt: skip
EVERY_SETTING = (ClusterSettings(), ClusterSettings(mesh="gateway", predictive="keda", vpa_mode="InPlaceOrRecreate"))


def made(anomaly: A, action: M, **more: Any) -> Rendering:
    return mitigation(anomaly, action, more.pop("workload", WEB), more.pop("settings", ClusterSettings()), **more)


def one(found: Rendering, kind: str) -> dict[str, Any]:
    (manifest,) = [m for m in found.manifests if m.kind == kind]
    return manifest.document()


def test_both_actions_of_table_4_become_objects_for_every_anomaly() -> None:
    able = set(renderable())
    for anomaly in (A.HIGH_CPU, A.HIGH_MEMORY, A.TRAFFIC_SPIKE, A.STEP_LOAD, A.NETWORK_LATENCY):
        of_table = [entry.mitigation for entry in CATALOGUE[anomaly] if entry.table_4]
        assert len(of_table) == 2
        assert all((anomaly, action) in able for action in of_table)
    assert (A.UNKNOWN, M.NOTIFY) not in able


@pytest.mark.parametrize("settings", EVERY_SETTING, ids=("istio", "gateway"))
@pytest.mark.parametrize(("anomaly", "action"), renderable())
def test_every_object_is_valid_and_says_whose_it_is(anomaly: A, action: M, settings: ClusterSettings) -> None:
    found = made(anomaly, action, settings=settings, key="d-7/0")
    assert found.manifests
    for manifest in found.manifests:
        for version in (OLDEST, "1.33", None):
            assert validate(manifest, version=version) in (version, "custom") or version is None
        meta = manifest.document()["metadata"]
        if manifest.verb is Verb.APPLY:
            assert meta["labels"]["app.kubernetes.io/managed-by"] == "natwork-ray"
        if manifest.kind != "PriorityClass":
            assert meta["annotations"]["natwork-ray/key"] == "d-7/0"
            assert meta["namespace"] == "shop"
    assert found == made(anomaly, action, settings=settings, key="d-7/0")  # the same bytes


def test_horizontal_autoscalers_follow_what_table_4_names() -> None:
    cpu = one(made(A.HIGH_CPU, M.HORIZONTAL_SCALE), "HorizontalPodAutoscaler")["spec"]
    assert cpu["metrics"][0]["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    assert (cpu["minReplicas"], cpu["maxReplicas"]) == (3, 8)
    assert cpu["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    for action, anomaly in ((M.HORIZONTAL_SCALE, A.TRAFFIC_SPIKE), (M.CUSTOM_METRIC_SCALE, A.STEP_LOAD)):
        (metric,) = one(made(anomaly, action), "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metric["type"] == "Pods"
        assert metric["pods"]["target"]["averageValue"] == "50"
    scale = Scale(key="k", container="web", replicas=12, signal=ScaleSignal.REQUESTS, target_per_replica=12.5)
    busy = one(render(scale, WEB, ClusterSettings()), "HorizontalPodAutoscaler")["spec"]
    assert busy["metrics"][0]["pods"]["target"]["averageValue"] == "12500m"
    assert (busy["minReplicas"], busy["maxReplicas"]) == (12, 12)


def test_predictive_autoscaling_follows_the_upper_edge_of_one_forecast() -> None:
    (metric,) = one(made(A.STEP_LOAD, M.PREDICTIVE_SCALE), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["external"] == {
        "metric": {
            "name": "natwork_forecast_upper",
            "selector": {"matchLabels": {"container": "web", "metric": "cpu_utilization", "horizon_s": "100"}},
        },
        "target": {"type": "Value", "value": "700m"},
    }
    (trigger,) = one(made(A.STEP_LOAD, M.PREDICTIVE_SCALE, settings=EVERY_SETTING[1]), "ScaledObject")["spec"][
        "triggers"
    ]
    wanted = 'max(natwork_forecast_upper{container="web",metric="cpu_utilization",horizon_s="100"})'
    assert trigger["metadata"]["query"] == wanted


def test_vertical_scaling_by_pod_where_pods_are_known() -> None:
    running = replace(WEB, pods=("web-1", "web-2"))
    found = made(A.HIGH_MEMORY, M.VERTICAL_MEMORY, workload=running)
    assert [(m.kind, m.name, m.subresource) for m in found.manifests[1:]] == [
        ("Pod", "web-1", "resize"),
        ("Pod", "web-2", "resize"),
    ]
    resources = found.manifests[1].document()["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {"memory": "384Mi"}, "requests": {"memory": "384Mi"}}
    burstable = made(A.HIGH_MEMORY, M.VERTICAL_MEMORY, workload=replace(running, guaranteed=False))
    assert "requests" not in burstable.manifests[1].document()["spec"]["containers"][0]["resources"]
    (policy,) = one(made(A.HIGH_CPU, M.VERTICAL_CPU), "VerticalPodAutoscaler")["spec"]["resourcePolicy"][
        "containerPolicies"
    ]
    assert (policy["controlledResources"], policy["minAllowed"]) == (["cpu"], {"cpu": "750m"})


def test_a_restart_has_a_limit_and_a_budget() -> None:
    found = render(Restart(key="r", container="web"), WEB, ClusterSettings())
    assert one(found, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    template = one(found, "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"] == {"natwork-ray/restarted-for": "r"}
    assert template["spec"]["containers"] == [{"name": "web", "resources": {"limits": {"memory": "256Mi"}}}]
    assert template["spec"]["restartPolicy"] == "Always"


def test_room_for_a_replica_gives_way_to_everybody() -> None:
    found = made(A.TRAFFIC_SPIKE, M.CLUSTER_SCALE)
    assert one(found, "PriorityClass")["value"] < 0
    pod = one(found, "Deployment")["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == one(found, "PriorityClass")["metadata"]["name"]
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "500m", "memory": "256Mi"}


def test_a_move_prefers_and_never_demands() -> None:
    found = render(Migrate(key="m", container="web", source="edge-1", target="core-1"), WEB, ClusterSettings())
    text = found.manifests[0].text
    assert "requiredDuringScheduling" not in text
    assert "DoNotSchedule" not in text
    affinity = found.manifests[0].document()["spec"]["template"]["spec"]["affinity"]
    first = affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert first["preference"]["matchExpressions"][0]["values"] == ["core-1"]


def test_retries_are_few_and_only_of_what_was_not_begun() -> None:
    route = one(made(A.NETWORK_LATENCY, M.MESH_RETRY), "VirtualService")["spec"]["http"][0]
    assert route["retries"] == {
        "attempts": 2,
        "perTryTimeout": "2s",
        "retryOn": "connect-failure,refused-stream,reset-before-request",
    }
    with pytest.raises(PreconditionError, match="no service mesh"):
        made(A.NETWORK_LATENCY, M.MESH_RETRY, settings=ClusterSettings(mesh="none"))


def test_blocked_sources_are_in_one_policy() -> None:
    block = BlockSource(key="b", container="web", source="203.0.113.0/24", expires_at_s=9.0)
    found = render(block, WEB, ClusterSettings(), blocked_already={"198.51.100.0/24": 5.0})
    first = one(found, "NetworkPolicy")["spec"]["ingress"][0]["from"][0]["ipBlock"]
    assert first == {"cidr": "0.0.0.0/0", "except": ["198.51.100.0/24", "203.0.113.0/24"]}
    many = {f"10.{n}.0.0/16": 5.0 for n in range(64)}
    with pytest.raises(ActionError, match="65 sources"):
        render(block, WEB, ClusterSettings(), blocked_already=many)


def test_what_is_not_in_the_catalogue_or_for_a_cluster() -> None:
    with pytest.raises(UsageError, match="no mesh_retry for high_cpu"):
        made(A.HIGH_CPU, M.MESH_RETRY)
    with pytest.raises(UsageError, match="notify is nothing that a cluster carries out"):
        made(A.UNKNOWN, M.NOTIFY)
    alert = FlowAlert(
        key="f", container="web", at_s=0.0, kind=A.TRAFFIC_SPIKE, likelihood=1.0, sources=(), advice=FlowAdvice.DROP,
        expires_at_s=1.0,
    )  # fmt: skip
    with pytest.raises(PreconditionError, match="for the network"):
        render(alert, WEB, ClusterSettings())


@pytest.mark.parametrize(("value", "text"), [(0.0001, "1m"), (0.5, "500m"), (2.0, "2"), (1.2345, "1235m")])
def test_cores(value: float, text: str) -> None:
    assert cores(value) == text


@given(st.floats(1, 2**50))
def test_memory_is_never_less_than_asked_for(value: float) -> None:
    from kubernetes.utils import parse_quantity

    assert value <= float(parse_quantity(memory(value))) <= value + 1  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("write", [cores, memory, rate])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_quantities_that_are_none(write: Any, value: float) -> None:
    with pytest.raises(UsageError):
        write(value)


@given(st.from_regex(r"[a-z]([-a-z0-9]{0,200}[a-z0-9])?", fullmatch=True), st.sampled_from(["", "room"]))
def test_names_are_labels_and_tell_workloads_apart(name: str, what: str) -> None:
    found = own_name(name, what)
    assert len(found) <= 52
    assert found[-1].isalnum()
    assert own_name(name + "x", what) != found
    assert len(label_value(name)) <= 63


def broken(kind: str, **changes: Any) -> Manifest:
    found = next(
        m for s in EVERY_SETTING for p in renderable() for m in made(*p, settings=s).manifests if m.kind == kind
    )
    document = found.document()
    document["spec"] |= changes
    return applied(document)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("HorizontalPodAutoscaler", {"minReplicas": "three"}),
        ("HorizontalPodAutoscaler", {"replicas": 3}),
        ("PodDisruptionBudget", {"maxUnavailble": 1}),
        ("NetworkPolicy", {"policyTypes": "Ingress"}),
        ("VerticalPodAutoscaler", {"updatePolicy": {"updateMode": "Sometimes"}}),
        ("VerticalPodAutoscaler", {"targetRef": {}}),
        ("ScaledObject", {"triggers": []}),
        ("VirtualService", {"hosts": []}),
        ("DestinationRule", {"trafficPolicy": {"outlierDetection": {"maxEjectionPercent": 101}}}),
        ("HTTPRoute", {"rules": [{"backendRefs": [{"name": "a", "port": 0}]}]}),
    ],
)
def test_wrong_objects_are_found(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match=kind):
        validate(broken(kind, **changes))


def test_patches_are_checked_as_the_objects_that_they_make() -> None:
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}}
    assert validate(patched({**patch, "spec": {"replicas": 3}}), version="1.33") == "1.33"
    for spec in ({"replicas": "3"}, {"template": {"spec": {"containers": [{"name": "web", "resurces": {}}]}}}):
        with pytest.raises(VerificationError):
            validate(patched({**patch, "spec": spec}))


def test_kinds_and_releases_that_nobody_knows() -> None:
    with pytest.raises(VerificationError, match="has no kind Nonsense"):
        validate_document({"apiVersion": "apps/v1", "kind": "Nonsense", "metadata": {"name": "x"}})
    with pytest.raises(PreconditionError):
        validate_document({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}, version="99.9")
    assert set(CRDS) == {
        ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler"),
        ("keda.sh/v1alpha1", "ScaledObject"),
        ("networking.istio.io/v1", "VirtualService"),
        ("networking.istio.io/v1", "DestinationRule"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    }


def test_rights_are_valid_and_few() -> None:
    for settings in (*EVERY_SETTING, ClusterSettings(mesh="none")):
        found = documents(settings, namespace="shop")
        for document in found:
            assert validate_document(document)
        text = json.dumps(found)
        for word in ("*", "secrets", "pods/exec", "clusterrolebindings", "escalate", "impersonate", "bind"):
            assert f'"{word}"' not in text
        (everywhere,) = [d for d in found if d["kind"] == "ClusterRole"]
        assert everywhere["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]


def test_limits_of_a_size_that_does_not_exist() -> None:
    with pytest.raises(UsageError):
        render(SetLimits(key="k", container="web", cpu_limit_cores=-1.0), WEB, ClusterSettings())
