"""Fluid flows: shares are fair and never exceed a link, and time runs backwards as well as forwards."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.errors import UsageError
from natwork_ray.limi.fluid import Job, Stage, fair_rates, lead_times, simulate

LINKS = {"a": 100.0, "b": 40.0, "c": 250.0}
paths = st.lists(st.sampled_from(sorted(LINKS)), min_size=1, max_size=3, unique=True).map(tuple)
stages = st.builds(
    Stage,
    fixed_s=st.floats(0, 5),
    transfer_bytes=st.one_of(st.just(0.0), st.floats(0.1, 500)),
    links=paths,
    rate_bytes_per_s=st.one_of(st.just(math.inf), st.floats(1, 200)),
)
chains = st.lists(st.lists(stages, min_size=1, max_size=3).map(tuple), min_size=1, max_size=6)


def sends(size: float, *links: str, rate: float = math.inf) -> Stage:
    return Stage(transfer_bytes=size, links=links, rate_bytes_per_s=rate)


@given(st.lists(stages, min_size=1, max_size=8))
def test_nobody_could_get_more_without_taking_it_from_somebody_with_less(active: list[Stage]) -> None:
    rates = fair_rates(active, LINKS)
    used = {link: sum(r for s, r in zip(active, rates, strict=True) if link in s.links) for link in LINKS}
    assert all(used[link] <= LINKS[link] * (1 + 1e-9) for link in LINKS)
    for stage, rate in zip(active, rates, strict=True):
        assert rate <= stage.rate_bytes_per_s * (1 + 1e-9)
        if rate < stage.rate_bytes_per_s * (1 - 1e-9):
            # Some link on its way is full, and nobody on that link has more.
            assert any(
                used[link] >= LINKS[link] * (1 - 1e-9)
                and all(r <= rate * (1 + 1e-9) for s, r in zip(active, rates, strict=True) if link in s.links)
                for link in stage.links
            )


def test_two_share_and_a_third_slows_them_from_then_on() -> None:
    link = {"k": 10.0}
    assert simulate([Job(0.0, (sends(50, "k"),)), Job(0.0, (sends(50, "k"),))], link) == ((10.0,), (10.0,))
    first, second = simulate([Job(0.0, (sends(50, "k"),)), Job(2.0, (sends(15, "k"),))], link)
    assert first + second == pytest.approx((6.5, 5.0))
    # One that cannot use its share leaves the rest to the other.
    slow, fast = simulate([Job(0.0, (sends(8, "k", rate=2.0),)), Job(0.0, (sends(32, "k"),))], link)
    assert slow + fast == pytest.approx((4.0, 4.0))


@given(chains)
def test_chains_that_start_at_their_lead_times_end_together(given_chains: list[tuple[Stage, ...]]) -> None:
    leads = lead_times(given_chains, LINKS)
    end_s = max(lead[0] for lead in leads)
    ended = simulate([Job(end_s - lead[0], chain) for lead, chain in zip(leads, given_chains, strict=True)], LINKS)
    for lead, chain, ends in zip(leads, given_chains, ended, strict=True):
        assert len(lead) == len(chain)
        assert ends[-1] == pytest.approx(end_s, abs=1e-6)
        # Each lead is that of a stage: the one before it ends there.
        for next_lead, end in zip(lead[1:], ends, strict=False):
            assert end == pytest.approx(end_s - next_lead, abs=1e-6)


@given(chains, st.floats(1, 10))
def test_alone_nobody_is_slower(given_chains: list[tuple[Stage, ...]], start_s: float) -> None:
    together = simulate([Job(start_s, chain) for chain in given_chains], LINKS)
    alone = [simulate([Job(start_s, chain)], LINKS)[0][-1] for chain in given_chains]
    for chain, ends, least in zip(given_chains, together, alone, strict=True):
        if len(chain) == 1:
            assert ends[-1] >= least - 1e-6
        assert list(ends) == sorted(ends)
        assert ends[0] >= start_s


@pytest.mark.parametrize(
    "stage",
    [
        {"fixed_s": -1.0},
        {"fixed_s": math.nan},
        {"transfer_bytes": math.inf, "links": ("a",)},
        {"transfer_bytes": 1.0, "links": ("a",), "rate_bytes_per_s": 0.0},
        {"transfer_bytes": 1.0},
    ],
)
def test_senseless_stages(stage: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Stage(**stage)  # type: ignore[arg-type]


def test_senseless_jobs() -> None:
    with pytest.raises(UsageError, match="no capacity"):
        simulate([Job(0.0, (sends(1, "elsewhere"),))], LINKS)
    with pytest.raises(UsageError, match="no finite time"):
        simulate([Job(math.nan, (sends(1, "a"),))], LINKS)
    assert simulate([], LINKS) == ()
    assert simulate([Job(1.0, ())], LINKS) == ((),)
