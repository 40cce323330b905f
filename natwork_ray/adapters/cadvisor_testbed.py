"""The containers of a real testbed's nodes, as the exporter takes them.

ContainerExporter(lambda: exported_of(record.nodes))
"""

from __future__ import annotations

from collections.abc import Iterable

from natwork_ray.adapters.cadvisor_exporter import Exported
from natwork_ray.adapters.testbed_layout import NodeLayout
from natwork_ray.adapters.testbed_world import specs_of


def exported_of(nodes: Iterable[NodeLayout]) -> tuple[Exported, ...]:
    """Every container that has a bundle on one of the nodes. One that does not run there has no cgroup there either,
    and is left out of the scrape; while it moves it may be on two nodes.
    """
    return tuple(
        Exported(name=spec.name, cgroup=node.cgroup(spec.name), node=node.name, service=spec.service or spec.name)
        for node in nodes
        for spec in specs_of(node)
    )
