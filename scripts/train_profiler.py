"""`natwork train profiler` as a Ray job: the training runs in a task, wherever the cluster has a free core.

    ray job submit --address http://127.0.0.1:PORT --working-dir . -- python scripts/train_profiler.py --out FILE

With the same options it writes the same bytes as the command does. With --evaluate the same training is also done
without each run in turn, one task per run and seed; with --resume FOLDER (on the machine that runs the job) what is
finished is kept, and a job that was killed goes on when it is submitted again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray

from agents.reproducing import fan_out
from natwork_ray.adapters.finished_cells import FinishedCells
from natwork_ray.cli.train import SHIPPED_DATA_SEED, SHIPPED_HOURS, SHIPPED_RUNS, settings_of, training_data
from natwork_ray.domain.labelled import LabelledRun
from natwork_ray.domain.values import plain
from natwork_ray.profiling.model_card import TrainingSettings
from natwork_ray.profiling.model_file import digest
from natwork_ray.profiling.reproduction import training_check
from natwork_ray.profiling.reproduction.cells import code_digest
from natwork_ray.profiling.training import data_digest, train_profiler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, on the machine that runs the job")
    parser.add_argument("--data", type=Path, help="recordings in iAnomaly's format, on the machine that runs the job")
    parser.add_argument("--detector", choices=("best", "annex-a"), default=TrainingSettings().detector)
    parser.add_argument("--seed", type=int, default=TrainingSettings().seed, help="of everything random in training")
    parser.add_argument("--epochs", type=int, help="per network")
    parser.add_argument("--window", type=int, help="samples per window")
    parser.add_argument("--data-seed", type=int, default=SHIPPED_DATA_SEED, help="of the emulated runs")
    parser.add_argument("--runs", type=int, default=SHIPPED_RUNS, help="number of emulated runs")
    parser.add_argument("--hours", type=float, default=SHIPPED_HOURS, help="length of each emulated run")
    parser.add_argument("--evaluate", action="store_true", help="also train without each run in turn, and judge it")
    parser.add_argument("--seeds", type=int, default=1, help="of the evaluation")
    parser.add_argument("--resume", type=Path, help="folder that keeps what the evaluation has finished")
    options = parser.parse_args()
    ray.init()
    settings = settings_of(options.detector, seed=options.seed, epochs=options.epochs, window=options.window)
    runs = training_data(options.data, seed=options.data_seed, runs=options.runs, hours=options.hours)
    shared = ray.put(runs)
    training = ray.remote(num_cpus=1)(train_profiler).remote(shared, settings)
    if options.evaluate:
        row = evaluate(runs, settings, seeds=options.seeds, resume=options.resume)
        print(json.dumps({"by_run": row}, allow_nan=False))
    model: bytes = ray.get(training)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(model)
    print(f"{options.out}: {len(model)} bytes, sha256 {digest(model)}")


def evaluate(runs: tuple[LabelledRun, ...], settings: TrainingSettings, *, seeds: int, resume: Path | None) -> object:
    """The row of `training_check`, computed by all cores of the cluster."""
    cells = training_check.cells(runs, settings, seeds=seeds)
    kept = FinishedCells(resume, data=data_digest(runs), code=code_digest()) if resume else None
    results = {cell: result for cell in cells if kept and (result := kept.load(cell)) is not None}
    missing = [cell for cell in cells if cell not in results]
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    for cell, result in fan_out(runs, missing, workers=workers):
        results[cell] = result
        print(f"{len(results)} of {len(cells)}: {cell.title}, {result.seconds:.0f} s", flush=True)
        if kept:
            kept.save(cell, result)
    return plain(training_check.row(runs, results))


if __name__ == "__main__":
    main()
