"""Concurrent requests are scored together, each gets its own rows, and one that fails fails alone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import REFERENCE_WIDTH, Floats
from natwork_ray.profiling.verdicts import Scores
from serve_apps.gathering import Gathering

T = 4


class Recorder:
    """Gives back the newest CPU sample; remembers how many windows came at a time, and in which thread."""

    history = T

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.fault: Exception | None = None

    def score(self, values: Floats, references: Floats) -> Scores:
        assert len(values) == len(references)
        self.sizes.append(len(values))
        self.threads.add(threading.get_ident())
        if self.fault is not None:
            raise self.fault
        if (values < 0).any():
            raise InputError("negative", hint="no")
        p = values[:, -1, 4]
        n = len(p)
        flags = np.ones(n, dtype=bool)
        return Scores(p, np.zeros(n, np.int8), p, values[:, -1], flags, flags, np.zeros((n, 12), np.float32))


def windows(*cpu: float, length: int = T) -> tuple[Floats, Floats]:
    values = np.zeros((len(cpu), length, 12), dtype=np.float32)
    values[:, -1, 4] = cpu
    return values, np.zeros((len(cpu), REFERENCE_WIDTH), dtype=np.float32)


def ask(gathering: Gathering, detectors: list[Recorder], requests: list[tuple[Floats, Floats]]) -> list[Any]:
    async def all_at_once() -> list[Any]:
        calls = [gathering.score(d, *r) for d, r in zip(detectors, requests, strict=True)]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_at_once())


def test_what_is_ready_together_is_scored_together() -> None:
    detector = Recorder()
    # Longer windows are cut to what the model looks at, so that they fit beside the others.
    requests = [windows(0.1), windows(0.2, 0.3), windows(0.4, length=9)]
    answers = ask(Gathering(), [detector] * 3, requests)
    assert detector.sizes == [4]
    assert [a.p_anomalous.tolist() for a in answers] == [
        pytest.approx([0.1]),
        pytest.approx([0.2, 0.3]),
        pytest.approx([0.4]),
    ]
    assert all(len(a.contributions) == len(a.flagged) == len(a.p_anomalous) for a in answers)


def test_one_alone_is_scored_as_it_is() -> None:
    detector = Recorder()
    (answer,) = ask(Gathering(), [detector], [windows(0.7)])
    assert (detector.sizes, answer.p_anomalous.tolist()) == ([1], pytest.approx([0.7]))


def test_versions_are_not_mixed() -> None:
    old, new = Recorder(), Recorder()
    ask(Gathering(), [old, new, old], [windows(0.1), windows(0.2), windows(0.3)])
    assert (old.sizes, new.sizes) == ([2], [1])


def test_windows_of_different_lengths_are_not_mixed() -> None:
    detector = Recorder()
    ask(Gathering(), [detector] * 3, [windows(0.1), windows(0.2, length=3), windows(0.3)])
    assert sorted(detector.sizes) == [1, 2]


def test_a_gathering_is_bounded() -> None:
    detector = Recorder()
    ask(Gathering(inline_windows=3), [detector] * 3, [windows(0.1, 0.2), windows(0.3, 0.4), windows(0.5)])
    assert sorted(detector.sizes) == [2, 3]


def test_large_requests_are_scored_in_the_thread() -> None:
    detector = Recorder()
    ask(Gathering(inline_windows=2), [detector] * 2, [windows(0.1, 0.2, 0.3), windows(0.1, 0.2, 0.3)])
    assert detector.sizes == [3, 3]
    assert len(detector.threads) == 1
    assert threading.get_ident() not in detector.threads


def test_one_that_fails_fails_alone() -> None:
    detector = Recorder()
    good, bad, other = ask(Gathering(), [detector] * 3, [windows(0.1), windows(-1.0), windows(0.3)])
    assert isinstance(bad, InputError)
    assert good.p_anomalous.tolist() == pytest.approx([0.1])
    assert other.p_anomalous.tolist() == pytest.approx([0.3])


def test_what_nobody_foresaw_reaches_everyone() -> None:
    detector = Recorder()
    detector.fault = ZeroDivisionError()
    answers = ask(Gathering(), [detector] * 2, [windows(0.1), windows(0.2)])
    assert [type(a) for a in answers] == [ZeroDivisionError, ZeroDivisionError]


def test_a_client_that_has_gone_keeps_nobody_waiting() -> None:
    detector = Recorder()

    async def leave() -> Any:
        gathering = Gathering()
        gone = asyncio.create_task(gathering.score(detector, *windows(0.1)))
        stays = asyncio.create_task(gathering.score(detector, *windows(0.2)))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(leave()).p_anomalous.tolist() == pytest.approx([0.2])
