"""Every mitigation brought into a strict API server: once by key, within its rights, and through its moods."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from natwork_ray.adapters.kubernetes import KubernetesCluster
from natwork_ray.adapters.kubernetes_api import Access, KubernetesApi
from natwork_ray.adapters.kubernetes_clusters import cluster_settings, kubernetes_cluster
from natwork_ray.adapters.kubernetes_deliveries import DONE, MAX_DELIVERIES
from natwork_ray.adapters.kubernetes_objects import MANAGED_BY, MANAGER, ClusterSettings
from natwork_ray.adapters.kubernetes_rbac import cluster_rules, rules
from natwork_ray.adapters.kubernetes_traffic import BLOCKED, RESTARTED_FOR
from natwork_ray.config import KubernetesConfig
from natwork_ray.control.executor import Executor
from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    FlowAlert,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    ScaleSignal,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.flow_alerts import FlowAdvice
from natwork_ray.domain.topology import NodeRole
from natwork_ray.domain.values import Backend
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    TimedOutError,
)
from natwork_ray.ports import ContainerControl, Firewall, Orchestrator

HPA = ("autoscaling/v2", "horizontalpodautoscalers", "natwork-ray-front")
VPA = ("autoscaling.k8s.io/v1", "verticalpodautoscalers", "natwork-ray-front")
DEPLOYMENT = ("apps/v1", "deployments", "front")
MIB = 2**20


class Clock:
    """A second a look."""

    def __init__(self) -> None:
        self.s = 1000.0

    def now_s(self) -> float:
        return self.s

    async def pause(self, seconds: float) -> None:
        self.s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connect(api_server: Any, kubeconfig: Path, clock: Clock) -> Callable[..., KubernetesCluster]:
    """A cluster as the loop has it; each call is another process."""

    def made(settings: ClusterSettings | None = None, **access: Any) -> KubernetesCluster:
        api = KubernetesApi(Access(namespace="shop", kubeconfig=kubeconfig, **access), pause=clock.pause)
        return KubernetesCluster(api, settings or ClusterSettings(), now_s=clock.now_s, pause=clock.pause)

    api_server.deployment("db", replicas=1)
    api_server.deployment(
        "front", notes={"natwork-ray/depends-on": "db, cache"}, labels={"app.kubernetes.io/part-of": "store"}
    )
    return made


def run(work: Any) -> Any:
    return asyncio.run(work)


SCALE = Scale(key="d-1/0", container="front", replicas=3, signal=ScaleSignal.CPU)
LIMITS = SetLimits(key="d-2/0", container="front", cpu_limit_cores=0.75)


def test_topology(connect: Any) -> None:
    found = run(connect().topology())
    assert {n.name: (n.role, n.cpu_cores) for n in found.nodes} == {
        "edge-1": (NodeRole.EDGE, 8.0),
        "core-1": (NodeRole.CLOUD, 8.0),
    }
    front = found.container("front")
    assert front is not None
    assert (front.service, front.network_service, front.slice, front.node) == ("front", "store", "default", "edge-1")
    assert (front.replicas, front.cpu_limit_cores, front.memory_limit_bytes) == (2, 0.5, 256 * MIB)
    assert front.depends_on == ("db", "cache")


def test_scaling_takes_effect_and_leaves_an_autoscaler_above_it(connect: Any, api_server: Any) -> None:
    outcome = run(connect().scale(SCALE))
    assert outcome.done
    assert outcome.backend is Backend.REAL
    assert outcome.downtime_s == 0
    assert api_server.get(*DEPLOYMENT)["spec"]["replicas"] == 3
    hpa = api_server.get(*HPA)
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (3, 8)
    assert hpa["metadata"]["annotations"]["natwork-ray/key"] == "d-1/0"
    assert hpa["metadata"]["labels"][MANAGED_BY] == MANAGER


def test_giving_replicas_back_takes_the_autoscaler_and_the_room_away(connect: Any, api_server: Any) -> None:
    cluster = connect()
    run(cluster.scale(SCALE))
    run(cluster.add_node(AddNode(key="d-3/0", container="front")))
    room = ("apps/v1", "deployments", "natwork-ray-room-front")
    assert api_server.get(*room)["spec"]["replicas"] == 1
    assert "natwork-ray-room-front" not in {c.name for c in run(cluster.topology()).containers}
    run(cluster.scale(Scale(key="d-4/0", container="front", replicas=2)))
    assert api_server.get(*DEPLOYMENT)["spec"]["replicas"] == 2
    assert api_server.names("horizontalpodautoscalers") == []
    assert api_server.get(*room)["spec"]["replicas"] == 0


def test_a_forecast_scales_through_keda_and_the_other_autoscaler_goes(connect: Any, api_server: Any) -> None:
    run(connect().scale(SCALE))
    ahead = Scale(key="d-5/0", container="front", replicas=4, signal=ScaleSignal.FORECAST)
    run(connect(ClusterSettings(predictive="keda")).scale(ahead))
    assert api_server.names("horizontalpodautoscalers") == []
    scaled = api_server.get("keda.sh/v1alpha1", "scaledobjects", "natwork-ray-front")
    assert scaled["spec"]["minReplicaCount"] == 4
    assert scaled["spec"]["triggers"][0]["metadata"]["threshold"] == "0.70"
    # The HPA that KEDA makes of it is no stranger's.
    owned = {
        "name": "keda-hpa-natwork-ray-front",
        "ownerReferences": [{"kind": "ScaledObject", "name": "natwork-ray-front"}],
    }
    target = {"kind": "Deployment", "name": "front", "apiVersion": "apps/v1"}
    api_server.put(
        "autoscaling/v2", "horizontalpodautoscalers", {"metadata": owned, "spec": {"scaleTargetRef": target}}
    )
    run(connect(ClusterSettings(predictive="keda")).scale(replace(ahead, key="d-6/0", replicas=5)))


def test_an_autoscaler_of_the_operators_is_not_fought(connect: Any, api_server: Any) -> None:
    target = {"kind": "Deployment", "name": "front", "apiVersion": "apps/v1"}
    theirs = {"metadata": {"name": "front"}, "spec": {"scaleTargetRef": target}}
    api_server.put("autoscaling/v2", "horizontalpodautoscalers", theirs)
    with pytest.raises(ConflictError, match="HorizontalPodAutoscaler front of the operator scales front already"):
        run(connect().scale(SCALE))
    assert api_server.get(*DEPLOYMENT)["spec"]["replicas"] == 2


def test_an_object_of_our_name_that_is_not_ours_is_left(connect: Any, api_server: Any) -> None:
    api_server.put("policy/v1", "poddisruptionbudgets", {"metadata": {"name": "natwork-ray-front"}, "spec": {}})
    with pytest.raises(ConflictError, match="belongs to somebody"):
        run(connect().restart(Restart(key="r", container="front")))
    target = {"scaleTargetRef": {"name": "other"}}
    api_server.put("autoscaling/v2", "horizontalpodautoscalers", {"metadata": {"name": HPA[2]}, "spec": target})
    with pytest.raises(ConflictError, match="belongs to somebody"):
        run(connect().scale(SCALE))


def test_limits_are_changed_in_running_pods_and_kept_for_new_ones(connect: Any, api_server: Any) -> None:
    cluster = connect()
    outcome = run(cluster.set_limits(LIMITS))
    assert "resized in place (2 pods)" in outcome.detail
    for pod in ("front-0", "front-1"):
        assert api_server.get("v1", "pods", pod)["spec"]["containers"][0]["resources"] == {
            "limits": {"cpu": "750m", "memory": "256Mi"},
            "requests": {"cpu": "750m", "memory": "256Mi"},
        }
    assert api_server.get(*VPA)["spec"]["resourcePolicy"]["containerPolicies"][0]["minAllowed"] == {"cpu": "750m"}
    found = run(cluster.topology()).container("front")
    assert (found.cpu_limit_cores, found.memory_limit_bytes) == (0.75, 256 * MIB)
    back = run(connect().set_limits(SetLimits(key="d-9/0", container="front", cpu_limit_cores=0.5)))
    assert "its autoscaler is gone" in back.detail
    assert api_server.names("verticalpodautoscalers") == []
    assert "natwork-ray/original-limits" not in api_server.get(*DEPLOYMENT)["metadata"]["annotations"]


def test_a_class_of_service_stays_what_it_is(connect: Any, api_server: Any) -> None:
    api_server.deployment("front", requests={"cpu": "100m", "memory": "256Mi"})
    run(connect().set_limits(LIMITS))
    assert api_server.get("v1", "pods", "front-0")["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "100m"


def test_without_resizing_the_template_is_changed(connect: Any, api_server: Any) -> None:
    api_server.resize = False
    del api_server.kinds["autoscaling.k8s.io/v1", "verticalpodautoscalers"]
    outcome = run(connect().set_limits(SetLimits(key="m", container="front", memory_limit_bytes=384 * MIB)))
    assert "replaced one by one" in outcome.detail
    assert "has no Vertical Pod Autoscaler" in outcome.detail
    (container,) = api_server.get(*DEPLOYMENT)["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": "384Mi"}
    assert container["image"] == "registry.example/shop:1"


def test_a_restart_waits_for_every_replica_and_counts_what_was_down(
    connect: Any, api_server: Any, clock: Clock
) -> None:
    outcome = run(connect().restart(Restart(key="r-1", container="front")))
    assert outcome.done
    assert outcome.downtime_s == 0
    assert outcome.finished_at_s > outcome.started_at_s
    template = api_server.get(*DEPLOYMENT)["spec"]["template"]
    assert template["metadata"]["annotations"][RESTARTED_FOR] == "r-1"
    assert api_server.get("policy/v1", "poddisruptionbudgets", "natwork-ray-front")["spec"]["maxUnavailable"] == 1
    recreated = api_server.get("apps/v1", "deployments", "db")
    recreated["spec"]["strategy"] = {"type": "Recreate"}
    down = run(connect().restart(Restart(key="r-2", container="db")))
    assert 0 < down.downtime_s <= down.finished_at_s - down.started_at_s


def test_a_restart_that_never_ends_is_not_called_done(connect: Any, api_server: Any, clock: Clock) -> None:
    api_server.rollout_looks = 10**6
    with pytest.raises(TimedOutError, match="is not replaced"):
        run(connect().restart(Restart(key="r-1", container="front")))
    api_server.get(*DEPLOYMENT)["_looks"] = 1
    generation = api_server.get(*DEPLOYMENT)["metadata"]["generation"]
    assert run(connect().restart(Restart(key="r-1", container="front"))).done  # delivered again: it only waits
    assert api_server.get(*DEPLOYMENT)["metadata"]["generation"] == generation


def test_a_move_replaces_pods_near_whom_they_call(connect: Any, api_server: Any) -> None:
    run(connect().replace(Migrate(key="m-1", container="front", source="edge-1", target="core-1")))
    spec = api_server.get(*DEPLOYMENT)["spec"]["template"]["spec"]
    near = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert near[0]["podAffinityTerm"]["labelSelector"]["matchLabels"] == {"app.kubernetes.io/name": "db"}
    assert {c["topologyKey"] for c in spec["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }


@pytest.mark.parametrize(
    ("mesh", "plurals"), [("istio", ("virtualservices", "destinationrules")), ("gateway", ("httproutes",))]
)
def test_retries_are_switched_on_and_off(connect: Any, api_server: Any, mesh: Any, plurals: tuple[str, ...]) -> None:
    cluster = connect(ClusterSettings(mesh=mesh))
    run(cluster.mesh_retry(MeshRetry(key="on", container="front", enabled=True)))
    assert all(api_server.names(plural) == ["natwork-ray-front"] for plural in plurals)
    if mesh == "istio":
        route = api_server.get("networking.istio.io/v1", "virtualservices", "natwork-ray-front")
        assert route["spec"]["hosts"] == ["front-svc.shop.svc.cluster.local"]
    run(cluster.mesh_retry(MeshRetry(key="off", container="front", enabled=False)))
    assert not any(api_server.names(plural) for plural in plurals)


def test_a_mesh_that_is_not_there_or_routed_by_others(connect: Any, api_server: Any) -> None:
    on = MeshRetry(key="on", container="front", enabled=True)
    with pytest.raises(PreconditionError):
        run(connect(ClusterSettings(mesh="none")).mesh_retry(on))
    theirs = {"metadata": {"name": "front"}, "spec": {"hosts": ["front-svc"]}}
    api_server.put("networking.istio.io/v1", "virtualservices", theirs)
    with pytest.raises(ConflictError, match="VirtualService front routes"):
        run(connect().mesh_retry(on))
    for plural in ("virtualservices", "destinationrules"):
        del api_server.kinds["networking.istio.io/v1", plural]
    with pytest.raises(ActionError, match="does not know VirtualService"):
        run(connect().mesh_retry(on))


def test_blocked_sources_share_one_policy_and_end(connect: Any, api_server: Any, clock: Clock) -> None:
    cluster = connect()
    for n, (source, until) in enumerate(
        (("203.0.113.0/24", 1100.0), ("2001:db8::/32", 1200.0), ("198.51.100.7/32", 1300.0))
    ):
        run(cluster.block(BlockSource(key=f"b-{n}", container="front", source=source, expires_at_s=until)))
    policy = ("networking.k8s.io/v1", "networkpolicies", "natwork-ray-block-front")
    four, six, cluster_pods = api_server.get(*policy)["spec"]["ingress"][0]["from"]
    assert four == {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["198.51.100.7/32", "203.0.113.0/24"]}}
    assert six == {"ipBlock": {"cidr": "::/0", "except": ["2001:db8::/32"]}}
    assert cluster_pods == {"namespaceSelector": {}}
    assert run(cluster.unblock_expired()) == 0
    clock.s = 1250.0
    assert run(cluster.unblock_expired()) == 2
    assert json.loads(api_server.get(*policy)["metadata"]["annotations"][BLOCKED]) == {"198.51.100.7/32": 1300.0}
    clock.s = 1400.0
    assert run(connect().unblock_expired()) == 1
    assert api_server.names("networkpolicies") == []


def test_sources_that_cannot_be_blocked(connect: Any) -> None:
    cluster = connect()
    for source, until, words in (
        ("0.0.0.0/0", 1100.0, "cuts the workload off"),
        ("somewhere", 1100.0, "no network"),
        ("203.0.113.0/24", 900.0, "blocked until"),
        ("10.42.0.0/16", 1100.0, "has pod"),
    ):
        with pytest.raises(ActionError, match=words):
            run(cluster.block(BlockSource(key=f"b-{source}", container="front", source=source, expires_at_s=until)))


INSTRUCTIONS = (
    ("scale", SCALE),
    ("set_limits", LIMITS),
    ("restart", Restart(key="i-3", container="front")),
    ("add_node", AddNode(key="i-4", container="front")),
    ("mesh_retry", MeshRetry(key="i-5", container="front", enabled=True)),
    ("block", BlockSource(key="i-6", container="front", source="203.0.113.0/24", expires_at_s=5000.0)),
    ("replace", Migrate(key="i-7", container="front", source="edge-1", target="core-1")),
)


def state(server: Any) -> Any:
    return json.loads(json.dumps({"/".join(key): item for key, item in server.objects.items()}))


@pytest.mark.parametrize(("verb", "instruction"), INSTRUCTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_key_is_carried_out_once(connect: Any, api_server: Any, verb: str, instruction: Any) -> None:
    first = run(getattr(connect(), verb)(instruction))
    before = state(api_server)
    assert run(getattr(connect(), verb)(instruction)) == first
    assert state(api_server) == before
    with pytest.raises(ConflictError, match="used for another"):
        run(connect().mesh_retry(MeshRetry(key=instruction.key, container="front", enabled=False)))


@pytest.mark.parametrize(("verb", "instruction"), INSTRUCTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_dry_run_changes_nothing(connect: Any, api_server: Any, verb: str, instruction: Any) -> None:
    before = state(api_server)
    outcome = run(getattr(connect(dry_run="server"), verb)(instruction))
    assert "dry run" in outcome.detail
    assert state(api_server) == before
    assert any(method == "PATCH" for method, _ in api_server.requests)


def test_every_right_is_enough_and_needed(connect: Any, api_server: Any, clock: Clock) -> None:
    """Under exactly the rules that we ship, everything works, and no rule stays unused."""
    for settings in (ClusterSettings(), ClusterSettings(mesh="gateway", predictive="keda")):
        api_server.rules, api_server.used = [*rules(settings), *cluster_rules()], set()
        for left in [key for key, found in api_server.objects.items() if key[2].startswith(MANAGER)]:
            del api_server.objects[left]
        cluster = connect(settings)
        tag = settings.mesh
        for verb, instruction in INSTRUCTIONS:
            run(getattr(cluster, verb)(replace(instruction, key=f"{tag}-{verb}")))
        ahead = Scale(key=f"{tag}-f", container="front", replicas=4, signal=ScaleSignal.FORECAST)
        run(cluster.scale(ahead))
        run(cluster.scale(replace(SCALE, key=f"{tag}-c")))
        run(cluster.scale(Scale(key=f"{tag}-s", container="front", replicas=2)))
        run(cluster.set_limits(SetLimits(key=f"{tag}-l", container="front", cpu_limit_cores=0.5)))
        run(cluster.mesh_retry(MeshRetry(key=f"{tag}-m", container="front", enabled=False)))
        run(cluster.unblock_expired())
        run(cluster.block(BlockSource(key=f"{tag}-b", container="db", source="192.0.2.0/24", expires_at_s=1e4)))
        before, clock.s = clock.s, 2e4
        run(cluster.unblock_expired())
        clock.s = before
        run(cluster.topology())
        granted = {
            (g, r, v)
            for rule in api_server.rules
            for g in rule["apiGroups"]
            for r in rule["resources"]
            for v in rule["verbs"]
        }
        assert granted == api_server.used


def test_without_rights_the_hint_says_how_to_get_them(connect: Any, api_server: Any) -> None:
    api_server.rules = cluster_rules()
    with pytest.raises(PreconditionError, match="natwork mitigations rbac --namespace shop"):
        run(connect().scale(SCALE))


def test_who_changed_it_meanwhile_is_heard(connect: Any, api_server: Any) -> None:
    """Somebody raises the replicas between our look and our patch: we look again, and state our own number."""

    def faster(server: Any) -> None:
        front = server.get(*DEPLOYMENT)
        server.put("apps/v1", "deployments", {**front, "spec": {**front["spec"], "replicas": 7}})

    run(connect().scale(SCALE))  # so that the next patch is the Deployment's
    api_server.before_patch = faster
    run(connect().restart(Restart(key="r", container="front")))
    assert api_server.get(*DEPLOYMENT)["spec"]["replicas"] == 7
    assert run(connect().scale(replace(SCALE, key="again", replicas=4))).done
    assert api_server.get(*DEPLOYMENT)["spec"]["replicas"] == 4


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, PreconditionError),
        (403, PreconditionError),
        (404, NotFoundError),
        (409, ConflictError),
        (422, ActionError),
    ],
)
def test_refusals_are_final(connect: Any, api_server: Any, status: int, error: type[NatworkError]) -> None:
    cluster = connect()
    api_server.faults.append(api_server.refusal(status))
    if status == 404:
        assert run(cluster._api.listed("apps/v1", "Deployment")) == []  # a kind that the cluster does not know
        return
    with pytest.raises(error):
        run(cluster._api.pods())
    assert len(api_server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503, 504])
def test_a_busy_server_is_asked_again(connect: Any, api_server: Any, clock: Clock, status: int) -> None:
    cluster = connect()
    api_server.faults.extend([api_server.refusal(status, **{"Retry-After": "3"})] * 2)
    before = clock.s
    assert len(run(cluster._api.nodes())) == 2
    assert clock.s == before + 6
    api_server.faults.extend([api_server.refusal(status)] * 4)
    with pytest.raises(TimedOutError, match=f"status {status}"):
        run(cluster._api.nodes())


def test_a_slow_or_absent_server_is_a_timeout(connect: Any, api_server: Any) -> None:
    slow = connect(timeout_s=0.05)
    api_server.faults.extend([0.2] * 4)
    with pytest.raises(TimedOutError):
        run(slow._api.nodes())


def test_lists_come_in_pages(connect: Any, api_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natwork_ray.adapters.kubernetes_api.PAGE", 2)
    for n in range(7):
        api_server.deployment(f"more-{n}", replicas=1)
    assert len(run(connect().topology()).containers) == 9
    monkeypatch.setattr("natwork_ray.adapters.kubernetes_api.MAX_OBJECTS", 4)
    with pytest.raises(InputError, match="more than 4"):
        run(connect().topology())


def test_what_does_not_exist_or_makes_no_sense(connect: Any, api_server: Any) -> None:
    cluster = connect()
    with pytest.raises(NotFoundError, match="there are: db, front"):
        run(cluster.restart(Restart(key="x", container="nobody")))
    with pytest.raises(ActionError, match="0 replicas"):
        run(cluster.scale(replace(SCALE, replicas=0)))
    api_server.get(*DEPLOYMENT)["metadata"]["annotations"][DONE] = "[{}]"
    with pytest.raises(InputError, match="natwork-ray/done of front is broken"):
        run(cluster.scale(SCALE))


def test_only_the_newest_deliveries_are_kept(connect: Any, api_server: Any) -> None:
    cluster = connect()
    for n in range(MAX_DELIVERIES + 2):
        run(cluster.mesh_retry(MeshRetry(key=f"k-{n}", container="front", enabled=bool(n % 2))))
    told = json.loads(api_server.get(*DEPLOYMENT)["metadata"]["annotations"][DONE])
    assert [item["outcome"]["key"] for item in told] == [f"k-{n}" for n in range(2, MAX_DELIVERIES + 2)]


def test_credentials_that_are_not_there(tmp_path: Path) -> None:
    for content in (None, "nonsense", "clusters: 3"):
        path = tmp_path / "kubeconfig"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        with pytest.raises(PreconditionError, match="no usable credentials"):
            KubernetesApi(Access(kubeconfig=path))


def test_nothing_is_written_outside_the_namespace(connect: Any) -> None:
    from natwork_ray.adapters.kubernetes_scaling import placeholder_class

    with pytest.raises(ActionError, match="outside the namespace"):
        run(connect()._api.write(placeholder_class()))


@pytest.mark.parametrize(("verb", "instruction"), INSTRUCTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_any_instruction_finds_its_way(connect: Any, verb: str, instruction: Any) -> None:
    cluster = connect()
    assert run(cluster.carry_out(instruction)) == run(getattr(cluster, verb)(instruction))


def test_alerts_are_for_the_network(connect: Any) -> None:
    alert = FlowAlert(
        key="f", container="front", at_s=0.0, kind=AnomalyKind.TRAFFIC_SPIKE, likelihood=1.0, sources=(),
        advice=FlowAdvice.DROP, expires_at_s=1.0,
    )  # fmt: skip
    with pytest.raises(PreconditionError, match="for the network"):
        run(connect().carry_out(alert))


def test_it_is_what_the_ports_ask_for(connect: Any, clock: Clock) -> None:
    """The loop's executor carries out through it, and a refusal becomes a failed outcome."""
    cluster: KubernetesCluster = connect()
    orchestrator: Orchestrator = cluster
    firewall: Firewall = cluster
    control: ContainerControl = cluster
    hands: Any = control
    executor = Executor(runtime=hands, firewall=firewall, orchestrator=orchestrator, clock=clock, backend=Backend.REAL)
    assert run(executor.execute(SCALE)).done
    refused = run(executor.execute(Scale(key="no", container="nobody", replicas=2)))
    assert not refused.done
    assert "there is no Deployment" in refused.error


def test_the_configuration_names_a_cluster(api_server: Any, kubeconfig: Path) -> None:
    api_server.deployment("front")
    config = KubernetesConfig(kubeconfig=kubeconfig, context="test", namespace="shop", mesh="none", vpa_mode="Off")
    cluster = kubernetes_cluster(config, now_s=lambda: 0.0)
    assert run(cluster.workload("front")).service == "front-svc"
    with pytest.raises(NotFoundError):
        run(cluster.workload("nobody"))
    settings = cluster_settings(config)
    assert (settings.mesh, settings.vpa_mode, settings.predictive) == ("none", "Off", "external-metric")


def test_a_policy_whose_workload_is_gone_goes_too(connect: Any, api_server: Any, clock: Clock) -> None:
    cluster = connect()
    for source, until in (("203.0.113.0/24", 1100.0), ("198.51.100.0/24", 9999.0)):
        run(cluster.block(BlockSource(key=source, container="front", source=source, expires_at_s=until)))
    del api_server.objects[DEPLOYMENT]
    clock.s = 1200.0
    assert run(cluster.unblock_expired()) == 1
    assert api_server.names("networkpolicies") == []


def test_a_policy_that_somebody_wrote_into(connect: Any, api_server: Any) -> None:
    block = BlockSource(key="b", container="front", source="203.0.113.0/24", expires_at_s=1100.0)
    run(connect().block(block))
    policy = api_server.get("networking.k8s.io/v1", "networkpolicies", "natwork-ray-block-front")
    for text in ("nonsense", '{"x": 1}', "[]"):
        policy["metadata"]["annotations"][BLOCKED] = text
        with pytest.raises(InputError, match="is broken"):
            run(connect().block(replace(block, key=text)))


def test_a_deployment_that_never_stands_still(connect: Any, api_server: Any) -> None:
    def again(server: Any) -> None:
        front = server.get(*DEPLOYMENT)
        server.put("apps/v1", "deployments", front)
        server.before_patch = again

    api_server.before_patch = again
    with pytest.raises(ActionError, match="changes faster than it can be read"):
        run(connect().replace(Migrate(key="m", container="front", source="edge-1", target="core-1")))


def test_pods_without_limits_count_with_their_node(connect: Any, api_server: Any) -> None:
    front = api_server.get(*DEPLOYMENT)
    for thing in (
        front["spec"]["template"],
        api_server.get("v1", "pods", "front-0"),
        api_server.get("v1", "pods", "front-1"),
    ):
        thing["spec"]["containers"][0]["resources"] = {}
    found = run(connect().topology()).container("front")
    assert (found.cpu_limit_cores, found.memory_limit_bytes) == (8.0, 16 * 2**30)
    with pytest.raises(ActionError, match="has no limits"):
        run(connect().add_node(AddNode(key="n", container="front")))
    api_server.node("odd", **{"natwork-ray__role": "moon"})
    with pytest.raises(InputError, match="has the role 'moon'"):
        run(connect().topology())


def test_answers_that_are_none(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = connect()
    for data in (b"<html>", b"[]"):
        monkeypatch.setattr(cluster._api._core, "list_node", lambda data=data, **_: type("Answer", (), {"data": data}))
        with pytest.raises(InputError, match="is a proxy in between"):
            run(cluster._api.nodes())
