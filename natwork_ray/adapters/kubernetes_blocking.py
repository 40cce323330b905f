"""Blocked sources of a namespace's workloads: one NetworkPolicy each, read before it is written.

A NetworkPolicy has no end of its own; when each source is let in again stands in its annotation, and `end_expired` sees
to it. Sources inside the cluster are refused: the policy lets the cluster's own pods in, whatever their addresses.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json

from natwork_ray.adapters.kubernetes_api import KubernetesApi
from natwork_ray.adapters.kubernetes_objects import KEY, Json, Manifest, Workload, deleted
from natwork_ray.adapters.kubernetes_topology import is_ours, workload
from natwork_ray.adapters.kubernetes_traffic import BLOCKED, blocked, checked_source, policy_name
from natwork_ray.domain.actions import BlockSource
from natwork_ray.errors import ActionError, InputError, NotFoundError

_API, _KIND = "networking.k8s.io/v1", "NetworkPolicy"


class BlockedSources:
    """All of one namespace. Callers see to it that nobody writes the same policy at the same time."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    async def add(self, i: BlockSource, found: Workload, *, now_s: float) -> str:
        """Keep one source more from a workload; what was done, in words.

        Raises:
            ActionError: no network, everybody, somebody in the cluster, or its time is over already.
        """
        if not i.expires_at_s > now_s:
            raise ActionError(f"{i.source} is blocked until {i.expires_at_s}", hint="that is over")
        network = checked_source(i.source)
        for pod in await self._api.pods():
            for entry in pod.get("status", {}).get("podIPs") or ():
                address = ipaddress.ip_address(entry["ip"])
                if address.version == network.version and address in network:
                    raise ActionError(
                        f"{i.source} has pod {pod['metadata']['name']} in it, and the policy lets the cluster's own in",
                        hint="find out what that pod does; block it by its labels",
                    )
        try:
            sources = _sources(await self._api.read(_API, _KIND, policy_name(found)))
        except NotFoundError:
            sources = {}
        current = {s: until for s, until in sources.items() if until > now_s} | {str(network): i.expires_at_s}
        await self._api.write(blocked(found, current, i.key))
        return f"{network} kept from {found.name} until {i.expires_at_s:.0f} s, as one of {len(current)}"

    async def end_expired(self, now_s: float) -> int:
        """Let in whose time is over; how many there were."""
        deployments, pods = await asyncio.gather(self._api.listed("apps/v1", "Deployment"), self._api.pods())
        ended = 0
        for policy in await self._api.listed(_API, _KIND):
            if not is_ours(policy) or BLOCKED not in policy["metadata"].get("annotations", {}):
                continue
            sources = _sources(policy)
            left = {s: until for s, until in sources.items() if until > now_s}
            if len(left) < len(sources):
                await self._api.write(_with(policy, left, deployments, pods))
                ended += len(sources) - len(left)
        return ended


def _with(policy: Json, left: dict[str, float], deployments: list[Json], pods: list[Json]) -> Manifest:
    """The policy with these sources only."""
    meta = policy["metadata"]
    for deployment in deployments:
        if not is_ours(deployment):
            found = workload(deployment["metadata"]["name"], deployments, pods, ())
            if policy_name(found) == meta["name"]:
                return blocked(found, left, meta["annotations"].get(KEY, ""))
    return deleted(_API, _KIND, meta["namespace"], meta["name"])  # whom it protected is gone


def _sources(policy: Json) -> dict[str, float]:
    text = (policy["metadata"].get("annotations") or {}).get(BLOCKED, "{}")
    try:
        return {str(checked_source(source)): float(until) for source, until in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, ActionError) as error:
        raise InputError(
            f"the annotation {BLOCKED} of {policy['metadata']['name']} is broken: {error}", hint="delete the policy"
        ) from error
