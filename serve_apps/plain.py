"""The anomaly door behind plain uvicorn, without Ray: one process, one model.

For machines where Ray is too much, and what `natwork bench serving` compares Serve with: the same application and
model, the same event loop and HTTP parser, nothing in between. Its model is never swapped.

    OMP_NUM_THREADS=1 uvicorn --factory serve_apps.plain:anomaly --port 8001 --no-access-log
"""

from __future__ import annotations

import torch
from fastapi import FastAPI

from natwork_ray.backends import model_bytes
from natwork_ray.config import load_config
from serve_apps.anomaly_api import create_app
from serve_apps.anomaly_model import load_served
from serve_apps.local_samples import LocalSamples
from serve_apps.model_slot import ModelSlot
from serve_apps.security import LOOPBACK_HOSTS


def anomaly() -> FastAPI:
    """The anomaly application with the model that the configuration names, else the shipped one."""
    torch.set_num_threads(1)  # more threads than cores cost a factor of ten
    config = load_config()
    slot = ModelSlot(load_served, load_served(model_bytes(config)))
    return create_app(
        slot.provide,
        max_body_bytes=config.http.max_body_bytes,
        allowed_hosts=(*LOOPBACK_HOSTS, config.http.host),
        samples=LocalSamples(config.loop.step_s),
    )
