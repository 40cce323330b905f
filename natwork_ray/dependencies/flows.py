"""Flow data joined with resource anomalies: which sources of a container's traffic changed when its resources did.

D3.3 section 6.3 announces it: correlate flow-related data with resource anomalies, and produce alerts for the SDN
controller. A share alone is no evidence, since a large customer has a large share every day. What counts is a source
whose share *jumped against its own history* at the moment when the container's resources went wrong:

    share now >= usual + max(MARGIN, 4 * spread)   and   share now >= LEAST   and   share now >= 2 * usual

with the median and the scaled median absolute deviation of the shares at earlier moments as usual and spread. The same
rule is applied to the share of failed requests, but only where the source also sends a part of the requests that
matters. A source that was not seen before has the usual share 0.

Fewer than three earlier moments with any flows say nothing, and no source is suspected then. A surge of all users
leaves their shares as they were, and so is no flow anomaly, whatever it does to the container.

    >>> suspects(now, earlier)
    (SuspectSource(source='203.0.113.0/28', request_share=0.61, failed_share=0.2, usual_request_share=0.0, ...),)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from natwork_ray.domain.flow_alerts import MAX_SOURCES, SuspectSource
from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.errors import InputError

LEAST = 0.15  # of requests, or of failed ones: below it a source can't be behind what the whole container shows
MARGIN = 0.10
SPREADS = 4.0
TIMES_USUAL = 2.0
MIN_HISTORY = 3
LEAST_SENDING = 0.02  # a source that hardly sends can't be behind anything, also when each of its requests fails
_MAD_TO_SD = 1.4826


def suspects(now: Sequence[FlowShare], earlier: Sequence[Sequence[FlowShare]]) -> tuple[SuspectSource, ...]:
    """Sources whose share jumped, worst first; empty when the history is too short or nothing jumped.

    Args:
        now: flows of the container at the moment of the verdict.
        earlier: its flows at earlier moments; moments without any flows are left out.

    Raises:
        InputError: a share that is no fraction, or one source twice at one moment.
    """
    history = [_shares(moment) for moment in earlier if moment]
    present = _shares(now)
    if len(history) < MIN_HISTORY:
        return ()
    found = []
    for source, (requests, failed) in present.items():
        before = [moment.get(source, (0.0, 0.0)) for moment in history]
        usual_requests = statistics.median(r for r, _ in before)
        usual_failed = statistics.median(f for _, f in before)
        jumped = _jumped(requests, [r for r, _ in before], usual_requests)
        failing = requests >= LEAST_SENDING and _jumped(failed, [f for _, f in before], usual_failed)
        if jumped or failing:
            found.append(
                SuspectSource(
                    source=source,
                    request_share=requests,
                    failed_share=failed,
                    usual_request_share=usual_requests,
                    usual_failed_share=usual_failed,
                )
            )
    return tuple(sorted(found, key=lambda s: (-max(s.request_share, s.failed_share), s.source)))[:MAX_SOURCES]


def _jumped(share: float, before: Sequence[float], usual: float) -> bool:
    spread = _MAD_TO_SD * statistics.median(abs(b - usual) for b in before)
    return share >= LEAST and share >= usual + max(MARGIN, SPREADS * spread) and share >= TIMES_USUAL * usual


def _shares(flows: Sequence[FlowShare]) -> dict[str, tuple[float, float]]:
    shares: dict[str, tuple[float, float]] = {}
    for flow in flows:
        fractions = (flow.request_share, flow.failed_share)
        if flow.source in shares or not all(math.isfinite(x) and 0.0 <= x <= 1.0 + 1e-6 for x in fractions):
            raise InputError(
                f"flow of {flow.source}: shares {fractions}", hint="fractions between 0 and 1, each source once"
            )
        shares[flow.source] = (min(flow.request_share, 1.0), min(flow.failed_share, 1.0))
    return shares
