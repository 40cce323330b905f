"""D3.3 Table 4 as Kubernetes objects: every mitigation of the catalogue that a cluster can carry out.

`render` turns an instruction into manifests; `mitigation` does so for a pair of anomaly and action out of the
catalogue, with the instruction that the loop would usually give. Pure: the same input gives the same bytes, so the API
server sees a repetition as no change.

Left out: `notify`, which is for a person, and live migration, which no Kubernetes API offers: where the loop would move
a container live, a cluster gets a preference for other nodes and replaces the pods one by one.

    found = mitigation(AnomalyKind.HIGH_CPU, MitigationKind.VERTICAL_CPU, workload, ClusterSettings())
    [m.kind for m in found.manifests]    # ['VerticalPodAutoscaler', 'Deployment']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from natwork_ray.adapters.kubernetes_objects import ClusterSettings, Manifest, Verb, Workload
from natwork_ray.adapters.kubernetes_scaling import horizontal, placeholder, placeholder_class, vertical
from natwork_ray.adapters.kubernetes_traffic import blocked, mesh, replacement, restart
from natwork_ray.control.catalogue import CATALOGUE
from natwork_ray.control.planner import BLOCK_S, PREDICTIVE_STEP, VERTICAL_STEP
from natwork_ray.domain.actions import (
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    ScaleSignal,
    SetLimits,
)
from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import MitigationKind
from natwork_ray.errors import PreconditionError, UsageError

K = MitigationKind

EXAMPLE_SOURCE = "203.0.113.0/24"  # RFC 5737: nobody's
ELSEWHERE = "another-node"

_NEEDS = {
    "External": "an external metrics adapter that offers {metric} (docs/kubernetes.md)",
    "Pods": "a custom metrics adapter that offers {metric} (docs/kubernetes.md)",
    "Resource": "the metrics server, and CPU requests on the pods",
    "VerticalPodAutoscaler": "the Vertical Pod Autoscaler; without it only running pods are resized",
    "ScaledObject": "KEDA, and a Prometheus that scrapes our forecasts",
    "VirtualService": "Istio, with its sidecar or waypoint in front of the pods",
    "HTTPRoute": "a mesh that implements GAMMA, with the experimental channel of the Gateway API",
    "PriorityClass": "a cluster administrator, once: it belongs to the whole cluster",
    "NetworkPolicy": "a network plug-in that enforces policies, and source addresses that survive the way to the pod",
}


@dataclass(frozen=True)
class Rendering:
    """What an action is in a cluster. `needs` says what has to be installed for it to have its effect."""

    mitigation: MitigationKind | None
    anomaly: AnomalyKind | None
    instruction: Instruction
    manifests: tuple[Manifest, ...]
    needs: tuple[str, ...]


def render(
    instruction: Instruction,
    workload: Workload,
    settings: ClusterSettings,
    *,
    blocked_already: Mapping[str, float] | None = None,
) -> Rendering:
    """The manifests of an instruction. `blocked_already`: sources that the workload's policy holds, and until when.

    Raises:
        UsageError, ActionError: a value that no object can hold.
        PreconditionError: nothing in a cluster does this (a flow alert; retries without a mesh).
    """
    manifests: tuple[Manifest, ...]
    match instruction:
        case Scale():
            manifests = horizontal(workload, instruction, settings)
        case SetLimits():
            manifests = vertical(workload, instruction, settings)
        case Restart():
            manifests = restart(workload, instruction)
        case AddNode():
            manifests = (placeholder_class(), placeholder(workload, instruction.key, settings))
        case MeshRetry():
            manifests = mesh(workload, instruction, settings)
        case BlockSource():
            sources = {**(blocked_already or {}), instruction.source: instruction.expires_at_s}
            manifests = (blocked(workload, sources, instruction.key),)
        case Migrate():
            manifests = (replacement(workload, instruction),)
        case FlowAlert():
            raise PreconditionError("a flow alert is for the network", hint="set sdn.kind (docs/sdn.md)")
    return Rendering(None, None, instruction, manifests, _needs(manifests, settings))


def mitigation(
    anomaly: AnomalyKind,
    action: MitigationKind,
    workload: Workload,
    settings: ClusterSettings,
    *,
    key: str = "example/0",
    at_s: float = 0.0,
    source: str = EXAMPLE_SOURCE,
    target: str = ELSEWHERE,
) -> Rendering:
    """An action of the catalogue for an anomaly, with the values that the loop would usually choose.

    Raises:
        UsageError: the catalogue does not have the action for this anomaly, or a cluster cannot carry it out.
    """
    known = [entry.mitigation for entry in CATALOGUE.get(anomaly, ())]
    if action not in known:
        raise UsageError(
            f"the catalogue has no {action} for {anomaly}", hint=f"it has: {', '.join(known) or 'nothing'}"
        )
    instruction = usual(anomaly, action, workload, key=key, at_s=at_s, source=source, target=target)
    return replace(render(instruction, workload, settings), mitigation=action, anomaly=anomaly)


def usual(
    anomaly: AnomalyKind, action: MitigationKind, w: Workload, *, key: str, at_s: float, source: str, target: str
) -> Instruction:
    """The instruction that the loop usually gives (see `natwork_ray.control.planner`).

    Raises:
        UsageError: nothing that a cluster could carry out.
    """
    name, more = w.name, max(w.replicas + 1, round(w.replicas * VERTICAL_STEP))
    match action:
        case K.HORIZONTAL_SCALE:
            surge = anomaly is AnomalyKind.TRAFFIC_SPIKE
            signal = ScaleSignal.REQUESTS if surge else ScaleSignal.CPU
            return Scale(key=key, container=name, replicas=more, signal=signal)
        case K.CUSTOM_METRIC_SCALE:
            return Scale(key=key, container=name, replicas=more, signal=ScaleSignal.REQUESTS)
        case K.PREDICTIVE_SCALE:
            ahead = max(w.replicas + 1, round(w.replicas * PREDICTIVE_STEP))
            return Scale(key=key, container=name, replicas=ahead, signal=ScaleSignal.FORECAST)
        case K.VERTICAL_CPU:
            return SetLimits(key=key, container=name, cpu_limit_cores=round(w.cpu_limit_cores * VERTICAL_STEP, 3))
        case K.VERTICAL_MEMORY:
            return SetLimits(key=key, container=name, memory_limit_bytes=w.memory_limit_bytes * VERTICAL_STEP)
        case K.MEMORY_LIMIT_RESTART:
            return Restart(key=key, container=name)
        case K.CLUSTER_SCALE:
            return AddNode(key=key, container=name)
        case K.MESH_RETRY:
            return MeshRetry(key=key, container=name, enabled=True)
        case K.TOPOLOGY_MOVE | K.MTD_MOVE:
            return Migrate(key=key, container=name, source=w.node or "this-node", target=target)
        case K.BLOCK_SOURCE:
            return BlockSource(key=key, container=name, source=source, expires_at_s=at_s + BLOCK_S)
        case _:
            raise UsageError(f"{action} is nothing that a cluster carries out", hint="it is for a person")


def renderable() -> tuple[tuple[AnomalyKind, MitigationKind], ...]:
    """Every pair of the catalogue that becomes objects."""
    return tuple((a, e.mitigation) for a, entries in CATALOGUE.items() for e in entries if e.mitigation is not K.NOTIFY)


def _needs(manifests: tuple[Manifest, ...], settings: ClusterSettings) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for manifest in manifests:
        if manifest.verb is Verb.DELETE:
            continue
        names = [manifest.kind]
        if manifest.kind == "HorizontalPodAutoscaler":
            names = [metric["type"] for metric in manifest.document()["spec"]["metrics"]]
        for name in names:
            metric = settings.forecast_metric if name == "External" else settings.request_metric
            if name in _NEEDS:
                found[_NEEDS[name].format(metric=metric)] = None
    return tuple(found)
