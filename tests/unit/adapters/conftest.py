"""A strict API server in this process, for what cannot be had here: a real one.

It is written from the published API conventions, not from our client: objects are checked against the published schemas
strictly; rights are checked by rule; server-side apply keeps field owners, takes away what its manager no longer states
and refuses what belongs to others; patches for an outdated version are refused; `dryRun` stores nothing; lists come in
pages; Deployments roll out one look at a time.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from natwork_ray.adapters.kubernetes_schemas import validate_document
from natwork_ray.errors import VerificationError

Json = dict[str, Any]
NAMESPACE = "shop"
TOKEN = "a-token-of-the-test"
KINDS = {
    ("v1", "pods"): "Pod",
    ("v1", "services"): "Service",
    ("v1", "nodes"): "Node",
    ("apps/v1", "deployments"): "Deployment",
    ("autoscaling/v2", "horizontalpodautoscalers"): "HorizontalPodAutoscaler",
    ("policy/v1", "poddisruptionbudgets"): "PodDisruptionBudget",
    ("networking.k8s.io/v1", "networkpolicies"): "NetworkPolicy",
    ("autoscaling.k8s.io/v1", "verticalpodautoscalers"): "VerticalPodAutoscaler",
    ("keda.sh/v1alpha1", "scaledobjects"): "ScaledObject",
    ("networking.istio.io/v1", "virtualservices"): "VirtualService",
    ("networking.istio.io/v1", "destinationrules"): "DestinationRule",
    ("gateway.networking.k8s.io/v1", "httproutes"): "HTTPRoute",
}


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass
class ApiServer:
    """The server's state, and what a test may do to it. `rules` None: everything is allowed."""

    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)  # (api version, plural, name)
    kinds: dict[tuple[str, str], str] = field(default_factory=lambda: dict(KINDS))
    rules: list[Json] | None = None
    used: set[tuple[str, str, str]] = field(default_factory=set)  # (group, resource, verb)
    faults: deque[RefusedError | float] = field(default_factory=deque)  # answers in place of ours, or seconds to wait
    requests: list[tuple[str, str]] = field(default_factory=list)
    before_patch: Any = None  # called once before the next patch: somebody else is faster
    resize: bool = True
    rollout_looks: int = 2
    url: str = ""
    _version: int = 100
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # What a test sets up, and looks at.

    def put(self, api: str, plural: str, document: Json) -> Json:
        """Store an object as the operator would have made it."""
        with self._lock:
            whole = copy.deepcopy(document)
            whole["metadata"].setdefault("namespace", NAMESPACE)
            whole["metadata"]["resourceVersion"] = self._next()
            whole["metadata"].setdefault("generation", 1)
            self.objects[api, plural, whole["metadata"]["name"]] = whole
            return whole

    def get(self, api: str, plural: str, name: str) -> Json:
        """An object; KeyError when it is not there."""
        return self.objects[api, plural, name]

    def names(self, plural: str) -> list[str]:
        """Names of all objects of a kind."""
        return sorted(name for _, kind, name in self.objects if kind == plural)

    def deployment(
        self, name: str, *, replicas: int = 2, cpu: str = "500m", memory: str = "256Mi", **more: Any
    ) -> Json:
        """A Deployment of the operator's with its Service and its running pods."""
        labels = {"app.kubernetes.io/name": name}
        limits = {
            "limits": {"cpu": cpu, "memory": memory},
            "requests": more.get("requests", {"cpu": cpu, "memory": memory}),
        }
        containers = [{"name": "main", "image": "registry.example/shop:1", "resources": limits}]
        made = self.put("apps/v1", "deployments", {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels | more.get("labels", {}), "annotations": more.get("notes", {})},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
            },
        })  # fmt: skip
        self.put("v1", "services", {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"{name}-svc"},
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        })  # fmt: skip
        self._run_pods(made, node=more.get("node", "edge-1"))
        self._status(made, made["spec"]["replicas"])
        return made

    def node(self, name: str, **labels: str) -> None:
        self.put("v1", "nodes", {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {k.replace("__", "/"): v for k, v in labels.items()}},
            "spec": {},
            "status": {"allocatable": {"cpu": "8", "memory": "16Gi"}},
        })  # fmt: skip

    @staticmethod
    def refusal(status: int, **headers: str) -> RefusedError:
        """For `faults`."""
        return RefusedError(status, "because the test says so", headers)

    # The cluster behind it.

    def _next(self) -> str:
        self._version += 1
        return str(self._version)

    def _run_pods(self, deployment: Json, node: str = "edge-1", *, afresh: bool = True) -> None:
        name = deployment["metadata"]["name"]
        wanted = deployment["spec"].get("replicas", 1)
        for old in [key for key in self.objects if key[1] == "pods" and key[2].rpartition("-")[0] == name]:
            if afresh or int(old[2].rpartition("-")[2]) >= wanted:
                del self.objects[old]
        for n in range(wanted):
            if ("v1", "pods", f"{name}-{n}") in self.objects:
                continue
            spec = copy.deepcopy(deployment["spec"]["template"]["spec"])
            self.put("v1", "pods", {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"{name}-{n}", "labels": deployment["spec"]["template"]["metadata"]["labels"]},
                "spec": {**spec, "nodeName": node},
                "status": {"phase": "Running", "podIPs": [{"ip": f"10.42.{len(name)}.{n + 1}"}]},
            })  # fmt: skip

    def _status(self, deployment: Json, updated: int) -> None:
        replicas = deployment["spec"].get("replicas", 1)
        recreate = deployment["spec"].get("strategy", {}).get("type") == "Recreate"
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": updated,
            "availableReplicas": updated if recreate else replicas,
        }

    def _controllers(self, before: Json | None, after: Json) -> None:
        """What the cluster does about a changed Deployment."""
        if after["kind"] != "Deployment":
            return
        changed = before is not None and before["spec"]["template"] != after["spec"]["template"]
        if before is None or before["spec"] != after["spec"]:
            after["metadata"]["generation"] = (before or after)["metadata"].get("generation", 0) + 1
        self._status(after, after["spec"].get("replicas", 1))
        if changed:
            self._status(after, 0)
            after["_looks"] = self.rollout_looks
        self._run_pods(after, afresh=changed)

    def _look(self, found: Json) -> None:
        if found.get("_looks"):
            found["_looks"] -= 1
            replicas = found["spec"].get("replicas", 1)
            self._status(found, replicas if not found["_looks"] else min(replicas - 1, 1) if replicas > 1 else 0)

    # The API.

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Json]:
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise RefusedError(401, "Unauthorized")
        with self._lock:
            return self._answer(method, path, query, headers, body)

    def _answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> tuple[int, Json]:
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        api = parts[1] if parts[0] == "api" else f"{parts[1]}/{parts[2]}"
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        if rest[0] == "namespaces":
            if rest[1] != NAMESPACE:
                raise RefusedError(403, f"namespace {rest[1]} is not yours")
            rest = rest[2:]
        plural, name, sub = (*rest, "", "")[:3]
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[method]
        self._allow(group, f"{plural}/{sub}" if sub else plural, verb)
        if (api, plural) not in self.kinds:
            raise RefusedError(404, "the server could not find the requested resource")
        if verb == "list":
            return 200, self._page(api, plural, query)
        key = (api, plural, name)
        there = self.objects.get(key)
        dry = query.get("dryRun") == "All"
        if verb == "patch":
            return self._patched(key, sub, there, query, headers, json.loads(body), dry=dry)
        if there is None:
            raise RefusedError(404, f'{plural} "{name}" not found')
        if verb == "delete":
            if not dry:
                del self.objects[key]
            return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        self._look(there)
        return 200, self._shown(there)

    def _allow(self, group: str, resource: str, verb: str) -> None:
        if self.rules is None:
            return
        for rule in self.rules:
            if group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]:
                self.used.add((group, resource, verb))
                return
        raise RefusedError(403, f'cannot {verb} resource "{resource}" in API group "{group}"')

    def _page(self, api: str, plural: str, query: dict[str, str]) -> Json:
        found = [self.objects[key] for key in sorted(self.objects) if key[:2] == (api, plural)]
        first, most = int(query.get("continue", "0")), int(query.get("limit", "1000000"))
        page = found[first : first + most]
        more = str(first + most) if first + most < len(found) else ""
        kind = f"{self.kinds[api, plural]}List"
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"continue": more},
            "items": [self._shown(o) for o in page],
        }

    def _shown(self, found: Json) -> Json:
        return {key: item for key, item in found.items() if not key.startswith("_")}

    def _patched(
        self, key: Any, sub: str, there: Json | None, query: dict[str, str], headers: Any, patch: Json, *, dry: bool
    ) -> tuple[int, Json]:
        if self.before_patch is not None and not sub:
            act, self.before_patch = self.before_patch, None
            act(self)
            there = self.objects.get(key)
        kind = headers.get("Content-Type")
        if query.get("fieldValidation") != "Strict" or not query.get("fieldManager"):
            raise RefusedError(400, "this server wants fieldManager, and fieldValidation=Strict")
        if kind == "application/apply-patch+yaml":
            whole = self._applied(key, there, patch, query["fieldManager"], force=query.get("force") == "true")
        elif kind == "application/strategic-merge-patch+json":
            if there is None:
                raise RefusedError(404, f'{key[1]} "{key[2]}" not found')
            wanted = patch.get("metadata", {}).pop("resourceVersion", None)
            if wanted not in (None, there["metadata"]["resourceVersion"]):
                raise RefusedError(409, "the object has been modified; please apply your changes to the latest version")
            if sub:
                self._resizable(there, patch)
            whole = _strategic(there, patch)
        else:
            raise RefusedError(415, f"no patch of type {kind}")
        shown = {k: v for k, v in whole.items() if not k.startswith("_") and k != "status"}
        shown["metadata"] = {k: v for k, v in shown["metadata"].items() if k not in ("generation", "resourceVersion")}
        try:
            validate_document(shown, version="1.33")
        except VerificationError as error:
            raise RefusedError(422, str(error)) from error
        if dry:
            return 200, self._shown(whole)
        if whole != there:
            whole["metadata"]["resourceVersion"] = self._next()
            self._controllers(there, whole)
        self.objects[key] = whole
        return (200 if there else 201), self._shown(whole)

    def _resizable(self, pod: Json, patch: Json) -> None:
        if not self.resize:
            raise RefusedError(404, "the server could not find the requested resource")
        if set(patch["spec"]) != {"containers"} or any(
            set(c) != {"name", "resources"} for c in patch["spec"]["containers"]
        ):
            raise RefusedError(422, "only resources may be resized")

        def guaranteed(spec: Json) -> bool:
            return all(c["resources"].get("limits") == c["resources"].get("requests") for c in spec["containers"])

        if guaranteed(pod["spec"]) != guaranteed(_strategic(pod, patch)["spec"]):
            raise RefusedError(422, "Pod QOS Class may not change as a result of resizing")

    def _applied(self, key: Any, there: Json | None, stated: Json, manager: str, *, force: bool) -> Json:
        if there is None:
            self._allow("" if "/" not in key[0] else key[0].partition("/")[0], key[1], "create")
            fresh = copy.deepcopy(stated)
            fresh["metadata"].update(generation=1)
            fresh["_managers"] = {manager: copy.deepcopy(stated)}
            return fresh
        managers = there.get("_managers", {})
        for path, item in _leaves(stated):
            for other, theirs in managers.items():
                mine = dict(_leaves(theirs)).get(path, item)
                if other != manager and mine != item and not force:
                    raise RefusedError(409, f'conflict with "{other}": {".".join(path)}')
        whole = copy.deepcopy(there)
        now = {path for path, _ in _leaves(stated)}
        for path, _ in _leaves(managers.get(manager, {})):
            if path not in now:
                _take(whole, path)  # what a manager no longer states goes
        for path, item in _leaves(stated):
            _set(whole, path, item)
        whole["_managers"] = {**managers, manager: copy.deepcopy(stated)}
        return whole


def _leaves(document: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Lists are leaves here: all of ours are atomic or ours alone."""
    if isinstance(document, dict) and document:
        for key, item in document.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, document


def _take(whole: Json, path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        whole = whole.get(key, {})
    whole.pop(path[-1], None)


def _set(whole: Json, path: tuple[str, ...], item: Any) -> None:
    for key in path[:-1]:
        whole = whole.setdefault(key, {})
    whole[path[-1]] = copy.deepcopy(item)


def _strategic(whole: Any, patch: Any, key: str = "") -> Any:
    if isinstance(whole, dict) and isinstance(patch, dict):
        result = dict(whole)
        for name, item in patch.items():
            if item is None:
                result.pop(name, None)
            else:
                result[name] = _strategic(result.get(name), item, name)
        return result
    if key == "containers" and isinstance(whole, list):
        changes = {c["name"]: c for c in patch}
        kept = [_strategic(c, changes.pop(c["name"], {})) for c in whole]
        return kept + list(changes.values())
    if isinstance(patch, dict):
        return {name: _strategic(None, item, name) for name, item in patch.items() if item is not None}
    return copy.deepcopy(patch)


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer: the second of two waits for an acknowledgement

        def _do(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, parts.path))
            headers: dict[str, str] = {}
            try:
                fault = server.faults.popleft() if server.faults else None
                if isinstance(fault, float):
                    time.sleep(fault)
                elif fault is not None:
                    raise fault
                status, answer = server.answer(self.command, parts.path, query, self.headers, body)
            except RefusedError as error:
                status, headers = error.status, error.headers
                answer = {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "message": error.message,
                    "code": status,
                }
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = do_DELETE = do_POST = _do  # noqa: N815 - the names that http.server asks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in http.server
            """Quiet."""

    return Handler


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    """A cluster with two nodes and nothing on them."""
    server = ApiServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    server.node("edge-1", **{"natwork-ray__role": "edge"})
    server.node("core-1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)


@pytest.fixture
def kubeconfig(api_server: ApiServer, tmp_path: Path) -> Path:
    """Credentials for it."""
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": api_server.url}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE}}],
    }))  # fmt: skip
    return path
