"""The mitigation catalogue: D3.3 Table 4, moving target defence, and when each applies.

Table 4 names two example mitigations per anomaly. Each anomaly also has options from section 2 (move the container) and
section 6.3 (flow evidence to firewall or SDN). `benefit` orders the options of one anomaly before cost is
subtracted: 1 would end the anomaly for certain at once. The figures are this project's judgement, written down so
that they can be disputed and replaced; the learnt policy of section 2.2 takes their place where it is in charge.
"""

from __future__ import annotations

from natwork_ray.domain.anomaly import AnomalyKind
from natwork_ray.domain.decisions import MitigationKind
from natwork_ray.domain.values import value


@value
class CatalogueEntry:
    """One mitigation for one anomaly. `table_4` is the deliverable's own wording, empty for options beyond Table 4."""

    mitigation: MitigationKind
    benefit: float
    effect: str
    table_4: str = ""


K = MitigationKind

CATALOGUE: dict[AnomalyKind, tuple[CatalogueEntry, ...]] = {
    AnomalyKind.HIGH_CPU: (
        CatalogueEntry(
            mitigation=K.VERTICAL_CPU,
            benefit=0.70,
            effect="raises the CPU limit, so that requests no longer wait",
            table_4="Vertical Pod Autoscaler",
        ),
        CatalogueEntry(
            mitigation=K.HORIZONTAL_SCALE,
            benefit=0.65,
            effect="spreads the load over more replicas",
            table_4="Horizontal Pod Autoscaler",
        ),
    ),
    AnomalyKind.HIGH_MEMORY: (
        CatalogueEntry(
            mitigation=K.MEMORY_LIMIT_RESTART,
            benefit=0.80,
            effect="frees the leaked memory by a restart, at the price of a short downtime",
            table_4="Pod Memory Limits + Auto-restart",
        ),
        CatalogueEntry(
            mitigation=K.VERTICAL_MEMORY,
            benefit=0.55,
            effect="raises the memory limit, so that the container is not killed",
            table_4="Vertical Pod Autoscaler",
        ),
    ),
    AnomalyKind.TRAFFIC_SPIKE: (
        CatalogueEntry(
            mitigation=K.HORIZONTAL_SCALE,
            benefit=0.75,
            effect="adds replicas for the surge",
            table_4="Horizontal Pod Autoscaler",
        ),
        CatalogueEntry(
            mitigation=K.CLUSTER_SCALE,
            benefit=0.60,
            effect="brings a spare node into service, because the replicas find no room",
            table_4="Cluster Autoscaler",
        ),
        CatalogueEntry(
            mitigation=K.BLOCK_SOURCE,
            benefit=0.90,
            effect="drops the one source that sends most of the surge",
        ),
    ),
    AnomalyKind.STEP_LOAD: (
        CatalogueEntry(
            mitigation=K.CUSTOM_METRIC_SCALE,
            benefit=0.75,
            effect="scales on requests per second",
            table_4="HPA with Custom Metrics",
        ),
        CatalogueEntry(
            mitigation=K.PREDICTIVE_SCALE,
            benefit=0.65,
            effect="scales ahead of the growth that the last steps show",
            table_4="Predictive Autoscaling",
        ),
        CatalogueEntry(
            mitigation=K.BLOCK_SOURCE,
            benefit=0.90,
            effect="drops the one source that sends most of the growth",
        ),
    ),
    AnomalyKind.NETWORK_LATENCY: (
        CatalogueEntry(
            mitigation=K.TOPOLOGY_MOVE,
            benefit=0.75,
            effect="moves the container live, close to what it talks to and off the slow path",
            table_4="Pod Affinity / Topology-Aware Scheduling",
        ),
        CatalogueEntry(
            mitigation=K.MESH_RETRY,
            benefit=0.60,
            effect="lets the mesh retry and balance around slow connections",
            table_4="Service Mesh Retry & Load Balancing",
        ),
    ),
    AnomalyKind.UNKNOWN: (
        CatalogueEntry(
            mitigation=K.BLOCK_SOURCE, benefit=0.90, effect="drops the source behind the unexplained traffic"
        ),
        CatalogueEntry(
            mitigation=K.MTD_MOVE,
            benefit=0.50,
            effect="moves the container live, so that what an intruder learnt of its place is void",
        ),
        CatalogueEntry(
            mitigation=K.NOTIFY,
            benefit=0.20,
            effect="leaves it to the operator, as section 6.1.1 asks for Unknown",
        ),
    ),
}


def catalogue_table() -> str:
    """Markdown table of the whole catalogue. docs/mitigations.md holds it."""
    rows = ["| Anomaly | Mitigation | Benefit | What it does | D3.3 Table 4 |", "|---|---|---|---|---|"]
    rows += [
        f"| `{kind}` | `{e.mitigation}` | {e.benefit:.2f} | {e.effect} | {e.table_4 or 'beyond it'} |"
        for kind, entries in CATALOGUE.items()
        for e in entries
    ]
    return "\n".join(rows) + "\n"
