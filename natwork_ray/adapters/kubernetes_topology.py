"""From what the API server says of nodes, pods, Deployments and Services to the loop's topology.

Pure. A Deployment is a container of the loop: a service's replicas seen as one unit of placement. What Kubernetes does
not know is said by labels and annotations of the operator's:

| Where | What | Otherwise |
|---|---|---|
| Deployment label `app.kubernetes.io/component` | service, whose learnt profile applies | the Deployment's name |
| Deployment label `app.kubernetes.io/part-of` | network service | the namespace |
| Deployment label `natwork-ray/slice` | slice | `default` |
| Deployment annotation `natwork-ray/depends-on` | whom it calls, separated by commas | nobody |
| Deployment annotation `kubectl.kubernetes.io/default-container` | the container in the pod that counts | the first |
| Node label `natwork-ray/role` | edge, core or cloud | cloud |

Limits are those of the pods that run (they may have been resized), the smallest where they differ; a pod without limits
could use its node alone, so it counts with the node's size. Links are left out: Kubernetes measures none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from natwork_ray.adapters.kubernetes_objects import MANAGED_BY, MANAGER, Json, Workload
from natwork_ray.domain.topology import Container, Node, NodeRole, Slice, Topology
from natwork_ray.errors import InputError, NotFoundError

DEPENDS_ON, SLICE, ROLE = f"{MANAGER}/depends-on", f"{MANAGER}/slice", f"{MANAGER}/role"
_COMPONENT, _PART_OF = "app.kubernetes.io/component", "app.kubernetes.io/part-of"
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_DEFAULT_SLICE = "default"


def topology(nodes: Iterable[Json], deployments: Iterable[Json], pods: Iterable[Json]) -> Topology:
    """What runs where. Deployments of ours (placeholders) are not part of it.

    Raises:
        InputError: an answer of the API server that makes no sense.
    """
    pods = list(pods)
    ready = tuple(_node(n) for n in nodes if not (n.get("spec") or {}).get("unschedulable"))
    sizes = {n.name: n for n in ready}
    containers = tuple(_container(d, pods, sizes) for d in deployments if not is_ours(d))
    slices = {c.slice for c in containers}
    return Topology(
        nodes=ready,
        links=(),
        slices=tuple(Slice(name=name, description="by label natwork-ray/slice") for name in sorted(slices)),
        containers=containers,
    )


def workload(name: str, deployments: Iterable[Json], pods: Iterable[Json], services: Iterable[Json]) -> Workload:
    """What the mitigations of a Deployment need to know.

    Raises:
        NotFoundError: there is no such Deployment, or it is none of the operator's.
    """
    by_name = {_name(d): d for d in deployments if not is_ours(d)}
    found = by_name.get(name)
    if found is None:
        raise NotFoundError(
            f"there is no Deployment {name!r}", hint=f"there are: {', '.join(sorted(by_name)) or 'none'}"
        )
    running = _running(found, pods)
    meant = _main(found)
    spec = _limits(found, running)
    service, port = _service(found, services)
    callees = tuple((n, tuple(sorted(_selector(by_name[n]).items()))) for n in _depends_on(found) if n in by_name)
    return Workload(
        namespace=str(found["metadata"].get("namespace", "default")),
        name=name,
        container=meant,
        selector=tuple(sorted(_selector(found).items())),
        replicas=_replicas(found),
        cpu_limit_cores=spec.get("cpu", 0.0),
        memory_limit_bytes=spec.get("memory", 0.0),
        service=service,
        port=port,
        node=_most_common(p["spec"].get("nodeName", "") for p in running),
        pods=tuple(sorted(_name(p) for p in running)),
        callees=callees,
        guaranteed=all(_guaranteed(p, meant) for p in running),
    )


def is_ours(thing: Json) -> bool:
    """Whether we made it."""
    return (thing["metadata"].get("labels") or {}).get(MANAGED_BY) == MANAGER


def quantity(text: Any) -> float:
    """A Kubernetes quantity as a number.

    Raises:
        InputError: it is none.
    """
    from kubernetes.utils import parse_quantity

    try:
        return float(parse_quantity(text))  # type: ignore[no-untyped-call]
    except (ValueError, ArithmeticError, TypeError) as error:
        raise InputError(f"{text!r} is no quantity: {error}", hint="does a proxy change the answers?") from error


def _node(node: Json) -> Node:
    size = node["status"]["allocatable"]
    role = (node["metadata"].get("labels") or {}).get(ROLE, NodeRole.CLOUD)
    if role not in tuple(NodeRole):
        raise InputError(f"node {_name(node)} has the role {role!r}", hint=f"{ROLE} is edge, core or cloud")
    return Node(
        name=_name(node),
        role=NodeRole(role),
        cpu_cores=quantity(size["cpu"]),
        memory_bytes=quantity(size["memory"]),
    )


def _container(deployment: Json, pods: Iterable[Json], nodes: Mapping[str, Node]) -> Container:
    labels = deployment["metadata"].get("labels") or {}
    running = _running(deployment, pods)
    node = _most_common(p["spec"].get("nodeName", "") for p in running)
    limits = _limits(deployment, running)
    there = nodes.get(node)
    return Container(
        name=_name(deployment),
        service=labels.get(_COMPONENT, _name(deployment)),
        network_service=labels.get(_PART_OF, deployment["metadata"].get("namespace", "default")),
        slice=labels.get(SLICE, _DEFAULT_SLICE),
        node=node,
        replicas=_replicas(deployment),
        cpu_limit_cores=limits.get("cpu", there.cpu_cores if there else 0.0),
        memory_limit_bytes=limits.get("memory", there.memory_bytes if there else 0.0),
        depends_on=_depends_on(deployment),
    )


def _running(deployment: Json, pods: Iterable[Json]) -> list[Json]:
    wanted = _selector(deployment).items()
    return [
        p
        for p in pods
        if wanted <= (p["metadata"].get("labels") or {}).items()
        and p.get("status", {}).get("phase") == "Running"
        and not p["metadata"].get("deletionTimestamp")
    ]


def _limits(deployment: Json, running: list[Json]) -> dict[str, float]:
    meant = _main(deployment)
    specs = [p["spec"] for p in running] or [deployment["spec"]["template"]["spec"]]
    found: dict[str, float] = {}
    for spec in specs:
        limits = (_resources(spec, meant).get("limits")) or {}
        for name in ("cpu", "memory"):
            if name in limits:
                found[name] = min(found.get(name, float("inf")), quantity(limits[name]))
    return found


def _guaranteed(pod: Json, meant: str) -> bool:
    resources = _resources(pod["spec"], meant)
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    return all(quantity(requests.get(name, limit)) == quantity(limit) for name, limit in limits.items())


def _resources(spec: Json, meant: str) -> Json:
    for container in spec.get("containers") or ():
        if container["name"] == meant:
            resources: Json = container.get("resources") or {}
            return resources
    return {}


def _main(deployment: Json) -> str:
    template = deployment["spec"]["template"]
    notes = (template.get("metadata") or {}).get("annotations") or {}
    return str(notes.get(_DEFAULT_CONTAINER) or template["spec"]["containers"][0]["name"])


def _service(deployment: Json, services: Iterable[Json]) -> tuple[str, int]:
    """The first Service, by name, that selects the Deployment's pods; the Deployment's own name where there is none."""
    labels = ((deployment["spec"]["template"].get("metadata") or {}).get("labels") or {}).items()
    for service in sorted(services, key=_name):
        selector = (service["spec"].get("selector") or {}).items()
        if selector and selector <= labels:
            ports = service["spec"].get("ports") or [{"port": 80}]
            return _name(service), int(ports[0]["port"])
    return _name(deployment), 80


def _selector(deployment: Json) -> dict[str, str]:
    return dict(deployment["spec"]["selector"].get("matchLabels") or {})


def _depends_on(deployment: Json) -> tuple[str, ...]:
    text = (deployment["metadata"].get("annotations") or {}).get(DEPENDS_ON, "")
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _replicas(deployment: Json) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _most_common(names: Iterable[str]) -> str:
    counts = Counter(name for name in names if name)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else ""


def _name(thing: Json) -> str:
    return str(thing["metadata"]["name"])
