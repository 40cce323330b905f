"""The rights that the mitigations need in a cluster, and no more: what its administrator applies once.

After the published API rbac.authorization.k8s.io/v1. Pure. All that is changed lies in one namespace (Role); of the
whole cluster, only nodes are listed (ClusterRole). There is no right to read secrets, to run commands in pods, to
delete workloads or to give rights. Server-side apply needs `create` and `patch` of what is ours, and `get` to see
whether it is. A test lets every mitigation run under exactly these rules, and fails for a rule that nothing needed.

    documents(ClusterSettings(), namespace="shop")
"""

from __future__ import annotations

from natwork_ray.adapters.kubernetes_objects import MANAGED_BY, MANAGER, ClusterSettings, Json
from natwork_ray.adapters.kubernetes_scaling import placeholder_class

_RBAC, _GROUP = "rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io"
_OWN = ["create", "delete", "get", "patch"]
_OWN_AND_OTHERS = ["create", "delete", "get", "list", "patch"]


def rules(settings: ClusterSettings) -> list[Json]:
    """What may be done in the namespace."""
    found = [
        _rule("", ["pods", "services"], ["list"]),
        _rule("", ["pods/resize"], ["patch"]),
        _rule("apps", ["deployments"], ["create", "get", "list", "patch"]),
        _rule("autoscaling", ["horizontalpodautoscalers"], _OWN_AND_OTHERS),
        _rule("autoscaling.k8s.io", ["verticalpodautoscalers"], _OWN),
        _rule("policy", ["poddisruptionbudgets"], ["create", "get", "patch"]),
        _rule("networking.k8s.io", ["networkpolicies"], _OWN_AND_OTHERS),
        # An autoscaler of KEDA's must not be fought either, also where we make none.
        _rule("keda.sh", ["scaledobjects"], _OWN_AND_OTHERS if settings.predictive == "keda" else ["get", "list"]),
    ]
    if settings.mesh == "istio":
        found.append(_rule("networking.istio.io", ["virtualservices"], _OWN_AND_OTHERS))
        found.append(_rule("networking.istio.io", ["destinationrules"], _OWN))
    elif settings.mesh == "gateway":
        found.append(_rule("gateway.networking.k8s.io", ["httproutes"], _OWN))
    return found


def cluster_rules() -> list[Json]:
    """What may be done in the whole cluster."""
    return [_rule("", ["nodes"], ["list"])]


def documents(settings: ClusterSettings, *, namespace: str) -> list[Json]:
    """The account, its roles and bindings, and the priority of placeholders, in the order to apply them."""
    account = {"kind": "ServiceAccount", "name": MANAGER, "namespace": namespace}
    everywhere = f"{MANAGER}-{namespace}"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(MANAGER, namespace)},
        {"apiVersion": _RBAC, "kind": "Role", "metadata": _metadata(MANAGER, namespace), "rules": rules(settings)},
        {
            "apiVersion": _RBAC,
            "kind": "RoleBinding",
            "metadata": _metadata(MANAGER, namespace),
            "roleRef": {"apiGroup": _GROUP, "kind": "Role", "name": MANAGER},
            "subjects": [account],
        },
        {"apiVersion": _RBAC, "kind": "ClusterRole", "metadata": _metadata(everywhere), "rules": cluster_rules()},
        {
            "apiVersion": _RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": _metadata(everywhere),
            "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": everywhere},
            "subjects": [account],
        },
        placeholder_class().document(),
    ]


def _metadata(name: str, namespace: str = "") -> Json:
    place = {"namespace": namespace} if namespace else {}
    return {"name": name, **place, "labels": {MANAGED_BY: MANAGER}}


def _rule(group: str, resources: list[str], verbs: list[str]) -> Json:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
