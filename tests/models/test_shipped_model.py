"""What takes minutes: rebuilding the shipped model from its seed, and Table 2 on the recorded services."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from natwork_ray.adapters.ianomaly import labelled_runs as recorded_runs
from natwork_ray.adapters.ianomaly import read_recordings
from natwork_ray.adapters.model_directory import ModelDirectory
from natwork_ray.cli.train import SHIPPED_DATA_SEED, SHIPPED_HOURS, SHIPPED_RUNS, training_data
from natwork_ray.emulation.training_set import labelled_runs
from natwork_ray.profiling.bounds import DEFAULT_MODEL
from natwork_ray.profiling.evaluation import binary_metrics, event_metrics, vote
from natwork_ray.profiling.model_file import loads
from natwork_ray.profiling.reproduction import table_2
from natwork_ray.profiling.reproduction.contestants import run_cell
from natwork_ray.profiling.reproduction.tables import Demand
from natwork_ray.profiling.training import train
from natwork_ray.profiling.windows import commissioning_book, cut


@pytest.mark.slow
def test_the_packaged_model_can_be_rebuilt_from_its_seed() -> None:
    """Data and weights may differ in the last bits from one processor to the next; what is said of a window may not."""
    packaged = loads(ModelDirectory().load(DEFAULT_MODEL))
    rebuilt = train(training_data(None, seed=SHIPPED_DATA_SEED, runs=SHIPPED_RUNS, hours=SHIPPED_HOURS))
    assert rebuilt.card.settings == packaged.card.settings
    assert rebuilt.card.windows == packaged.card.windows
    agree = total = 0
    for run in labelled_runs(seed=4343, runs=1, hours=2.0):
        values = cut(run.values, packaged.history)
        references = commissioning_book([run]).references((run.service,) * len(values))
        a, b = packaged.score(values, references), rebuilt.score(values, references)
        agree += int(((a.flagged == b.flagged) & (a.kinds == b.kinds)).sum())
        total += len(values)
    assert agree >= 0.98 * total


def test_the_packaged_model_on_a_fresh_world() -> None:
    """Services and seed that it never saw: what an operator would meet."""
    detector = loads(ModelDirectory().load(DEFAULT_MODEL))
    flags, kinds, unit = [], [], []
    for i, run in enumerate(labelled_runs(seed=4242, runs=1, hours=2.5)):
        values = cut(run.values, detector.history)[run.commissioning :]
        references = commissioning_book([run]).references((run.service,) * len(values))
        scores = detector.score(values, references)
        flags.append(scores.flagged & (scores.kinds != 0))
        kinds.append(run.kinds[run.commissioning :])
        unit.append(np.full(len(values), i))
    flagged, labels, units = np.concatenate(flags), np.concatenate(kinds), np.concatenate(unit)
    sure = labels >= 0
    reached = binary_metrics(labels[sure] > 0, flagged[sure].astype(float), 0.5)
    assert reached.precision >= 0.9
    assert reached.recall >= 0.7
    voted = vote(flagged, units, needed=2, of=3) & sure
    events = event_metrics(labels > 0, voted, units, step_s=10.0, grace=12)
    assert events.found >= 0.65 * events.events
    # Half of them are what the novelty gate flags as Unknown.
    assert events.false_alarms_per_hour <= 0.4


@pytest.mark.data
@pytest.mark.slow
def test_the_packaged_model_on_recorded_services(data_dir: Path) -> None:
    """Trained on the emulation only; each service brings one commissioning hour, which is not scored."""
    packaged = loads(ModelDirectory().load(DEFAULT_MODEL))
    runs = recorded_runs(read_recordings(data_dir / "ianomaly"))
    scores, truth = [], []
    for service in sorted({run.service for run in runs}):
        own = [run for run in runs if run.service == service]
        hour = next(run for run in own if run.commissioning)
        book = commissioning_book([hour])
        for run in (run for run in own if run is not hour):
            windows = cut(run.values, packaged.history)
            scores.append(packaged.score(windows, book.references((service,) * len(windows))).p_anomalous)
            truth.append(run.anomalous)
    reached = binary_metrics(np.concatenate(truth), np.concatenate(scores), packaged.card.threshold)
    assert reached.auc >= 0.93
    assert reached.f1 >= 0.75


@pytest.mark.data
@pytest.mark.slow
def test_table_2_on_the_recorded_services(data_dir: Path) -> None:
    runs = recorded_runs(read_recordings(data_dir / "ianomaly"))
    demand = Demand(models=("best", "annex-a", "largest-deviation", "constant-threshold"))
    results = {cell: run_cell(runs, cell) for cell in table_2.cells(runs, demand)}
    best, network, deviation, constant, leaky = table_2.table(runs, demand, results).rows
    assert best.f1 >= 0.86
    assert best.auc is not None
    assert best.auc >= 0.97
    assert network.f1 >= 0.86
    assert network.accuracy >= 0.95
    # What a random split of overlapping windows adds without a better detector.
    assert leaky.f1 > network.f1 + 0.01
    assert deviation.f1 < network.f1 - 0.05
    assert constant.f1 < network.f1 - 0.05
