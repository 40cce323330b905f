"""Flow alerts: what the network is told when a resource anomaly and the traffic behind it point at the same sources.

D3.3 section 6 lets an anomaly trigger a mitigation, and asks for flow data beside resource metrics; the network's part
is the SDN controller's. An alert names the evidence, gives an advice and ends by itself. It is an instruction like the
others: it carries an idempotency key, is audited and has an outcome.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.values import value

MAX_SOURCES = 64  # of one alert: whoever carries it out refuses more
MAX_PORTS = 16


class FlowAdvice(StrEnum):
    """What the network should do with the traffic of the suspects; the gentlest last."""

    DROP = "drop"
    RATE_LIMIT = "rate_limit"
    INSPECT = "inspect"  # let it through, and show a copy to whoever looks into packets


@value
class SuspectSource:
    """A source (CIDR) and its share of the container's requests and failed requests, now and usually; each 0 to 1."""

    source: str
    request_share: float
    failed_share: float
    usual_request_share: float = 0.0
    usual_failed_share: float = 0.0


@value
class FlowAlert:
    """Traffic of some sources to a container is suspect until `expires_at_s`.

    Attributes:
        kind: the anomaly of the container that the traffic is joined with.
        likelihood: how likely the container's behaviour is anomalous, 0 to 1.
        sources: worst first, at least one.
        destinations: the container's IP addresses, empty where they are not known: then nothing narrower than the
            switch itself can be protected, and implementations that need an address refuse.
        ports: TCP and UDP ports of the container that are meant; empty for all.
    """

    type: Literal["flow_alert"] = "flow_alert"
    key: str
    container: str
    at_s: float
    kind: AnomalyKind
    likelihood: float
    sources: tuple[SuspectSource, ...]
    advice: FlowAdvice
    expires_at_s: float
    destinations: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    reason: str = ""
