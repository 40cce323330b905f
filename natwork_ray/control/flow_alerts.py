"""What the network is told: an alert for the SDN controller out of an alarm and the sources whose share jumped.

D3.3 section 6.3 asks for "microservice flow-related anomaly alerts that will be fed to the SDN controller". The alert
goes with the mitigation of the resources, not instead of it: scaling helps the users now, the network acts on where it
comes from. Where nothing else can be done, the alert is the mitigation. It touches no container, so it neither waits
for what is under way at the container nor holds it up.
"""

from __future__ import annotations

from collections.abc import Sequence

from natwork_ray.domain.anomaly import AnomalyKind, AnomalyVerdict
from natwork_ray.domain.flow_alerts import FlowAdvice, FlowAlert, SuspectSource

ALERT_S = 1800.0
DROP_SHARE = 0.35  # of requests or of failed ones: the evidence that the node's firewall asks for as well


def flow_alert(
    key: str, verdict: AnomalyVerdict, kind: AnomalyKind, suspects: Sequence[SuspectSource], at_s: float
) -> FlowAlert:
    """The alert for a container in alarm; `suspects` must not be empty.

    Advice: drop where one source is behind a large part of the requests or of the failed ones; else limit the rate
    where the requests themselves jumped; else let packets be inspected.
    """
    worst = max(suspects, key=lambda s: (max(s.request_share, s.failed_share), s.source))
    if max(worst.request_share, worst.failed_share) >= DROP_SHARE:
        advice = FlowAdvice.DROP
    elif any(s.request_share > 2 * s.usual_request_share for s in suspects):
        advice = FlowAdvice.RATE_LIMIT
    else:
        advice = FlowAdvice.INSPECT
    return FlowAlert(
        key=f"{key}/flow",
        container=verdict.container,
        at_s=at_s,
        kind=kind,
        likelihood=verdict.score,
        sources=tuple(suspects),
        advice=advice,
        expires_at_s=at_s + ALERT_S,
        reason=(
            f"{kind} on {verdict.container} while {worst.source} went from {worst.usual_request_share:.0%} to "
            f"{worst.request_share:.0%} of its requests and from {worst.usual_failed_share:.0%} to "
            f"{worst.failed_share:.0%} of the failed ones"
        ),
    )
