"""`natwork train forecaster` as a Ray job: the training runs in a task, wherever the cluster has a free core.

    ray job submit --address http://127.0.0.1:PORT --working-dir . -- python scripts/train_forecaster.py --out FILE

With the same options it writes the same bytes as the command does.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray

from natwork_ray.cli.forecasting import (
    SHIPPED,
    SHIPPED_DATA_SEED,
    SHIPPED_HOURS,
    SHIPPED_RUNS,
    DataFormat,
    recordings_of,
)
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.forecasting.card import ForecastSettings
from natwork_ray.forecasting.model_file import digest, dumps
from natwork_ray.forecasting.training import train_forecaster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, on the machine that runs the job")
    parser.add_argument("--data", type=Path, help="recordings, on the machine that runs the job; emulated runs without")
    parser.add_argument("--format", type=DataFormat, choices=list(DataFormat), default=DataFormat.IANOMALY)
    parser.add_argument("--seed", type=int, default=ForecastSettings().seed, help="of everything random in training")
    parser.add_argument("--lstm-epochs", type=int, default=0, help="of Annex A's LSTM; 0 leaves it out of the choice")
    parser.add_argument("--data-seed", type=int, default=SHIPPED_DATA_SEED, help="of the emulated runs")
    parser.add_argument("--runs", type=int, default=SHIPPED_RUNS, help="number of emulated runs")
    parser.add_argument("--hours", type=float, default=SHIPPED_HOURS, help="length of each emulated run")
    options = parser.parse_args()
    ray.init()
    settings = replace(
        SHIPPED if options.data is None else ForecastSettings(), seed=options.seed, lstm_epochs=options.lstm_epochs
    )
    runs = recordings_of(options.data, options.format, seed=options.data_seed, runs=options.runs, hours=options.hours)
    emulated = options.data is None
    model: bytes = ray.get(ray.remote(num_cpus=1)(train).remote(ray.put(runs), settings, emulated))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(model)
    print(f"{options.out}: {len(model)} bytes, sha256 {digest(model)}")


def train(runs: tuple[LabelledRun, ...], settings: ForecastSettings, emulated: bool) -> bytes:
    """The model file of a forecaster trained on these runs; the names of emulated services mean nothing elsewhere."""
    trained = train_forecaster(runs, settings)
    return dumps(trained.without_services() if emulated else trained)


if __name__ == "__main__":
    main()
