"""What a stretch of deviations looks like: the features by which stage 2 tells anomalies apart.

A spike and the first moments of a step are the same sample; what tells them apart is what came before. So stage 2 looks
at a longer history than stage 1: where each metric stands now; how six signatures (traffic, latency, CPU, memory, and
how CPU and latency move against traffic) got there over the last 3, 6 and 12 samples; and when the present episode
began, how abruptly, and how long it has lasted. Few and telling features on purpose: with every metric at every span,
the same forest learnt the runs it was trained on.

Rules kept:

- Causal: nothing but the history that ends with the newest sample.
- Missing samples count as usual (deviation 0). A history that is shorter than wanted is continued backwards with its
  first sample, as windows at the start of a run are.
- Disk writes are left out: where disk metrics are read from the kernel's counters they double the reads.

    >>> features(deviating).shape               # deviating: (M, T, 12), newest last
    (M, F)
"""

from __future__ import annotations

import numpy as np

from natwork_ray.domain.telemetry import METRICS, Metric
from natwork_ray.profiling.profile import Floats

# Samples of history that stage 2 looks at: four minutes at the default step.
HISTORY = 24
LATENCIES = tuple(METRICS.index(m) for m in (Metric.LATENCY_P50, Metric.LATENCY_P90, Metric.LATENCY_P99))
SEEN = tuple(k for k, metric in enumerate(METRICS) if metric is not Metric.DISK_WRITE)
# One anomaly shakes all of these alike: bytes and requests.
TRAFFIC = tuple(METRICS.index(m) for m in (Metric.DISK_READ, Metric.NETWORK_RX, Metric.NETWORK_TX, Metric.THROUGHPUT))
_SPANS = (3, 6, 12)
_EXTREMES = (6, 12)
# Deviations up to which one metric, or the latencies together, or all metrics together, count as usual.
_USUAL = 1.5
_USUAL_LATENCY = 1.0
# An episode is over after this many usual samples in a row; gaps of a sample or two belong to it.
_CALM = 3
_SATURATION = 8.0


def features(deviating: Floats) -> Floats:
    """Features float32 (M, F) of histories (M, T, 12): deviations, newest last, NaN where missing; finite."""
    usual = np.nan_to_num(stretched(deviating), nan=0.0)
    courses = np.stack(_signatures(usual))
    runs = [courses[:, :, -1], *(courses[:, :, -span:].mean(axis=2) for span in _SPANS)]
    for span in _EXTREMES:
        recent = courses[:, :, -span:]
        runs += [recent.max(axis=2), recent.min(axis=2)]
    # Course by course, and of each course one statistic after the other.
    by_course = np.stack(runs, axis=2).transpose(1, 0, 2).reshape(len(usual), len(courses) * len(runs))
    return np.concatenate([usual[:, -1, SEEN], by_course, _episode(usual)], axis=1, dtype=np.float32)


def stretched(deviating: Floats) -> Floats:
    """The last `HISTORY` samples of histories (M, T, 12), continued backwards with the first where T is shorter."""
    missing = HISTORY - deviating.shape[1]
    if missing <= 0:
        return deviating[:, -HISTORY:]
    return np.concatenate([np.repeat(deviating[:, :1], missing, axis=1), deviating], axis=1)


def _signatures(usual: Floats) -> tuple[Floats, ...]:
    """Courses (M, T) of what anomalies have in common across services."""
    traffic, latency = usual[:, :, TRAFFIC].mean(axis=2), usual[:, :, LATENCIES].mean(axis=2)
    cpu, memory = usual[:, :, METRICS.index(Metric.CPU)], usual[:, :, METRICS.index(Metric.MEMORY_VSIZE)]
    return traffic, latency, cpu, cpu - traffic, latency - traffic, memory


def _episode(usual: Floats) -> Floats:
    """(M, 17) about all metrics together, and about the episode that the newest sample belongs to."""
    saturated = np.clip(usual, -_SATURATION, _SATURATION)
    latency = saturated[:, :, LATENCIES].mean(axis=2)
    overall = np.sqrt((saturated[:, :, SEEN] ** 2).mean(axis=2))
    slow, far = latency > _USUAL, overall > _USUAL
    rows = np.arange(len(usual))
    active = (latency > _USUAL_LATENCY) | far
    begins = active.copy()
    for gap in range(1, _CALM + 1):
        begins[:, gap:] &= ~active[:, :-gap]
    places = np.arange(HISTORY)
    began = np.where(begins, places, -1).max(axis=1)
    calm = HISTORY - 1 - np.where(active, places, -1).max(axis=1)
    going = (began >= 0) & (calm < _CALM)
    first = np.where(going, began, HISTORY - 1)
    second = np.minimum(first + 1, HISTORY - 1)
    before = (latency[rows, np.maximum(first - 1, 0)] + latency[rows, np.maximum(first - 2, 0)]) / 2
    about = [
        overall[:, -1],
        overall[:, -3:].mean(axis=1),
        overall[:, -6:].max(axis=1),
        far.sum(axis=1),
        _lasting(far[:, :, None])[:, 0],
        slow.sum(axis=1),
        _lasting(slow[:, :, None])[:, 0],
        np.diff(latency[:, -7:], axis=1).max(axis=1),
        calm,
    ]
    of_episode = [
        HISTORY - first,
        latency[rows, first] - before,
        latency[rows, second] - before,
        latency[rows, first],
        latency[rows, second],
        overall[rows, first],
        usual[rows, first, METRICS.index(Metric.MEMORY_VSIZE)],
        usual[rows, first, METRICS.index(Metric.THROUGHPUT)],
    ]
    return np.stack([*about, *(np.where(going, x, 0.0) for x in of_episode)], axis=1).astype(np.float32)


def _lasting(flags: np.ndarray) -> Floats:
    """For flags (M, T, C) how many of the newest samples in a row are set, (M, C)."""
    return np.asarray(np.cumprod(flags[:, ::-1], axis=1).sum(axis=1), dtype=np.float32)
