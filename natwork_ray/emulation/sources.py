"""Who sends the traffic: users from many small networks, attackers from few.

Documentation addresses only (RFC 5737), so that no record can point at a real network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from natwork_ray.domain.telemetry import FlowShare
from natwork_ray.emulation.injections import parse_source

# Users live in 32 networks of 16 addresses; attackers come from 203.0.113.0/24.
USER_NETWORKS = tuple(f"{net}.{16 * i}/28" for net in ("192.0.2", "198.51.100") for i in range(16))
_PER_CONTAINER = 12
_EVENNESS = 4.0  # Dirichlet parameter: the largest of twelve sends about a fifth


class NormalSources:
    """Which networks the users of each container come from; fixed for a testbed's life."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self._networks = [
            tuple(USER_NETWORKS[i] for i in rng.choice(len(USER_NETWORKS), _PER_CONTAINER, replace=False))
            for _ in range(n)
        ]
        self._shares = rng.dirichlet([_EVENNESS] * _PER_CONTAINER, size=n)

    def open_shares(self, k: int, blocked: Sequence[str]) -> NDArray[np.float64]:
        """(12,) each network's share of container k's demand that no rule drops."""
        rules = [parse_source(b) for b in blocked]
        shares = self._shares[k].copy()
        for j, network in enumerate(self._networks[k]):
            net = parse_source(network)
            for rule in rules:
                if net.subnet_of(rule):
                    shares[j] = 0.0
                elif rule.subnet_of(net):
                    shares[j] *= 1 - rule.num_addresses / net.num_addresses
        return np.asarray(shares)

    def flows(
        self,
        k: int,
        *,
        normal_rps: float,
        failed_rps: float,
        attackers: Sequence[tuple[str, float]],
        attack_failed_rps: float,
        blocked: Sequence[str],
    ) -> tuple[FlowShare, ...]:
        """Shares of container k's requests and failed requests by source, largest first."""
        attacking = sum(rps for _, rps in attackers)
        requests, failed = normal_rps + attacking, failed_rps + attack_failed_rps
        if requests <= 0:
            return ()
        shares = self.open_shares(k, blocked)
        users = shares / max(float(shares.sum()), 1e-12)
        flows = [
            FlowShare(
                source=source,
                request_share=float(share * normal_rps / requests),
                failed_share=float(share * failed_rps / failed) if failed > 0 else 0.0,
            )
            for source, share in zip(self._networks[k], users, strict=True)
            if share > 0
        ]
        flows += [
            FlowShare(
                source=source,
                request_share=rps / requests,
                failed_share=attack_failed_rps * rps / attacking / failed if failed > 0 else 0.0,
            )
            for source, rps in attackers
            if rps > 0
        ]
        return tuple(sorted(flows, key=lambda f: (-f.request_share, -f.failed_share, f.source)))
