"""Turn the loop on the Ray cluster that this is run on, and write down what came of it.

    ray job submit --address http://127.0.0.1:PORT --working-dir . -- python scripts/run_loop.py --minutes 30 --seed 9

The job brings its own world, control actor and agents, in a namespace of its own, beside whatever else runs on the
cluster. Results go to --out on the machine that runs the job, the summary also to stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
from ray import serve

from agents.naming import SERVE_ANOMALY
from agents.supervisor import Supervisor
from natwork_ray.cli.report import write_report
from natwork_ray.cli.run_record import Chronicle, make_record
from natwork_ray.cli.summary import summary_json
from natwork_ray.config import Config, load_config
from natwork_ray.domain.decisions import Mode
from natwork_ray.domain.runs import RunRecord
from natwork_ray.errors import PreconditionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", default="smart-city", help="emulated scenario")
    parser.add_argument("--seed", type=int, default=7, help="seed of everything random")
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the run on the virtual clock")
    parser.add_argument(
        "--mode", type=Mode, choices=list(Mode), default=Mode.ACT, help="what the loop may do by itself"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for summary, report, audit log and state")
    parser.add_argument("--namespace", help="Ray namespace (default: one of its own per run)")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    if (out / "state").exists():
        parser.error(f"{out} holds a run already")
    out.mkdir(parents=True, exist_ok=True)
    config = load_config(
        flags={
            "backend": "emulated",
            "emulation.scenario": options.scenario,
            "emulation.seed": options.seed,
            "emulation.duration_s": options.minutes * 60,
            "loop.mode": options.mode,
            "sla.window_s": 86_400.0,
            "state_dir": out / "state",
        }
    )
    ray.init(namespace="natwork", log_to_driver=False)
    require_model()
    namespace = options.namespace or f"natwork-run-{ray.get_runtime_context().get_job_id()}"
    record = asyncio.run(run(config, namespace, out))
    write_report(record, out / "report.html")
    summary = summary_json(record)
    (out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False), encoding="utf-8")
    print(json.dumps(summary, allow_nan=False))


def require_model() -> None:
    """The detector must be served; deploying it from a job would end it with the job's files."""
    if SERVE_ANOMALY not in serve.status().applications:
        raise PreconditionError(
            "the anomaly model is not served on this cluster",
            hint="`natwork up`, or serve deploy serve_apps/config.yaml",
        )


async def run(config: Config, namespace: str, out: Path) -> RunRecord:
    """The whole run; its actors end with it, whatever happens."""
    began = time.monotonic()
    try:
        supervisor = await Supervisor.begin(config, config.state_dir, namespace=namespace)
        before = await supervisor.crew.world.topology()
        chronicle = Chronicle()
        await supervisor.run(on_turn=chronicle.add)
        record = await make_record(supervisor, config, chronicle, before, audit_file=out / "audit.log")
        return replace(record, wall_s=time.monotonic() - began)
    finally:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == namespace:
                ray.kill(ray.get_actor(actor["name"], namespace=namespace), no_restart=True)


if __name__ == "__main__":
    main()
