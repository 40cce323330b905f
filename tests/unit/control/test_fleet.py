"""What the loop believes is free, with instructions under way counted as if they had happened."""

from __future__ import annotations

from typing import Any

import pytest

from natwork_ray.control.fleet import Fleet
from natwork_ray.domain.actions import Migrate, MigrationMethod, Restart, Scale, SetLimits
from natwork_ray.errors import NotFoundError

MIB = float(2**20)


def migrate(key: str = "m", target: str = "cloud") -> Migrate:
    return Migrate(key=key, container="front", source="edge", target=target, method=MigrationMethod.COLD)


def test_what_is_under_way_is_claimed_and_given_back(world: Any) -> None:
    fleet = Fleet(world.topology())
    assert (fleet.free_cores("edge"), fleet.free_memory_bytes("edge")) == (7.0, 7680 * MIB)
    fleet.begin(Scale(key="s", container="front", replicas=3))
    assert (fleet.free_cores("edge"), fleet.free_memory_bytes("edge")) == (5.0, 6656 * MIB)
    assert fleet.busy("front")
    fleet.begin(SetLimits(key="l", container="front", cpu_limit_cores=2.0, memory_limit_bytes=1024 * MIB))
    assert (fleet.free_cores("edge"), fleet.free_memory_bytes("edge")) == (2.0, 5120 * MIB)
    fleet.end("s")
    assert fleet.free_cores("edge") == 6.0
    assert fleet.busy("front")
    fleet.end("l")
    fleet.end("l")
    assert not fleet.busy("front")
    assert fleet.free_cores("edge") == 7.0


def test_giving_back_is_not_counted_before_it_is_seen(world: Any) -> None:
    fleet = Fleet(world.topology(world.container("front", replicas=4)))
    fleet.begin(Scale(key="s", container="front", replicas=1))
    fleet.begin(SetLimits(key="l", container="front", cpu_limit_cores=0.5))
    assert fleet.free_cores("edge") == 4.0


def test_a_migration_claims_both_ends_and_the_end_that_is_reached_once(world: Any) -> None:
    fleet = Fleet(world.topology())
    fleet.begin(migrate())
    assert (fleet.free_cores("edge"), fleet.free_cores("cloud")) == (7.0, 31.0)
    fleet.observe(world.topology(world.container("front", "cloud")))
    assert (fleet.free_cores("edge"), fleet.free_cores("cloud")) == (8.0, 31.0)
    fleet.end("m")
    assert fleet.free_cores("cloud") == 31.0


def test_claims_of_a_container_that_vanished_are_none(world: Any) -> None:
    fleet = Fleet(world.topology())
    fleet.begin(migrate())
    fleet.begin(Scale(key="s", container="front", replicas=5))
    fleet.observe(world.topology(world.container("other", "core")))
    assert (fleet.free_cores("edge"), fleet.free_cores("cloud")) == (8.0, 32.0)
    assert fleet.busy("front")
    fleet.end("m")
    fleet.end("s")
    assert not fleet.busy("front")


def test_the_original_is_what_was_seen_first(world: Any) -> None:
    fleet = Fleet(world.topology())
    fleet.observe(world.topology(world.container("front", replicas=5), world.container("new", replicas=2)))
    assert fleet.container("front").replicas == 5
    assert fleet.original("front").replicas == 1
    assert fleet.original("new").replicas == 2


def test_names_that_do_not_exist(world: Any) -> None:
    fleet = Fleet(world.topology())
    with pytest.raises(NotFoundError, match="ghost"):
        fleet.container("ghost")
    with pytest.raises(NotFoundError, match="ghost"):
        fleet.node("ghost")
    assert (fleet.free_cores("ghost"), fleet.free_memory_bytes("ghost")) == (0.0, 0.0)
    fleet.begin(Restart(key="r", container="ghost"))
    assert fleet.busy("ghost")


def test_neighbours_and_who_reaches_whom(world: Any) -> None:
    fleet = Fleet(
        world.topology(
            world.container("a", depends_on=("b", "outside")),
            world.container("b", depends_on=("c",)),
            world.container("c", depends_on=("b",)),
            world.container("d", depends_on=("d",)),
        )
    )
    assert fleet.neighbours("a") == ("b",)
    assert set(fleet.neighbours("b")) == {"a", "c"}
    assert fleet.calls("a", "c")
    assert fleet.calls("c", "c")
    assert fleet.calls("d", "d")
    assert not fleet.calls("c", "a")
    assert not fleet.calls("outside", "a")
    assert fleet.node("edge").name == "edge"
    assert len(fleet.nodes()) == 3
