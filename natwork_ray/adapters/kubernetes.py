"""`Orchestrator`, `ContainerControl` and `Firewall` over a Kubernetes API server (D3.3 Table 4).

What an instruction becomes is `kubernetes_mitigations`' to say; here it is brought into the cluster, once by key:

1. Read the workload. What it carries of an earlier delivery of the key is given back: outcomes lie in an annotation
   of the Deployment, so that they survive us, and nothing else has to be kept.
2. Apply our own objects (server-side apply), then patch what is the operator's (strategic merge, for the version that
   was read; when somebody was faster, read again). Every write states what shall be, so that a delivery that was cut
   off between two of them can be repeated as a whole.
3. Write the outcome beside the last of them.

Bounds: one namespace, and never the right to write outside it. An autoscaler of the operator's is not fought: scaling
what one already scales is refused. A restart and a move wait until the last replica is replaced and count, by what the
API server says, the seconds in which none was available. With `dry_run` the API server checks every write and makes
none.

    cluster = KubernetesCluster(KubernetesApi(Access(namespace="shop")), ClusterSettings(), now_s=time.time)
    await cluster.scale(Scale(key="d-000001/0", container="front", replicas=3, signal=ScaleSignal.CPU))
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from natwork_ray.adapters.kubernetes_api import KubernetesApi
from natwork_ray.adapters.kubernetes_blocking import BlockedSources
from natwork_ray.adapters.kubernetes_deliveries import DONE, known_outcome, with_delivery
from natwork_ray.adapters.kubernetes_mitigations import render
from natwork_ray.adapters.kubernetes_objects import (
    KEY,
    MANAGER,
    ClusterSettings,
    Json,
    Manifest,
    Verb,
    Workload,
    deleted,
    own_name,
    patched,
)
from natwork_ray.adapters.kubernetes_scaling import HPA, HPA_KIND, KEDA, KEDA_KIND, VPA, VPA_KIND, placeholder
from natwork_ray.adapters.kubernetes_topology import topology, workload
from natwork_ray.adapters.kubernetes_traffic import RESTARTED_FOR
from natwork_ray.domain.actions import (
    ActionOutcome,
    AddNode,
    BlockSource,
    FlowAlert,
    Instruction,
    MeshRetry,
    Migrate,
    Restart,
    Scale,
    SetLimits,
)
from natwork_ray.domain.topology import Topology
from natwork_ray.domain.values import Backend
from natwork_ray.errors import ActionError, ConflictError, NotFoundError, PreconditionError, TimedOutError

ORIGINAL = f"{MANAGER}/original-limits"
MAX_REPLICAS = 64
_APPS, _DEPLOYMENT = "apps/v1", "Deployment"
_TRIES = 5
_POLL_S, _ROLLOUT_S = 1.0, 180.0


class KubernetesCluster:
    """One namespace of one cluster."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: ClusterSettings,
        *,
        now_s: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api, self._settings, self._now_s, self._pause = api, settings, now_s, pause
        self._blocks = BlockedSources(api)
        self._lock = asyncio.Lock()

    async def topology(self) -> Topology:
        """See `Orchestrator`."""
        nodes, deployments, pods = await asyncio.gather(
            self._api.nodes(), self._api.listed(_APPS, _DEPLOYMENT), self._api.pods()
        )
        return topology(nodes, deployments, pods)

    async def workload(self, name: str) -> Workload:
        """A Deployment as the mitigations see it.

        Raises:
            NotFoundError: there is none of that name, or it is not the operator's.
        """
        return (await self._workload(name))[0]

    async def carry_out(self, instruction: Instruction) -> ActionOutcome:
        """Any instruction that a cluster can carry out.

        Raises:
            PreconditionError: it is for somebody else.
        """
        match instruction:
            case Scale():
                return await self.scale(instruction)
            case SetLimits():
                return await self.set_limits(instruction)
            case Restart():
                return await self.restart(instruction)
            case Migrate():
                return await self.replace(instruction)
            case AddNode():
                return await self.add_node(instruction)
            case MeshRetry():
                return await self.mesh_retry(instruction)
            case BlockSource():
                return await self.block(instruction)
            case FlowAlert():
                raise PreconditionError("a flow alert is for the network", hint="set sdn.kind (docs/sdn.md)")

    async def scale(self, instruction: Scale) -> ActionOutcome:
        """See `Orchestrator`. The number takes effect at once, the autoscaler goes on from there."""
        if not 1 <= instruction.replicas <= MAX_REPLICAS:
            raise ActionError(
                f"{instruction.container} with {instruction.replicas} replicas", hint=f"1 to {MAX_REPLICAS}"
            )
        return await self._once(instruction, self._scale)

    async def set_limits(self, instruction: SetLimits) -> ActionOutcome:
        """See `ContainerControl`. Running pods are resized in place, where the cluster can; else they are replaced."""
        return await self._once(instruction, self._set_limits)

    async def restart(self, instruction: Restart) -> ActionOutcome:
        """See `ContainerControl`. Replica after replica."""
        return await self._once(instruction, self._replace_pods)

    async def replace(self, instruction: Migrate) -> ActionOutcome:
        """New pods on other nodes: what a cluster has in place of a live migration. Sessions on the old ones end."""
        return await self._once(instruction, self._replace_pods)

    async def add_node(self, instruction: AddNode) -> ActionOutcome:
        """See `Orchestrator`. Asks for room; the Cluster Autoscaler adds the node, within minutes."""
        return await self._once(instruction, self._add_node)

    async def mesh_retry(self, instruction: MeshRetry) -> ActionOutcome:
        """See `Orchestrator`."""
        return await self._once(instruction, self._mesh_retry)

    async def block(self, instruction: BlockSource) -> ActionOutcome:
        """See `Firewall`. A NetworkPolicy has no end of its own: `unblock_expired` has to be called."""
        return await self._once(instruction, self._block)

    async def unblock_expired(self) -> int:
        """Let sources in again whose time is over; how many there were."""
        async with self._lock:
            return await self._blocks.end_expired(self._now_s())

    async def _once(
        self, instruction: Any, carry_out: Callable[[Any, Workload, Json], Awaitable[tuple[str, float]]]
    ) -> ActionOutcome:
        async with self._lock:
            began_s = self._now_s()
            for _ in range(_TRIES):
                found, deployment = await self._workload(instruction.container)
                known = known_outcome(deployment, instruction)
                if known is not None:
                    return known
                try:
                    detail, downtime_s = await carry_out(instruction, found, deployment)
                except _OutdatedError:
                    continue  # somebody changed the Deployment meanwhile: look again, and state it again
                dry = self._api.access.dry_run == "server"
                outcome = ActionOutcome(
                    key=instruction.key,
                    done=True,
                    started_at_s=began_s,
                    finished_at_s=max(self._now_s(), began_s + downtime_s),
                    downtime_s=downtime_s,
                    backend=Backend.REAL,
                    detail=f"{detail}; dry run: the API server would take it, nothing was changed" if dry else detail,
                )
                if not dry:
                    await self._remember(instruction, outcome)
                return outcome
            raise _fought_over(instruction.container)

    async def _workload(self, name: str) -> tuple[Workload, Json]:
        deployments, pods, services = await asyncio.gather(
            self._api.listed(_APPS, _DEPLOYMENT), self._api.pods(), self._api.services()
        )
        found = workload(name, deployments, pods, services)
        return found, next(d for d in deployments if d["metadata"]["name"] == name)

    async def _remember(self, instruction: Instruction, outcome: ActionOutcome) -> None:
        """Write the outcome beside the workload."""
        for _ in range(_TRIES):
            deployment = await self._api.read(_APPS, _DEPLOYMENT, instruction.container)
            try:
                await self._annotate(deployment, {DONE: with_delivery(deployment, instruction, outcome)})
            except _OutdatedError:
                continue
            return
        raise _fought_over(instruction.container)

    async def _annotate(self, deployment: Json, notes: Mapping[str, str | None]) -> None:
        await self._patch(_deployment_patch(deployment, {"annotations": dict(notes)}, {}), deployment)

    async def _patch(self, manifest: Manifest, deployment: Json) -> Json:
        """Patch the Deployment as it was read.

        Raises:
            _OutdatedError: it has changed since.
        """
        # A dry run answers with versions that nobody has.
        version = "" if self._api.access.dry_run == "server" else deployment["metadata"]["resourceVersion"]
        try:
            return await self._api.write(manifest, version=version)
        except ConflictError as error:
            raise _OutdatedError from error

    def _render(self, instruction: Instruction, found: Workload, **more: Any) -> tuple[Manifest, ...]:
        return render(instruction, found, self._settings, **more).manifests

    async def _scale(self, i: Scale, found: Workload, deployment: Json) -> tuple[str, float]:
        ours = own_name(found.name)
        for version, kind in ((HPA, HPA_KIND), (KEDA, KEDA_KIND)):
            for other in await self._api.listed(version, kind):
                target = other["spec"]["scaleTargetRef"]
                name = other["metadata"]["name"]
                same = target["name"] == found.name and target.get("kind", _DEPLOYMENT) == _DEPLOYMENT
                if same and ours not in (name, _owner(other)):
                    raise ConflictError(
                        f"{kind} {name} of {_owner(other) or 'the operator'} scales {found.name} already",
                        hint="raise its minReplicas, or delete it and leave the scaling to natwork-ray",
                    )
        manifests = self._render(i, found)
        for manifest in manifests:
            await self._api.write(manifest)
        if i.signal is not None:
            # The autoscaler of the other kind goes: two would pull at one workload.
            stale = (KEDA, KEDA_KIND) if manifests[0].kind == HPA_KIND else (HPA, HPA_KIND)
            await self._api.write(deleted(*stale, found.namespace, ours))
        else:
            await self._give_room_back(i.key, found)
        await self._patch(
            _deployment_patch(deployment, {"annotations": {KEY: i.key}}, {"replicas": i.replicas}), deployment
        )
        after = f", then by {manifests[0].kind} on {i.signal}" if i.signal else ", no autoscaler of ours"
        return f"{found.name}: {found.replicas} -> {i.replicas} replicas{after}", 0.0

    async def _give_room_back(self, key: str, found: Workload) -> None:
        room = placeholder(found, key, self._settings, replicas=0)
        try:
            await self._api.read(_APPS, _DEPLOYMENT, room.name)
        except NotFoundError:
            return
        await self._api.write(room)

    async def _set_limits(self, i: SetLimits, found: Workload, deployment: Json) -> tuple[str, float]:
        notes = deployment["metadata"].get("annotations") or {}
        before = json.dumps([found.cpu_limit_cores, found.memory_limit_bytes])
        original = json.loads(notes.get(ORIGINAL, before))
        wanted = [i.cpu_limit_cores or found.cpu_limit_cores, i.memory_limit_bytes or found.memory_limit_bytes]
        autoscaler, *running = self._render(i, found)
        back = ORIGINAL in notes and wanted == original
        if back:
            autoscaler = deleted(VPA, VPA_KIND, found.namespace, autoscaler.name)
        try:
            await self._api.write(autoscaler)
            vertical = "its autoscaler is gone" if back else "new pods get it from the Vertical Pod Autoscaler"
        except NotFoundError:
            vertical = "the cluster has no Vertical Pod Autoscaler, so new pods have the old limits"
        how = "resized in place"
        try:
            for manifest in running:
                if manifest.kind == _DEPLOYMENT:
                    how = "set in the template"
                    deployment = await self._patch(manifest, deployment)
                else:
                    await self._api.write(manifest)
        except NotFoundError:
            # Before Kubernetes 1.33 a pod cannot be resized: replace the pods.
            how = "set in the template, pods are replaced one by one"
            (template,) = self._render(i, replace(found, pods=()))[1:]
            deployment = await self._patch(template, deployment)
        await self._annotate(deployment, {ORIGINAL: None if back else notes.get(ORIGINAL, before), KEY: i.key})
        return f"{found.name}: limits {how} ({len(found.pods)} pods); {vertical}", 0.0

    async def _replace_pods(self, i: Restart | Migrate, found: Workload, deployment: Json) -> tuple[str, float]:
        *objects, template = self._render(i, found)
        for manifest in objects:
            await self._api.write(manifest)
        there = deployment["spec"]["template"].get("metadata", {}).get("annotations") or {}
        if there.get(RESTARTED_FOR) != i.key:  # else it was begun before, and only has to be waited for
            deployment = await self._patch(template, deployment)
        if self._api.access.dry_run == "server":
            return f"{found.name}: every replica would be replaced", 0.0
        downtime_s = await self._rolled_out(found, int(deployment["metadata"].get("generation", 0)))
        return f"{found.name}: all {found.replicas} replicas replaced, {downtime_s:.1f} s without one", downtime_s

    async def _rolled_out(self, found: Workload, generation: int) -> float:
        """Wait until every replica is new; for how long none was available."""
        began_s = last_s = self._now_s()
        down_s, was_down = 0.0, False
        while True:
            status = (await self._api.read(_APPS, _DEPLOYMENT, found.name)).get("status") or {}
            now_s = self._now_s()
            down_s += now_s - last_s if was_down else 0.0
            last_s, was_down = now_s, not status.get("availableReplicas")
            if int(status.get("observedGeneration", 0)) >= generation and (
                status.get("updatedReplicas") == status.get("replicas") == status.get("availableReplicas")
            ):
                return down_s
            if now_s - began_s > _ROLLOUT_S:
                raise TimedOutError(
                    f"{found.name} is not replaced after {_ROLLOUT_S:.0f} s", hint="kubectl rollout status says why"
                )
            await self._pause(_POLL_S)

    async def _add_node(self, i: AddNode, found: Workload, deployment: Json) -> tuple[str, float]:
        if not (found.cpu_limit_cores > 0 and found.memory_limit_bytes > 0):
            raise ActionError(f"{found.name} has no limits", hint="room can be asked for what has a size")
        *_, room = self._render(i, found)  # the priority class is the administrator's
        await self._api.write(room)
        return f"room for one more {found.name} asked for; the Cluster Autoscaler adds the node", 0.0

    async def _mesh_retry(self, i: MeshRetry, found: Workload, deployment: Json) -> tuple[str, float]:
        manifests = self._render(i, found)
        for manifest in manifests:
            if manifest.kind == "VirtualService" and manifest.verb is Verb.APPLY:
                await self._require_no_other_route(manifest)
        for manifest in manifests:
            try:
                await self._api.write(manifest)
            except NotFoundError as error:
                raise ActionError(
                    f"the cluster does not know {manifest.kind}: {error.what}",
                    hint="install the mesh, or set kubernetes.mesh to the one that is there",
                ) from error
        return f"{', '.join(m.kind for m in manifests)} of {found.name} {'on' if i.enabled else 'off'}", 0.0

    async def _require_no_other_route(self, manifest: Manifest) -> None:
        """Two VirtualServices of one host are merged in no defined order: the operator's own wins."""
        hosts = set(manifest.document()["spec"]["hosts"])
        short = {h.partition(".")[0] for h in hosts}
        for other in await self._api.listed(manifest.api_version, manifest.kind):
            name = other["metadata"]["name"]
            if name != manifest.name and (hosts | short) & set(other["spec"].get("hosts") or ()):
                raise ConflictError(
                    f"VirtualService {name} routes {', '.join(sorted(hosts))} already",
                    hint="add the retries there; natwork mitigations render shows them",
                )

    async def _block(self, i: BlockSource, found: Workload, deployment: Json) -> tuple[str, float]:
        return await self._blocks.add(i, found, now_s=self._now_s()), 0.0


class _OutdatedError(Exception):
    """The Deployment has changed since it was read."""


def _fought_over(name: str) -> ActionError:
    return ActionError(f"{name} changes faster than it can be read", hint="who else writes it? Try again later")


def _deployment_patch(deployment: Json, meta: Json, spec: Json) -> Manifest:
    own = deployment["metadata"]
    return patched({
        "apiVersion": _APPS,
        "kind": _DEPLOYMENT,
        "metadata": {"name": own["name"], "namespace": own["namespace"], **meta},
        **({"spec": spec} if spec else {}),
    })  # fmt: skip


def _owner(thing: Json) -> str:
    """Who owns an object: KEDA makes an HPA for each of its ScaledObjects."""
    owners = thing["metadata"].get("ownerReferences") or ()
    return str(owners[0]["name"]) if owners else ""
