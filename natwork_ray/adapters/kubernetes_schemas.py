"""Is a manifest what the API server would accept? Checked offline, against the published schemas.

Kubernetes' own kinds are checked by `kubernetes-validate`, which carries the OpenAPI schemas of every release, and
strictly: a field that does not exist is an error. It has none of what is added to a cluster. For these kinds the module
holds reduced JSON schemas, written by this project from the published definitions (named at each): only the fields that
we write, with their types, patterns and enumerations, and no others. They find our mistakes; they are no copy of the
definitions.

A patch is no whole object. It is merged into the smallest valid object of its kind, by names where the API merges lists
by name, and the result is checked.

    validate(manifest, version="1.33")    # raises VerificationError where the schema is broken
"""

from __future__ import annotations

import copy
from typing import Any

from natwork_ray.adapters.kubernetes_objects import Json, Manifest, Verb
from natwork_ray.errors import PreconditionError, VerificationError

OLDEST = "1.30"  # the oldest release that is tested against
_NAMED_LISTS = frozenset({"containers"})

_TEXT: Json = {"type": "string", "minLength": 1}
_DURATION: Json = {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(h|m|s|ms))+$"}
_QUANTITY: Json = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|Mi|Gi|Ti|M|G|T)?$"}


def _object(required: str, **properties: Json) -> Json:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": required.split(),
    }


def _list(items: Json, most: int = 64) -> Json:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _one_of(*values: str) -> Json:
    return {"enum": list(values)}


_META = _object(
    "name namespace",
    name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"},
    namespace={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
    labels={"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
    annotations={"type": "object", "additionalProperties": {"type": "string"}},
)
_TARGET = _object("apiVersion kind name", apiVersion=_TEXT, kind=_TEXT, name=_TEXT)
_RULES = _object(
    "policies",
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    selectPolicy=_one_of("Max", "Min", "Disabled"),
    policies=_list(
        _object(
            "type value periodSeconds",
            type=_one_of("Pods", "Percent"),
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)

# CustomResourceDefinition verticalpodautoscalers.autoscaling.k8s.io, version v1 (kubernetes/autoscaler, Apache-2.0).
_VPA = _object(
    "targetRef",
    targetRef=_TARGET,
    updatePolicy=_object("updateMode", updateMode=_one_of("Off", "Initial", "Recreate", "InPlaceOrRecreate", "Auto")),
    resourcePolicy=_object(
        "containerPolicies",
        containerPolicies=_list(
            _object(
                "containerName",
                containerName=_TEXT,
                mode=_one_of("Auto", "Off"),
                controlledResources=_list(_one_of("cpu", "memory"), 2),
                controlledValues=_one_of("RequestsAndLimits", "RequestsOnly"),
                minAllowed={"type": "object", "additionalProperties": _QUANTITY},
                maxAllowed={"type": "object", "additionalProperties": _QUANTITY},
            ),
        ),
    ),
)
# CustomResourceDefinition scaledobjects.keda.sh, version v1alpha1, with the scaler "prometheus" (kedacore/keda).
_KEDA = _object(
    "scaleTargetRef triggers",
    scaleTargetRef=_TARGET,
    minReplicaCount={"type": "integer", "minimum": 0},
    maxReplicaCount={"type": "integer", "minimum": 1},
    pollingInterval={"type": "integer", "minimum": 1},
    cooldownPeriod={"type": "integer", "minimum": 0},
    advanced=_object(
        "horizontalPodAutoscalerConfig",
        horizontalPodAutoscalerConfig=_object("behavior", behavior=_object("", scaleUp=_RULES, scaleDown=_RULES)),
    ),
    triggers=_list(
        _object(
            "type metadata",
            type=_one_of("prometheus"),
            metricType=_one_of("AverageValue", "Value"),
            metadata=_object(
                "serverAddress query threshold",
                serverAddress={"type": "string", "pattern": r"^https?://"},
                query=_TEXT,
                threshold={"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$"},
            ),
        )
    ),
)
# CustomResourceDefinitions virtualservices and destinationrules of networking.istio.io, version v1 (istio/api).
_ISTIO_ROUTES = _object(
    "hosts http",
    hosts=_list(_TEXT),
    http=_list(
        _object(
            "route",
            route=_list(_object("destination", destination=_object("host", host=_TEXT))),
            retries=_object(
                "attempts",
                attempts={"type": "integer", "minimum": 0},
                perTryTimeout=_DURATION,
                retryOn={"type": "string", "pattern": r"^[a-z0-9-]+(,[a-z0-9-]+)*$"},
            ),
        )
    ),
)
_ISTIO_BALANCING = _object(
    "host trafficPolicy",
    host=_TEXT,
    trafficPolicy=_object(
        "",
        loadBalancer=_object("simple", simple=_one_of("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "PASSTHROUGH")),
        outlierDetection=_object(
            "",
            consecutiveGatewayErrors={"type": "integer", "minimum": 0},
            interval=_DURATION,
            baseEjectionTime=_DURATION,
            maxEjectionPercent={"type": "integer", "minimum": 0, "maximum": 100},
        ),
    ),
)
# CustomResourceDefinition httproutes.gateway.networking.k8s.io, version v1, experimental channel (GEP-1731).
_PORT: Json = {"type": "integer", "minimum": 1, "maximum": 65535}
_GATEWAY_ROUTE = _object(
    "parentRefs rules",
    parentRefs=_list(
        _object("name", group={"type": "string"}, kind=_TEXT, name=_TEXT, namespace=_TEXT, port=_PORT), 32
    ),
    rules=_list(
        _object(
            "backendRefs",
            backendRefs=_list(_object("name", name=_TEXT, port=_PORT), 16),
            retry=_object(
                "",
                attempts={"type": "integer", "minimum": 1},
                backoff={"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"},
                codes=_list({"type": "integer", "minimum": 400, "maximum": 599}),
            ),
        ),
        16,
    ),
)

CRDS: dict[tuple[str, str], Json] = {
    (version, kind): _object(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=_META,
        spec=spec,
    )
    for version, kind, spec in (
        ("autoscaling.k8s.io/v1", "VerticalPodAutoscaler", _VPA),
        ("keda.sh/v1alpha1", "ScaledObject", _KEDA),
        ("networking.istio.io/v1", "VirtualService", _ISTIO_ROUTES),
        ("networking.istio.io/v1", "DestinationRule", _ISTIO_BALANCING),
        ("gateway.networking.k8s.io/v1", "HTTPRoute", _GATEWAY_ROUTE),
    )
}

_POD_SPEC: Json = {"containers": [{"name": "", "image": "registry.example/image:1"}]}
_WHOLE: dict[str, Json] = {
    "Deployment": {
        "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": _POD_SPEC},
        }
    },
    "Pod": {"spec": _POD_SPEC},
}


def validate(manifest: Manifest, *, version: str | None = None) -> str:
    """The release that the manifest was checked against (the newest known one by default), or "custom" for a kind that
    is not Kubernetes' own. A deletion has nothing to check.

    Raises:
        VerificationError: the API server would refuse it.
        PreconditionError: `kubernetes-validate` is not installed, or knows no such release.
    """
    document = manifest.document()
    if manifest.verb is Verb.DELETE:
        return ""
    if manifest.verb is Verb.PATCH:
        document = completed(document)
    return validate_document(document, version=version)


def validate_document(document: Json, *, version: str | None = None) -> str:
    """As `validate`, for a whole object."""
    try:
        import jsonschema  # type: ignore[import-untyped]
        import kubernetes_validate
        from kubernetes_validate import utils
    except ImportError as error:
        raise PreconditionError(
            f"manifests cannot be checked: {error}", hint="pip install 'natwork-ray[kubernetes]'"
        ) from error
    kind, api = str(document.get("kind")), str(document.get("apiVersion"))
    schema = CRDS.get((api, kind))
    try:
        if schema is not None:
            jsonschema.Draft202012Validator(schema).validate(document)
            return "custom"
        release = version or str(kubernetes_validate.latest_version())
        return str(kubernetes_validate.validate(document, release, strict=True))
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the object"
        raise VerificationError(
            f"{kind} {document.get('metadata', {}).get('name')}: {where}: {error.message[:300]}",
            hint="the schema of this kind allows no such value",
        ) from error
    except utils.SchemaNotFoundError as error:
        raise VerificationError(f"{api} has no kind {kind}", hint="check apiVersion and kind") from error
    except (utils.VersionNotSupportedError, utils.InvalidSchemaError, LookupError) as error:
        raise PreconditionError(
            f"kubernetes-validate has no schemas of release {version}: {error}", hint="update it, or name another one"
        ) from error


def completed(patch: Json) -> Json:
    """The patch merged into the smallest valid object of its kind."""
    whole = copy.deepcopy(_WHOLE[patch["kind"]])
    named = _containers(patch)
    pods = whole["spec"]["template"]["spec"] if patch["kind"] == "Deployment" else whole["spec"]
    pods["containers"] = [{**_POD_SPEC["containers"][0], "name": name} for name in named or ["a"]]
    merged: Json = merge(whole, patch)
    return merged


def _containers(patch: Json) -> list[str]:
    spec = patch.get("spec", {})
    pods = spec.get("template", {}).get("spec", {}) if patch["kind"] == "Deployment" else spec
    return [container["name"] for container in pods.get("containers", [])]


def merge(whole: Any, patch: Any, name: str = "") -> Any:
    """Kubernetes' strategic merge, as far as our patches need it: objects by key, containers by name, null removes."""
    if isinstance(whole, dict) and isinstance(patch, dict):
        merged = {key: item for key, item in whole.items() if patch.get(key, ...) is not None}
        merged.update({k: merge(whole.get(k), item, k) for k, item in patch.items() if item is not None})
        return merged
    if isinstance(whole, list) and isinstance(patch, list) and name in _NAMED_LISTS:
        fresh = {item["name"]: item for item in patch}
        kept = [merge(item, fresh.pop(item["name"])) if item["name"] in fresh else item for item in whole]
        return [*kept, *fresh.values()]
    return copy.deepcopy(patch)
