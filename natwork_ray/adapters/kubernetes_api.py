"""The few calls of the Kubernetes API that the mitigations need, through the official client.

After the published API conventions: server-side apply with our field manager and strict field validation, strategic
merge with optimistic locking (`resourceVersion`), paged lists, `dryRun=All`. Rules kept: one namespace; every call is
bounded in time, and repeated when the server is busy or silent, which is harmless: calls state what shall be, not what
shall be added; an object of ours is only written where nobody else's has its name; refusals say which right is missing.

The client's calls block, so each runs in a thread. Credentials come from the named file, else from the pod's service
account, else from the usual file; nothing of them is kept or printed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from natwork_ray.adapters.kubernetes_objects import MANAGED_BY, MANAGER, Json, Manifest, Verb
from natwork_ray.errors import (
    ActionError,
    ConflictError,
    InputError,
    NatworkError,
    NotFoundError,
    PreconditionError,
    TimedOutError,
)

PLURALS = {
    "Deployment": "deployments",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "VerticalPodAutoscaler": "verticalpodautoscalers",
    "ScaledObject": "scaledobjects",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "NetworkPolicy": "networkpolicies",
    "VirtualService": "virtualservices",
    "DestinationRule": "destinationrules",
    "HTTPRoute": "httproutes",
}
MAX_OBJECTS = 10_000
PAGE = 500
_ATTEMPTS, _WAIT_S, _MOST_WAIT_S = 4, 0.5, 10.0
_AGAIN = frozenset({429, 500, 502, 503, 504})
_APPLY, _MERGE = "application/apply-patch+yaml", "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Access:
    """How the cluster is reached. `context` empty: the file's current one."""

    namespace: str = "default"
    kubeconfig: Path | None = None
    context: str = ""
    dry_run: Literal["none", "server"] = "none"
    timeout_s: float = 10.0


class KubernetesApi:
    """The API server, bounded to one namespace."""

    def __init__(
        self, access: Access, *, client: Any = None, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        """`client`: an ApiClient of the official client, for who has one already.

        Raises:
            PreconditionError: the client is not installed, or there are no usable credentials.
        """
        self.access, self._pause = access, pause
        self._client = _connected(access) if client is None else client
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self._core: Any = CoreV1Api(self._client)
        self._objects: Any = CustomObjectsApi(self._client)

    async def nodes(self) -> list[Json]:
        """All nodes of the cluster."""
        return await self._listed("list nodes", self._core.list_node)

    async def pods(self) -> list[Json]:
        """All pods of the namespace."""
        return await self._listed("list pods", self._core.list_namespaced_pod, namespace=self.access.namespace)

    async def services(self) -> list[Json]:
        """All services of the namespace."""
        return await self._listed("list services", self._core.list_namespaced_service, namespace=self.access.namespace)

    async def listed(self, api_version: str, kind: str) -> list[Json]:
        """All objects of a kind in the namespace; none where the cluster does not know the kind."""
        try:
            return await self._listed(
                f"list {PLURALS[kind]}", self._objects.list_namespaced_custom_object, **self._place(api_version, kind)
            )
        except NotFoundError:
            return []

    async def read(self, api_version: str, kind: str, name: str) -> Json:
        """One object.

        Raises:
            NotFoundError: there is none of that name, or the cluster does not know the kind.
        """
        found: Json = await self._call(
            f"get {PLURALS[kind]} {name}",
            self._objects.get_namespaced_custom_object,
            **self._place(api_version, kind),
            name=name,
        )
        return found

    async def write(self, manifest: Manifest, *, version: str = "") -> Json:
        """Bring a manifest into the cluster; the object as it is then (empty when it is gone). `version`: the
        `resourceVersion` that a patch was made for.

        Raises:
            ConflictError: somebody else's object has that name, or it has changed since `version`.
            ActionError: the API server finds it invalid.
            NotFoundError: nothing to patch, or the cluster does not know the kind.
        """
        if manifest.namespace != self.access.namespace:
            raise ActionError(
                f"{manifest.kind} {manifest.name} is outside the namespace {self.access.namespace}",
                hint="the administrator applies what belongs to the whole cluster",
            )
        what = f"{manifest.verb} {manifest.kind} {manifest.name}"
        if manifest.verb is Verb.DELETE:
            return await self._delete(manifest, what)
        document = manifest.document()
        if manifest.verb is Verb.APPLY:
            await self._require_ours(manifest)
            return await self._patch(manifest, what, document, _APPLY, force=True)
        if version:
            document["metadata"]["resourceVersion"] = version
        if manifest.subresource:
            return await self._resize(manifest, what, document)
        return await self._patch(manifest, what, document, _MERGE)

    async def _delete(self, manifest: Manifest, what: str) -> Json:
        try:
            if not await self._require_ours(manifest):
                return {}
            place = self._place(manifest.api_version, manifest.kind)
            call = self._objects.delete_namespaced_custom_object
            await self._call(what, call, **place, name=manifest.name, **self._dry())
        except NotFoundError:
            pass  # somebody was faster, or the cluster does not know the kind: it is not there, as was wanted
        return {}

    async def _patch(self, manifest: Manifest, what: str, document: Json, content_type: str, **more: Any) -> Json:
        found: Json = await self._call(
            what,
            self._objects.patch_namespaced_custom_object,
            **self._place(manifest.api_version, manifest.kind),
            name=manifest.name,
            body=document,
            field_manager=MANAGER,
            field_validation="Strict",
            _content_type=content_type,
            **self._dry(),
            **more,
        )
        return found

    async def _resize(self, manifest: Manifest, what: str, document: Json) -> Json:
        call = getattr(self._core, "patch_namespaced_pod_resize", None)
        if call is None:
            raise PreconditionError("this client cannot resize pods", hint="pip install 'kubernetes>=32'")
        found: Json = await self._call(
            f"{what}/{manifest.subresource}",
            call,
            name=manifest.name,
            namespace=manifest.namespace,
            body=document,
            field_manager=MANAGER,
            field_validation="Strict",
            _content_type=_MERGE,
            **self._dry(),
        )
        return found

    async def _require_ours(self, manifest: Manifest) -> bool:
        """Whether an object of ours is there already."""
        try:
            there = await self.read(manifest.api_version, manifest.kind, manifest.name)
        except NotFoundError:
            return False
        owner = (there["metadata"].get("labels") or {}).get(MANAGED_BY, "somebody")
        if owner != MANAGER:
            raise ConflictError(
                f"{manifest.kind} {manifest.name} belongs to {owner}", hint="rename it, or delete it if nobody needs it"
            )
        return True

    def _place(self, api_version: str, kind: str) -> dict[str, str]:
        group, _, version = api_version.partition("/")
        return {"group": group, "version": version, "namespace": self.access.namespace, "plural": PLURALS[kind]}

    def _dry(self) -> dict[str, str]:
        return {"dry_run": "All"} if self.access.dry_run == "server" else {}

    async def _listed(self, what: str, call: Callable[..., Any], **place: str) -> list[Json]:
        found: list[Json] = []
        more = ""
        while True:
            further = {"_continue": more} if more else {}
            page = await self._call(what, call, limit=PAGE, **place, **further)
            found += page.get("items") or []
            more = (page.get("metadata") or {}).get("continue") or ""
            if not more:
                return found
            if len(found) >= MAX_OBJECTS:
                raise InputError(f"{what}: more than {MAX_OBJECTS} objects", hint="use a namespace of its own")

    def _raw(self, call: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        # The client's own reading drops the object that comes with 201 Created.
        return call(**arguments, _request_timeout=self.access.timeout_s, _preload_content=False)

    async def _call(self, what: str, call: Callable[..., Any], **arguments: Any) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        wait_s, last = _WAIT_S, ""
        for attempt in range(1, _ATTEMPTS + 1):
            asked_s = wait_s
            try:
                return _json(await asyncio.to_thread(self._raw, call, arguments))
            except ApiException as error:
                status = int(error.status or 0)
                if status not in _AGAIN:
                    raise _refusal(what, status, error, self.access.namespace) from error
                last, asked_s = f"status {status}", _retry_after(error.headers, wait_s)
            except (HTTPError, OSError) as error:
                last = f"{type(error).__name__}"
            if attempt < _ATTEMPTS:
                await self._pause(min(asked_s, _MOST_WAIT_S))
                wait_s *= 2
        raise TimedOutError(
            f"the API server did not take {what!r} in {_ATTEMPTS} attempts: {last}",
            hint="is it up, and does it have time? What was asked can be asked again",
        )


def _json(answer: Any) -> Any:
    """The object that a call gave."""
    try:
        parsed = json.loads(answer.data)
    except (AttributeError, ValueError) as error:
        raise InputError(f"the API server's answer is no JSON: {error}", hint="is a proxy in between?") from error
    if not isinstance(parsed, dict):
        raise InputError("the API server's answer is no object", hint="is a proxy in between?")
    return parsed


def _refusal(what: str, status: int, error: Any, namespace: str) -> NatworkError:
    said = str(error.reason)
    with contextlib.suppress(TypeError, ValueError, LookupError):  # without a Status object the reason has to do
        said = str(json.loads(error.body)["message"])[:300]
    match status:
        case 401:
            return PreconditionError(f"{what}: the API server does not know us: {said}", hint="renew the credentials")
        case 403:
            return PreconditionError(
                f"{what}: not allowed: {said}", hint=f"natwork mitigations rbac --namespace {namespace} has the rights"
            )
        case 404:
            return NotFoundError(f"{what}: {said}", hint="is it there, and does the cluster know the kind?")
        case 409:
            return ConflictError(f"{what}: {said}", hint="somebody changed it meanwhile: read it again")
        case _:
            return ActionError(f"{what}: {status}: {said}", hint="the API server says which field it refuses")


def _retry_after(headers: Mapping[str, str] | None, otherwise_s: float) -> float:
    text = (headers or {}).get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else otherwise_s


def _connected(access: Access) -> Any:
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise PreconditionError(
            f"the Kubernetes client is missing: {error}", hint="pip install 'natwork-ray[kubernetes]'"
        ) from error
    settings = client.Configuration()
    from_file: Any = config.load_kube_config
    from_pod: Any = config.load_incluster_config
    try:
        if access.kubeconfig is not None:
            file = str(access.kubeconfig.expanduser())
            from_file(file, access.context or None, settings, persist_config=False)
        else:
            try:
                from_pod(settings)
            except config.ConfigException:
                from_file(None, access.context or None, settings, persist_config=False)
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise PreconditionError(
            f"no usable credentials for a cluster: {error}", hint="set kubernetes.kubeconfig and kubernetes.context"
        ) from error
    settings.retries = False  # we repeat ourselves, and know what may be repeated
    return client.ApiClient(settings)
