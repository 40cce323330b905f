"""Mesh retries, placement, disruption budgets and blocked sources as Kubernetes objects (D3.3 Table 4, section 6.3).

Pure. Written after the published APIs networking.istio.io/v1, gateway.networking.k8s.io/v1 (`retry` is in its
experimental channel), policy/v1, networking.k8s.io/v1 and apps/v1. Decisions:

- Only what cannot have reached the server is tried again: a lost connection, a refused stream. A request that was being
  worked on may have had its effect, and the mesh does not know which methods are safe.
- Retries alone make an overload worse. Two, bounded in time, and beside them what takes a bad endpoint out for a while.
- A NetworkPolicy can only allow. To block sources means to allow everybody else, and two such policies would allow each
  other's sources: so there is one policy per workload, with every blocked source in it.
- Affinities are preferences: a pod that runs far away is better than one that does not run.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping

from natwork_ray.adapters.kubernetes_objects import (
    MANAGER,
    ClusterSettings,
    Json,
    Manifest,
    Workload,
    applied,
    deleted,
    memory,
    metadata,
    own_name,
)
from natwork_ray.adapters.kubernetes_scaling import deployment_patch
from natwork_ray.domain.actions import MeshRetry, Migrate, Restart
from natwork_ray.errors import ActionError, PreconditionError

BLOCKED = f"{MANAGER}/blocked"  # JSON: source -> when it is let in again, seconds since 1970
RESTARTED_FOR = f"{MANAGER}/restarted-for"
MAX_BLOCKED = 64
_ISTIO, _GATEWAY = "networking.istio.io/v1", "gateway.networking.k8s.io/v1"
_TRY_TIMEOUT, _ATTEMPTS = "2s", 2
_UNDONE = "connect-failure,refused-stream,reset-before-request"
_HOST, _ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"


def mesh(workload: Workload, i: MeshRetry, settings: ClusterSettings) -> tuple[Manifest, ...]:
    """Retries and balancing around slow connections, or their removal.

    Raises:
        PreconditionError: the cluster has no mesh.
    """
    kinds: tuple[tuple[str, Callable[[Workload], Json]], ...]
    match settings.mesh:
        case "none":
            raise PreconditionError(
                f"there is no service mesh around {workload.name}", hint="set kubernetes.mesh to istio or gateway"
            )
        case "istio":
            kinds = (("VirtualService", _routes), ("DestinationRule", _balancing))
            version = _ISTIO
        case "gateway":
            kinds = (("HTTPRoute", _gateway_route),)
            version = _GATEWAY
    name = own_name(workload.name)
    if not i.enabled:
        return tuple(deleted(version, kind, workload.namespace, name) for kind, _ in kinds)
    return tuple(
        applied({
            "apiVersion": version,
            "kind": kind,
            "metadata": metadata(workload, name, i.key),
            "spec": spec(workload),
        })
        for kind, spec in kinds
    )  # fmt: skip


def host(workload: Workload) -> str:
    """The workload's Service as a mesh names it: in full, since a short name depends on who reads it."""
    return f"{workload.service}.{workload.namespace}.svc.cluster.local"


def _routes(workload: Workload) -> Json:
    return {
        "hosts": [host(workload)],
        "http": [
            {
                "route": [{"destination": {"host": host(workload)}}],
                "retries": {"attempts": _ATTEMPTS, "perTryTimeout": _TRY_TIMEOUT, "retryOn": _UNDONE},
            }
        ],
    }


def _balancing(workload: Workload) -> Json:
    return {
        "host": host(workload),
        "trafficPolicy": {
            "loadBalancer": {"simple": "LEAST_REQUEST"},
            "outlierDetection": {
                "consecutiveGatewayErrors": 5,
                "interval": "10s",
                "baseEjectionTime": "30s",
                "maxEjectionPercent": 50,
            },
        },
    }


def _gateway_route(workload: Workload) -> Json:
    return {
        "parentRefs": [{"group": "", "kind": "Service", "name": workload.service}],
        "rules": [
            {
                "backendRefs": [{"name": workload.service, "port": workload.port}],
                # What an overloaded or starting server says before it has begun.
                "retry": {"attempts": _ATTEMPTS, "backoff": "100ms", "codes": [503]},
            }
        ],
    }


def replacement(workload: Workload, i: Migrate) -> Manifest:
    """New pods near whom the workload calls, away from the node they leave, preferably on the target.

    Not a live migration: replicas are replaced one by one and sessions on the old ones end.
    """
    preferred: list[Json] = [
        _node_term(100, "In", i.target),
        _node_term(50, "NotIn", i.source),
    ]
    near: list[Json] = []
    for _, labels in workload.callees:
        for weight, where in ((60, _HOST), (30, _ZONE)):
            term = {"labelSelector": {"matchLabels": dict(labels)}, "topologyKey": where}
            near.append({"weight": weight, "podAffinityTerm": term})
    affinity: Json = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    if near:
        affinity["podAffinity"] = {"preferredDuringSchedulingIgnoredDuringExecution": near}
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": where,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": workload.labels()},
        }
        for where in (_ZONE, _HOST)
    ]
    return deployment_patch(
        workload, {"affinity": affinity, "topologySpreadConstraints": spread}, i.key, {RESTARTED_FOR: i.key}
    )


def _node_term(weight: int, operator: str, node: str) -> Json:
    return {
        "weight": weight,
        "preference": {"matchExpressions": [{"key": _HOST, "operator": operator, "values": [node]}]},
    }


def restart(workload: Workload, i: Restart) -> tuple[Manifest, ...]:
    """A memory limit that ends what exceeds it, a restart of every replica, and a budget that keeps the others up."""
    limits = {"memory": memory(workload.memory_limit_bytes)}
    return disruption_budget(workload, i.key), deployment_patch(
        workload,
        # A pod that exceeds the limit is killed, and this policy, the only one a Deployment may have, starts it again.
        {"restartPolicy": "Always", "containers": [{"name": workload.container, "resources": {"limits": limits}}]},
        i.key,
        {RESTARTED_FOR: i.key},
    )


def disruption_budget(workload: Workload, key: str) -> Manifest:
    """At most one replica is away at a time. Not "all but one are there": one replica could then never be moved."""
    return applied({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(workload, own_name(workload.name), key),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": workload.labels()}},
    })  # fmt: skip


def policy_name(workload: Workload) -> str:
    """Name of the one NetworkPolicy that a workload's blocked sources are in."""
    return own_name(workload.name, "block")


def blocked(workload: Workload, sources: Mapping[str, float], key: str) -> Manifest:
    """The policy that lets everybody in but `sources` (CIDR -> when it ends); its removal when there are none.

    Raises:
        ActionError: a source is no network, or half the world; or there are too many.
    """
    if not sources:
        return deleted("networking.k8s.io/v1", "NetworkPolicy", workload.namespace, policy_name(workload))
    if len(sources) > MAX_BLOCKED:
        raise ActionError(f"{len(sources)} sources are blocked from {workload.name}", hint=f"at most {MAX_BLOCKED}")
    networks = sorted((checked_source(s) for s in sources), key=lambda n: (n.version, n))
    everybody: Json = {
        "from": [
            _all_but("0.0.0.0/0", [str(n) for n in networks if n.version == 4]),
            _all_but("::/0", [str(n) for n in networks if n.version == 6]),
            {"namespaceSelector": {}},  # the cluster's own pods, whatever their addresses
        ]
    }
    notes = {BLOCKED: json.dumps(dict(sorted(sources.items())))}
    meta = metadata(workload, policy_name(workload), key, notes)
    return applied({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            "podSelector": {"matchLabels": workload.labels()},
            "policyTypes": ["Ingress"],
            "ingress": [everybody],
        },
    })  # fmt: skip


def checked_source(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A source as a network.

    Raises:
        ActionError: it is none, or it is everybody.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ActionError(f"source {text!r} is no network: {error}", hint="for example 203.0.113.0/24") from error
    if network.prefixlen == 0:
        raise ActionError(f"blocking {text} cuts the workload off", hint="name the attacking network only")
    return network


def _all_but(world: str, excluded: list[str]) -> Json:
    block: Json = {"cidr": world}
    if excluded:
        block["except"] = excluded
    return {"ipBlock": block}
