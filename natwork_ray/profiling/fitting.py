"""Fitting one network: deterministic on one thread, given the seed.

The recipe is not published with Annex A's architectures. Here: cross-entropy with class weights, AdamW, one
learning-rate cycle that ends near zero, so that the result does not hang on which epoch was the last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from natwork_ray.profiling.networks import probabilities
from natwork_ray.profiling.profile import Floats
from natwork_ray.profiling.progress import Progress as Progress
from natwork_ray.profiling.progress import no_progress as no_progress

Net = TypeVar("Net", bound=nn.Module)

_CHUNK = 8192


@contextlib.contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """One torch thread and a seeded torch generator; both are put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def balanced_weights(targets: NDArray[np.int64], classes: int, *, power: float) -> Floats:
    """Loss weight per class, (classes,): (largest count / count) ** power; 1 for classes without samples.

    `power` 0 leaves the classes as they are, 1 makes all count the same, 0.5 lies between.
    """
    counts = np.bincount(targets, minlength=classes).astype(np.float64)
    weights = np.ones(classes)
    present = counts > 0
    weights[present] = (counts.max() / counts[present]) ** power
    return weights.astype(np.float32)


def fit(
    build: Callable[[], Net],
    inputs: Floats,
    targets: NDArray[np.int64],
    *,
    weights: Floats,
    seed: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    noise: float = 0.0,
    progress: Progress = no_progress,
    what: str = "training",
) -> Net:
    """Train a fresh network on inputs (M, T, 12) and class indices (M,); returned in eval mode.

    `noise` is the standard deviation of Gaussian noise added to the inputs of each step.
    """
    with one_thread(seed):
        network = build()
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        loss_weights = torch.from_numpy(weights)
        # Batch normalisation cannot learn from a last batch of one.
        steps = max(1, len(x) // batch)
        optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=learning_rate, epochs=epochs, steps_per_epoch=steps
        )
        network.train()
        for epoch in range(epochs):
            order = torch.randperm(len(x))
            for rows in torch.tensor_split(order, steps):
                picked = x[rows]
                if noise > 0:
                    picked = picked + noise * torch.randn_like(picked)
                optimiser.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(network(picked), y[rows], weight=loss_weights)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            progress(epoch + 1, epochs, what)
        network.eval()
    return network


def predict(network: nn.Module, inputs: Floats) -> Floats:
    """Probabilities (M, classes) of inputs (M, T, 12), in chunks so that memory stays bounded."""
    network.eval()
    with torch.inference_mode():
        parts = [
            probabilities(network, torch.from_numpy(inputs[i : i + _CHUNK])).numpy()
            for i in range(0, len(inputs), _CHUNK)
        ]
    return np.concatenate(parts)


def contributions_of(network: nn.Module, inputs: Floats) -> Floats:
    """(M, 12): how much each metric of inputs (M, T, 12) pushed a two-class network towards its second class.

    Gradient times input, summed over the window: to first order what the log odds would lose, were the metric as usual.
    """
    network.eval()
    parts = []
    for i in range(0, len(inputs), _CHUNK):
        x = torch.from_numpy(inputs[i : i + _CHUNK]).requires_grad_(True)
        logits = network(x)
        (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), x)
        parts.append((gradient * x.detach()).sum(dim=1).numpy())
    return np.concatenate(parts)
