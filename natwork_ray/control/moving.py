"""How a move would go, from the published equations (limi.durations), until learnt models take over."""

from __future__ import annotations

from natwork_ray.control.planner import MovePrediction
from natwork_ray.domain.topology import Container
from natwork_ray.limi.durations import best_method, predict_p95, typical_inputs


def predict_move(container: Container, *, rss_bytes: float, bandwidth_bytes_per_s: float) -> MovePrediction:
    """The method with the least loss for a container of this size over this link, and its 95th percentile."""
    inputs = typical_inputs(
        rss_bytes=rss_bytes, replicas=container.replicas, bandwidth_bytes_per_s=bandwidth_bytes_per_s
    )
    method = best_method(inputs).method
    slow = predict_p95(method, inputs)
    return MovePrediction(method=method, downtime_p95_s=slow.downtime_s, total_s=best_method(inputs).total_s)
