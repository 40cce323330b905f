"""How a move would go when no more is known than what the loop sees: the resident memory of a container, and the link.

Three `MovePredictor`s. `LearntMoves` asks the trained models (limi.selection) about a container that is typical for its
size; the quantities that the loop does not see are those of `limi.durations.typical_inputs`, at their cautious end.
`predict_move` asks the published equations (limi.durations); it needs no model, and answers wherever the trained models
would have to guess beyond what they have seen. `LearntMovesLater` reads the models when it is first asked, and does
with the equations where they cannot be used.

    >>> predict = LearntMoves(read_selector()[0])   # doctest: +SKIP

Left out: measuring the container, which the LiMi agents do before they choose the method themselves.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from natwork_ray.control.planner import MovePrediction, MovePredictor
from natwork_ray.domain.migrations import ContainerLoad
from natwork_ray.domain.topology import Container
from natwork_ray.errors import NatworkError
from natwork_ray.limi.durations import (
    TYPICAL_VOLUME_BYTES,
    best_method,
    predict_p95,
    typical_inputs,
)
from natwork_ray.limi.selection import MethodSelector
from natwork_ray.limi.selector_card import DEFAULT_WEIGHT
from natwork_ray.limi.selector_file import PACKAGED_SELECTOR, read_selector

_log = logging.getLogger(__name__)

# Of the limit; assumed: in the middle of what containers use, and it hardly matters to a migration.
_TYPICAL_CPU_SHARE = 0.5
# They decide little, and their typical values stand for "unknown": no reason to do without the trained models.
_MINOR = frozenset({"cpu_cores", "cpu_limit_cores", "volume_bytes", "volume_delta_bytes", "volume_write_bytes_per_s"})


def predict_move(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
    """The method with the least loss for a container of this size over this link, and its 95th percentile."""
    inputs = typical_inputs(
        rss_bytes=rss_bytes, replicas=container.replicas, bandwidth_bytes_per_s=bandwidth_bytes_per_s
    )
    method = best_method(inputs).method
    slow = predict_p95(method, inputs)
    return MovePrediction(method=method, downtime_p95_s=slow.downtime_s, total_s=best_method(inputs).total_s)


def typical_load(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> ContainerLoad:
    """What a measurement of a typical container of this size would say; network traffic is left at 0."""
    inputs = typical_inputs(
        rss_bytes=rss_bytes, replicas=container.replicas, bandwidth_bytes_per_s=bandwidth_bytes_per_s
    )
    return ContainerLoad(
        memory_bytes=inputs.dump_bytes,
        dirty_bytes_per_s=inputs.dirty_bytes_per_s,
        working_set_bytes=inputs.working_set_bytes,
        cpu_cores=_TYPICAL_CPU_SHARE * container.cpu_limit_cores,
        cpu_limit_cores=container.cpu_limit_cores,
        volume_bytes=TYPICAL_VOLUME_BYTES,
        volume_delta_bytes=inputs.volume_delta_bytes,
        volume_write_bytes_per_s=inputs.volume_write_bytes_per_s,
        network_rx_bytes_per_s=0.0,
        network_tx_bytes_per_s=0.0,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        rtt_s=inputs.rtt_s,
        observed_s=0.0,
    )


class LearntMoves:
    """`MovePredictor` over the trained models, at a stated weight of total time against downtime."""

    def __init__(self, selector: MethodSelector, *, weight: float = DEFAULT_WEIGHT) -> None:
        self._selector, self._weight = selector, weight

    def __call__(self, container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        """The method with the least cost, its 95th percentile of downtime and its median total time."""
        load = typical_load(container, rss_bytes=rss_bytes, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
        if set(self._selector.extrapolated(load)) - _MINOR:
            return predict_move(container, rss_bytes=rss_bytes, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
        load = self._within(load)
        forecast = self._selector.choose(load, weight=self._weight)
        return MovePrediction(
            method=forecast.method,
            downtime_p95_s=forecast.downtime_p95_s,
            total_s=forecast.total_p50_s,
            chosen_by="model",
        )

    def _within(self, load: ContainerLoad) -> ContainerLoad:
        """The load with its minor quantities moved into what the training had seen."""
        seen = {r.quantity: r for r in self._selector.card.seen}
        return replace(
            load, **{name: min(max(getattr(load, name), seen[name].low), seen[name].high) for name in sorted(_MINOR)}
        )


class LearntMovesLater:
    """`LearntMoves` over the models in a file (None: the shipped ones), read when a move is first weighed.

    LightGBM costs a second, and most runs of a loop never move anything. Where the shipped ones cannot be used,
    the equations answer from then on, and the log says why: a defence that stands still would be worse. A file that
    somebody named and that cannot be read is an error of each prediction.
    """

    def __init__(self, path: Path | None, *, weight: float = DEFAULT_WEIGHT) -> None:
        self._path, self._weight = path, weight
        self._moves: MovePredictor | None = None

    def __call__(self, container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
        """See `LearntMoves`, or `predict_move`."""
        if self._moves is None:
            self._moves = self._read()
        return self._moves(container, rss_bytes=rss_bytes, bandwidth_bytes_per_s=bandwidth_bytes_per_s)

    def _read(self) -> MovePredictor:
        try:
            selector, _ = read_selector(self._path.expanduser() if self._path else PACKAGED_SELECTOR)
        except NatworkError as error:
            if self._path is not None:  # named by a person, who has to know
                raise
            _log.warning("the equations choose migration methods: %s", error)
            return predict_move
        return LearntMoves(selector, weight=self._weight)
