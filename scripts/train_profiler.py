"""`natwork train profiler` as a Ray job: the training runs in a task, wherever the cluster has a free core.

    ray job submit --address http://127.0.0.1:PORT --working-dir . -- python scripts/train_profiler.py --out FILE

With the same options it writes the same bytes as the command does.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray

from natwork_ray.cli.train import SHIPPED_DATA_SEED, SHIPPED_HOURS, SHIPPED_RUNS, training_data
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import digest
from natwork_ray.profiling.training import train_profiler

SETTINGS = TrainingSettings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, on the machine that runs the job")
    parser.add_argument("--data", type=Path, help="recordings in iAnomaly's format, as the workers see them")
    parser.add_argument("--seed", type=int, default=SETTINGS.seed, help="of initial weights and batch order")
    parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="per network")
    parser.add_argument("--data-seed", type=int, default=SHIPPED_DATA_SEED, help="of the emulated runs")
    parser.add_argument("--runs", type=int, default=SHIPPED_RUNS, help="number of emulated runs")
    parser.add_argument("--hours", type=float, default=SHIPPED_HOURS, help="length of each emulated run")
    options = parser.parse_args()
    ray.init()
    settings = replace(SETTINGS, seed=options.seed, epochs=options.epochs)
    data = (options.data, options.data_seed, options.runs, options.hours)
    model: bytes = ray.get(ray.remote(num_cpus=1)(train).remote(settings, *data))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(model)
    print(f"{options.out}: {len(model)} bytes, sha256 {digest(model)}")


def train(settings: TrainingSettings, folder: Path | None, data_seed: int, runs: int, hours: float) -> bytes:
    """Collect the labelled runs and train both stages."""
    return train_profiler(training_data(folder, seed=data_seed, runs=runs, hours=hours), settings)


if __name__ == "__main__":
    main()
