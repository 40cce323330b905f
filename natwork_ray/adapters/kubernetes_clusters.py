"""The cluster that the configuration names (`[kubernetes]`).

cluster = kubernetes_cluster(config.kubernetes, now_s=time.time)
"""

from __future__ import annotations

from collections.abc import Callable

from natwork_ray.adapters.kubernetes import KubernetesCluster
from natwork_ray.adapters.kubernetes_api import Access, KubernetesApi
from natwork_ray.adapters.kubernetes_objects import ClusterSettings
from natwork_ray.config import KubernetesConfig


def kubernetes_cluster(config: KubernetesConfig, *, now_s: Callable[[], float]) -> KubernetesCluster:
    """The cluster, as far as it can be without asking it anything.

    Raises:
        PreconditionError: the client or the credentials are missing.
    """
    access = Access(
        namespace=config.namespace,
        kubeconfig=config.kubeconfig,
        context=config.context,
        dry_run=config.dry_run,
        timeout_s=config.timeout_s,
    )
    return KubernetesCluster(KubernetesApi(access), cluster_settings(config), now_s=now_s)


def cluster_settings(config: KubernetesConfig) -> ClusterSettings:
    """What the objects depend on."""
    return ClusterSettings(
        mesh=config.mesh,
        predictive=config.predictive,
        prometheus_url=config.prometheus_url,
        requests_per_replica=config.requests_per_replica,
        vpa_mode=config.vpa_mode,
        forecast_horizon_s=config.forecast_horizon_s,
    )
