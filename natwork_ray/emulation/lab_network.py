"""The links of the migration laboratory: shared, full duplex, used by clients as well, and sometimes cut.

Each direction is a `SharedLink` of its own. Clients' traffic comes first: what the containers at both ends send and
receive is taken off the capacity, down to a tenth of it. A cut stalls everything; what has stalled for
`LINK_PATIENCE_S` fails, as SSH's keep-alives would have it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from natwork_ray.domain.topology import Link
from natwork_ray.emulation.shared_link import SharedLink
from natwork_ray.errors import ActionError, UsageError

LINK_PATIENCE_S = 3.0  # assumed: three unanswered keep-alives of one second
_LEAST_SHARE = 0.1  # assumed: what clients' traffic leaves of a link, whatever they send


class LabNetwork:
    """Links between named nodes. `traffic(source, target)` says what clients send that way now, in bytes per second."""

    def __init__(
        self,
        nodes: Sequence[str],
        links: Sequence[Link],
        *,
        now_s: Callable[[], float],
        traffic: Callable[[str, str], float],
    ) -> None:
        self._links = {frozenset((k.a, k.b)): k for k in links}
        self._now_s, self._traffic = now_s, traffic
        self._cuts: list[tuple[frozenset[str], float, float]] = []
        self._ways: dict[tuple[str, str], SharedLink] = {}
        for link in links:
            if link.a not in nodes or link.b not in nodes or link.a == link.b:
                raise UsageError(f"a link between {link.a!r} and {link.b!r}", hint="link two nodes of the laboratory")
            for way in ((link.a, link.b), (link.b, link.a)):
                self._ways[way] = SharedLink(link.bandwidth_bytes_per_s)

    def open(self) -> None:
        """Called when virtual time begins to run: sets capacities, and timers for the cuts to come."""
        loop = asyncio.get_running_loop()
        self.make_way()
        for _, from_s, to_s in self._cuts:
            for moment in (from_s, to_s):
                if moment > loop.time():
                    loop.call_at(moment, self.make_way)

    def cut_link(self, a: str, b: str, from_s: float, to_s: float) -> None:
        """Cut the link between two nodes for a while. Transfers stall, and fail when it lasts.

        Raises:
            ActionError: there is no such link.
        """
        self.link(a, b)
        self._cuts.append((frozenset((a, b)), from_s, to_s))

    def link(self, source: str, target: str) -> Link:
        """The link between two nodes.

        Raises:
            ActionError: there is none.
        """
        found = self._links.get(frozenset((source, target)))
        if found is None:
            raise ActionError(f"no link between {source} and {target}", hint="choose a target with a direct link")
        return found

    def cut(self, a: str, b: str) -> bool:
        """Whether the link between two nodes is cut just now."""
        now, ends = self._now_s(), frozenset((a, b))
        return any(ends == cut and from_s <= now < to_s for cut, from_s, to_s in self._cuts)

    def offered(self, source: str, target: str) -> float:
        """Bytes per second that a new transfer would get now."""
        self.link(source, target)
        return self._ways[source, target].offers(math.inf)

    async def carry(self, source: str, target: str, size_bytes: float, *, share: float) -> None:
        """Send over the link, as one stream that reaches `share` of what clients' traffic leaves of it.

        Raises:
            ActionError: no such link, or it was cut and did not come back in time.
        """
        self.link(source, target)
        way = self._ways[source, target]
        if self.cut(source, target):
            asyncio.get_running_loop().call_later(LINK_PATIENCE_S, self._give_up, source, target)
            # Also an empty message notices that nobody answers.
            await way.carry(max(size_bytes, 1.0), ceiling=share * self._room(source, target))
        else:
            await way.carry(size_bytes, ceiling=share * way.capacity)

    def _room(self, source: str, target: str) -> float:
        """The link's capacity in one direction, without the clients' traffic of the containers at both ends."""
        bandwidth = self.link(source, target).bandwidth_bytes_per_s
        traffic = self._traffic(source, target)
        return max(_LEAST_SHARE * bandwidth, bandwidth - traffic)

    def make_way(self) -> None:
        """Set every link's capacity to what it is now."""
        for (source, target), way in self._ways.items():
            cut = self.cut(source, target)
            if cut and way.capacity > 0 and way.flows:
                asyncio.get_running_loop().call_later(LINK_PATIENCE_S, self._give_up, source, target)
            way.set_capacity(0.0 if cut else self._room(source, target))

    def _give_up(self, source: str, target: str) -> None:
        if self.cut(source, target):
            self._ways[source, target].fail(
                ActionError(f"the link from {source} to {target} is cut", hint="try again when it is mended")
            )
