"""Horizontal, predictive, vertical and cluster scaling as Kubernetes objects (D3.3 Table 4).

Pure. Written after the published APIs autoscaling/v2, autoscaling.k8s.io/v1 (the Vertical Pod Autoscaler's CRD),
keda.sh/v1alpha1, apps/v1 and scheduling.k8s.io/v1. Decisions:

- A horizontal autoscaler gets the number that the loop decided as its floor, and goes on from there.
- It grows at once and shrinks after five minutes: the loop has already waited for a vote, the end of a surge has not.
- The vertical autoscaler's floor is the new limit; what runs already is resized in place, without a restart.
- Nothing a cluster's user may write adds a node. What makes the Cluster Autoscaler add one is a pod that finds no room:
  a placeholder of the lowest priority, as large as a replica, which gives its place to the first pod that needs it.
"""

from __future__ import annotations

import json
from typing import Any

from natwork_ray.adapters.kubernetes_objects import (
    MANAGED_BY,
    MANAGER,
    ClusterSettings,
    Json,
    Manifest,
    Workload,
    applied,
    cores,
    deleted,
    label_value,
    memory,
    metadata,
    own_name,
    patched,
    rate,
)
from natwork_ray.domain.actions import Scale, ScaleSignal, SetLimits
from natwork_ray.domain.telemetry import Metric

HPA, HPA_KIND = "autoscaling/v2", "HorizontalPodAutoscaler"
KEDA, KEDA_KIND = "keda.sh/v1alpha1", "ScaledObject"
VPA, VPA_KIND = "autoscaling.k8s.io/v1", "VerticalPodAutoscaler"
PLACEHOLDER_CLASS = f"{MANAGER}-placeholder"
_CALM_S = 300


def horizontal(workload: Workload, instruction: Scale, settings: ClusterSettings) -> tuple[Manifest, ...]:
    """The autoscaler that goes on from the number of replicas; without a signal, the removal of what we had."""
    if instruction.signal is None:
        name = own_name(workload.name)
        return (
            deleted(HPA, HPA_KIND, workload.namespace, name),
            deleted(KEDA, KEDA_KIND, workload.namespace, name),
        )
    if instruction.signal is ScaleSignal.FORECAST and settings.predictive == "keda":
        return (_keda(workload, instruction, settings),)
    return (_hpa(workload, instruction, settings),)


def _hpa(workload: Workload, i: Scale, settings: ClusterSettings) -> Manifest:
    return applied({
        "apiVersion": HPA,
        "kind": HPA_KIND,
        "metadata": metadata(workload, own_name(workload.name), i.key),
        "spec": {
            "scaleTargetRef": _target(workload),
            "minReplicas": i.replicas,
            "maxReplicas": max(i.replicas, settings.max_replicas),
            "metrics": [_metric(workload, i, settings)],
            "behavior": _behaviour(),
        },
    })  # fmt: skip


def _metric(workload: Workload, i: Scale, settings: ClusterSettings) -> Json:
    match i.signal:
        case ScaleSignal.REQUESTS:
            per_replica = rate(i.target_per_replica or settings.requests_per_replica)
            return {
                "type": "Pods",
                "pods": {
                    "metric": {"name": settings.request_metric},
                    "target": {"type": "AverageValue", "averageValue": per_replica},
                },
            }
        case ScaleSignal.FORECAST:
            # A share of the limit, as utilisation is: how far it lies from the target says how many replicas it takes.
            return {
                "type": "External",
                "external": {
                    "metric": {
                        "name": settings.forecast_metric,
                        "selector": {"matchLabels": _forecast_labels(workload, settings)},
                    },
                    "target": {"type": "Value", "value": rate(settings.cpu_percent / 100)},
                },
            }
        case _:
            return {
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": settings.cpu_percent},
                },
            }


def _behaviour() -> Json:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 4, "periodSeconds": 15},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": _CALM_S,
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 60}],
        },
    }


def _forecast_labels(workload: Workload, settings: ClusterSettings) -> dict[str, str]:
    """One series: an autoscaler would add up several."""
    return {
        "container": label_value(workload.name),
        "metric": str(Metric.CPU),
        "horizon_s": str(settings.forecast_horizon_s),
    }


def _keda(workload: Workload, i: Scale, settings: ClusterSettings) -> Manifest:
    chosen = ",".join(f"{name}={json.dumps(text)}" for name, text in _forecast_labels(workload, settings).items())
    return applied({
        "apiVersion": KEDA,
        "kind": KEDA_KIND,
        "metadata": metadata(workload, own_name(workload.name), i.key),
        "spec": {
            "scaleTargetRef": _target(workload),
            "minReplicaCount": i.replicas,
            "maxReplicaCount": max(i.replicas, settings.max_replicas),
            "pollingInterval": 15,
            "cooldownPeriod": _CALM_S,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behaviour()}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metricType": "Value",
                    "metadata": {
                        "serverAddress": settings.prometheus_url,
                        "query": f"max({settings.forecast_metric}{{{chosen}}})",
                        "threshold": f"{settings.cpu_percent / 100:.2f}",
                    },
                }
            ],
        },
    })  # fmt: skip


def vertical(workload: Workload, i: SetLimits, settings: ClusterSettings) -> tuple[Manifest, ...]:
    """The vertical autoscaler, and the limits of what runs: in place where pods are named, else by the template."""
    limits: dict[str, str] = {}
    if i.cpu_limit_cores is not None:
        limits["cpu"] = cores(i.cpu_limit_cores)
    if i.memory_limit_bytes is not None:
        limits["memory"] = memory(i.memory_limit_bytes)
    policy = {
        "containerName": workload.container,
        "mode": "Auto",
        "controlledResources": sorted(limits),
        "controlledValues": "RequestsAndLimits",
        "minAllowed": limits,
    }
    autoscaler = applied({
        "apiVersion": VPA,
        "kind": VPA_KIND,
        "metadata": metadata(workload, own_name(workload.name), i.key),
        "spec": {
            "targetRef": _target(workload),
            "updatePolicy": {"updateMode": settings.vpa_mode},
            "resourcePolicy": {"containerPolicies": [policy]},
        },
    })  # fmt: skip
    running = tuple(resized(workload, pod, limits) for pod in workload.pods) or (relimited(workload, limits, i.key),)
    return autoscaler, *running


def resized(workload: Workload, pod: str, limits: dict[str, str]) -> Manifest:
    """The limits of one running pod, changed in place (Kubernetes 1.33 and newer)."""
    return patched(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": workload.namespace},
            "spec": {"containers": [{"name": workload.container, "resources": _resources(workload, limits)}]},
        },
        "resize",
    )


def relimited(workload: Workload, limits: dict[str, str], key: str, **annotations: str) -> Manifest:
    """The limits in the workload's template: its pods are replaced one by one."""
    container = {"name": workload.container, "resources": _resources(workload, limits)}
    return deployment_patch(workload, {"containers": [container]}, key, annotations)


def _resources(workload: Workload, limits: dict[str, str]) -> Json:
    """Requests follow limits that they equal, and only those: a running pod's class of service cannot change."""
    return {"limits": limits, "requests": limits} if workload.guaranteed else {"limits": limits}


def deployment_patch(workload: Workload, pod_spec: Json, key: str, annotations: dict[str, str]) -> Manifest:
    """A patch of the workload's pod template. The annotations lie in the template: what changes them replaces pods."""
    template: Json = {"spec": pod_spec}
    if annotations:
        template["metadata"] = {"annotations": annotations}
    return patched({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": workload.name, "namespace": workload.namespace, "annotations": {f"{MANAGER}/key": key}},
        "spec": {"template": template},
    })  # fmt: skip


def placeholder(workload: Workload, key: str, settings: ClusterSettings, *, replicas: int = 1) -> Manifest:
    """A pod of the lowest priority, as large as one replica: while it waits for room, a node is added for it.

    With no replicas the room is given back; the Cluster Autoscaler then takes away what is not needed.
    """
    name = own_name(workload.name, "room")
    labels = {MANAGED_BY: MANAGER, "app.kubernetes.io/name": label_value(name)}
    size = {"cpu": cores(workload.cpu_limit_cores), "memory": memory(workload.memory_limit_bytes)}
    nobody: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": 65_535,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return applied({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(workload, name, key),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": PLACEHOLDER_CLASS,
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": False,
                    "containers": [
                        {
                            "name": "room",
                            "image": settings.placeholder_image,
                            "resources": {"requests": size, "limits": size},
                            "securityContext": nobody,
                        }
                    ],
                },
            },
        },
    })  # fmt: skip


def placeholder_class() -> Manifest:
    """The priority of placeholders, which belongs to the whole cluster: its administrator applies it once."""
    return applied({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": PLACEHOLDER_CLASS, "labels": {MANAGED_BY: MANAGER}},
        "value": -10,
        "globalDefault": False,
        "preemptionPolicy": "Never",
        "description": "Room that natwork-ray keeps for replicas; gives way to every other pod.",
    })  # fmt: skip


def _target(workload: Workload) -> Json:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": workload.name}
