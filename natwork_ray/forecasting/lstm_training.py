"""Training Annex A's LSTM on recordings, and running it over them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.errors import PreconditionError
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.frames import Floats, framed, restarts, sliding
from natwork_ray.forecasting.lstm_model import CLIP, LstmChange, channels, network_input
from natwork_ray.forecasting.references import CENTRE, SCALE, STEP, Doubles, References

Progress = Callable[[int, int, str], None]
# Training windows at most: an epoch over more takes minutes on one core, and neighbouring windows are nearly alike.
MAX_WINDOWS = 12_000


def fit_lstm(
    series: Sequence[LabelledRun],
    references: References,
    settings: ForecastSettings,
    *,
    epochs: int,
    leave_out: Collection[int] = (),
    residual: bool = True,
    most: int = MAX_WINDOWS,
    progress: Progress | None = None,
) -> LstmChange:
    """Train on every recording whose place is not in `leave_out`; of too many windows every n-th is taken.

    Raises:
        PreconditionError: torch is not installed.
    """
    try:
        from natwork_ray.forecasting.networks import fit_network
    except ImportError as error:
        raise PreconditionError(
            f"torch cannot be loaded: {error}", hint="`pip install torch`, or train without the LSTM (lstm_epochs = 0)"
        ) from error
    used = [i for i, run in enumerate(series) if i not in leave_out and len(run.kinds)]
    stride = max(1, -(-sum(len(series[i].kinds) for i in used) // most))
    inputs, outputs = [], []
    for turn, i in enumerate(used):
        seen, coming = _windows(series[i], references, settings, residual=residual)
        start = turn % stride
        inputs.append(seen[start::stride])
        outputs.append(coming[start::stride])
    network = fit_network(
        np.concatenate(inputs),
        np.concatenate(outputs),
        seed=settings.seed,
        epochs=epochs,
        wanted=len(settings.targets),
        progress=progress,
        what="LSTM of changes" if residual else "LSTM of levels",
    )
    return LstmChange(network, settings.targets, settings.horizons, residual)


def changes_over(lstm: LstmChange, run: LabelledRun, references: References, settings: ForecastSettings) -> Doubles:
    """(T, K, H) expected changes at every sample of a recording, in units of reach."""
    frame = framed(sliding(run.values, settings.window))
    rows = np.full(len(run.kinds), references.rows([run.service])[0])
    table, reach = references.of(rows, frame, settings.targets)
    return lstm.change(frame, table, reach)


def _windows(
    run: LabelledRun, references: References, settings: ForecastSettings, *, residual: bool
) -> tuple[Floats, Floats]:
    """Inputs (T, W, C), and what the network should say (T, H, C), NaN where that is unknown."""
    frame = framed(sliding(run.values, settings.window))
    rows = np.full(len(run.kinds), references.rows([run.service])[0])
    table, _ = references.of(rows, frame, settings.targets)
    inputs = network_input(frame, table, settings.targets)
    seen = list(channels(settings.targets))
    values = run.values[:, seen].astype(np.float64)  # carried samples are no truth to learn from
    lives = np.cumsum(restarts(run.values[None])[0])
    coming = np.full((len(inputs), len(settings.horizons), len(seen)), np.nan, dtype=np.float32)
    for j, h in enumerate(settings.horizons):
        if len(inputs) <= h:
            continue
        if residual:
            wanted = (values[h:] - values[:-h]) / (table[:-h, seen, STEP] * np.sqrt(h))
        else:
            wanted = (values[h:] - table[:-h, seen, CENTRE]) / table[:-h, seen, SCALE]
        wanted = np.clip(wanted, -CLIP, CLIP)
        coming[:-h, j] = np.where((lives[h:] == lives[:-h])[:, None], wanted, np.nan)
    return inputs, coming
