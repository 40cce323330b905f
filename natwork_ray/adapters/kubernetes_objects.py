"""What every Kubernetes object of ours has in common: workload, manifest, labels, names, quantities.

Pure. Rules kept: names come from the workload alone, so that applying twice changes nothing and two decisions about one
workload meet in one object; every object says who made it (`app.kubernetes.io/managed-by`), for which workload, and
by which instruction (`natwork-ray/key`); numbers are written as Kubernetes' canonical quantities.

    >>> cores(0.75), memory(1536 * 2**20), memory(1000)
    ('750m', '1536Mi', '1000')
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from natwork_ray.domain.topology import Container
from natwork_ray.errors import UsageError

MANAGER = "natwork-ray"  # field manager of server-side apply, and value of managed-by
MANAGED_BY = "app.kubernetes.io/managed-by"
NAME_LABEL = "app.kubernetes.io/name"
WORKLOAD_LABEL = f"{MANAGER}/workload"
KEY = f"{MANAGER}/key"
MAX_REPLICAS = 64
_MAX_NAME = 52  # leaves room for the hash that a Deployment appends to its pods' names
Json = dict[str, Any]


class Verb(StrEnum):
    """How a manifest reaches the cluster."""

    APPLY = "apply"  # server-side apply of an object that is ours as a whole
    PATCH = "patch"  # strategic merge into an object that is somebody else's
    DELETE = "delete"  # an object of ours; harmless when it is not there


@dataclass(frozen=True)
class Manifest:
    """One object, or one patch of one. `text` is its canonical JSON, so that manifests are compared by value."""

    verb: Verb
    api_version: str
    kind: str
    namespace: str  # empty for objects of the whole cluster
    name: str
    text: str
    subresource: str = ""

    def document(self) -> Json:
        """The object as JSON types; the caller's own."""
        parsed: Json = json.loads(self.text)
        return parsed


@dataclass(frozen=True)
class ClusterSettings:
    """What the objects depend on beside the workload. See the keys of `[kubernetes]` in docs/configuration.md.

    `request_metric` and `forecast_metric` are the names under which the metrics adapter offers the application's
    requests per second, and the upper edge of our forecasts, of which the one `forecast_horizon_s` ahead is followed.
    """

    mesh: Literal["istio", "gateway", "none"] = "istio"
    predictive: Literal["external-metric", "keda"] = "external-metric"
    prometheus_url: str = "http://prometheus.monitoring:9090"
    requests_per_replica: float = 50.0
    vpa_mode: Literal["Off", "Initial", "Recreate", "InPlaceOrRecreate"] = "Initial"
    max_replicas: int = 8
    cpu_percent: int = 70
    request_metric: str = "http_requests_per_second"
    forecast_metric: str = "natwork_forecast_upper"
    forecast_horizon_s: int = 100
    placeholder_image: str = "registry.k8s.io/pause:3.10"


@dataclass(frozen=True)
class Workload:
    """A Deployment, and what its mitigations need to know of it.

    Attributes:
        container: name of the container in the pod that is meant, where a pod has several.
        selector: labels by which its pods are found.
        service: name of the Service in front of it.
        node: where most of its pods run; empty when none does.
        pods: names of its running pods; empty when nobody asked a cluster.
        callees: whom it calls, with the labels of their pods.
        port: of the Service.
        guaranteed: requests equal limits, as they do where only limits are given.
    """

    namespace: str
    name: str
    container: str
    selector: tuple[tuple[str, str], ...]
    replicas: int
    cpu_limit_cores: float
    memory_limit_bytes: float
    service: str
    node: str = ""
    pods: tuple[str, ...] = ()
    callees: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    guaranteed: bool = True
    port: int = 80

    @classmethod
    def of(cls, container: Container, namespace: str) -> Workload:
        """A workload as the topology has it, with the labels that Kubernetes recommends."""
        return cls(
            namespace=namespace,
            name=container.name,
            container=container.name,
            selector=((NAME_LABEL, container.name),),
            replicas=container.replicas,
            cpu_limit_cores=container.cpu_limit_cores,
            memory_limit_bytes=container.memory_limit_bytes,
            service=container.name,
            node=container.node,
            callees=tuple((name, ((NAME_LABEL, name),)) for name in container.depends_on),
        )

    def labels(self) -> dict[str, str]:
        """The selector as an object has it."""
        return dict(self.selector)


def metadata(workload: Workload, name: str, key: str, annotations: Mapping[str, str] | None = None) -> Json:
    """Metadata of an object of ours."""
    return {
        "name": name,
        "namespace": workload.namespace,
        "labels": {MANAGED_BY: MANAGER, WORKLOAD_LABEL: label_value(workload.name)},
        "annotations": {KEY: key, **(annotations or {})},
    }


def applied(document: Json) -> Manifest:
    """A whole object of ours."""
    return _manifest(Verb.APPLY, document)


def patched(document: Json, subresource: str = "") -> Manifest:
    """A patch of somebody else's object; the document has only what changes, and what names the object."""
    return _manifest(Verb.PATCH, document, subresource)


def deleted(api_version: str, kind: str, namespace: str, name: str) -> Manifest:
    """An object of ours that goes."""
    return _manifest(
        Verb.DELETE, {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}}
    )


def _manifest(verb: Verb, document: Json, subresource: str = "") -> Manifest:
    meta = document["metadata"]
    return Manifest(
        verb=verb,
        api_version=document["apiVersion"],
        kind=document["kind"],
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        text=json.dumps(document, allow_nan=False, separators=(",", ":"), sort_keys=True),
        subresource=subresource,
    )


def own_name(workload: str, what: str = "") -> str:
    """Name of an object of ours for a workload: a DNS label, always the same, and never that of another workload."""
    full = "-".join(part for part in (MANAGER, what, workload) if part)
    if len(full) <= _MAX_NAME:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return f"{full[: _MAX_NAME - 9].rstrip('-.')}-{digest}"


def label_value(text: str) -> str:
    """A name as a label can hold it (63 characters)."""
    return text if len(text) <= 63 else f"{text[:54].rstrip('-.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def cores(value: float) -> str:
    """CPU as a quantity, in millicores, never rounded down to less than one.

    Raises:
        UsageError: not finite, or not above zero.
    """
    milli = math.ceil(_positive(value, "CPU cores") * 1000 - 1e-6)
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def memory(value: float) -> str:
    """Bytes as a quantity, in the largest binary unit that is exact, rounded up to whole bytes.

    Raises:
        UsageError: not finite, or not above zero.
    """
    whole = math.ceil(_positive(value, "bytes of memory"))
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if whole % size == 0:
            return f"{whole // size}{unit}"
    return str(whole)


def rate(value: float) -> str:
    """A metric's target as a quantity with three decimals at most.

    Raises:
        UsageError: not finite, or not above zero.
    """
    milli = max(1, round(_positive(value, "requests per second") * 1000))
    return f"{milli}m" if milli % 1000 else str(milli // 1000)


def _positive(value: float, what: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{value} {what}", hint="a quantity here is finite and above zero")
    return value
