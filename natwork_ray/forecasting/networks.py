"""Annex A's "Lightweight LSTM Regression Model", layer by layer as published, in PyTorch, and how it is trained.

What the annex leaves open, and what is done here:

- Which steps the h * C outputs stand for: here h horizons of C channels, in this order. Section 6.3 trains one network
  per metric; one network for all metrics is what h * C outputs are for.
- Names and arguments are those of Keras, so Keras' conventions hold: an LSTM has one bias per gate. PyTorch keeps two
  that are only ever added; the second is fixed at zero and not trained.
- Training. Section 6.3 says 30 epochs and no more. Ours: squared error, linear beyond three units (loads jump); AdamW,
  one learning-rate cycle, and noise on the inputs, without which a few thousand windows are learnt by heart.
- What is predicted. Predicting levels, as published, loses to "no change" on memory at short horizons on every data set
  we have; the network therefore predicts the change from the newest sample. The level variant is kept for comparison.

    >>> LstmForecaster(channels=6, horizons=3)(torch.zeros(4, 48, 6)).shape
    torch.Size([4, 3, 6])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from natwork_ray.forecasting.frames import Floats
from natwork_ray.forecasting.references import Doubles

# Keras' default; PyTorch's own is 1e-5.
_BATCH_NORM_EPS = 1e-3
_CHUNK = 4096
_LINEAR_BEYOND = 3.0
Progress = Callable[[int, int, str], None]


class LstmForecaster(nn.Module):
    """Forecast h steps of C channels from T samples of them.

    Layers in the annex's order; shapes for an input of (N, T, C), parameters for C = 6 and h = 3:

    | layer                                      | output     | trainable parameters      |
    |--------------------------------------------|------------|---------------------------|
    | Conv1D (32 filters, kernel 3, causal, ReLU) | (N, T, 32) | 608                      |
    | BatchNorm                                  | (N, T, 32) | 64                        |
    | Dropout (0.1)                              | (N, T, 32) | 0                         |
    | LSTM (64 units, return_sequences=True)     | (N, T, 64) | 24,832                    |
    | Dropout (0.2)                              | (N, T, 64) | 0                         |
    | LSTM (32 units, return_sequences=False)    | (N, 32)    | 12,416                    |
    | Dense (32, ReLU)                           | (N, 32)    | 1,056                     |
    | Dense (16, ReLU)                           | (N, 16)    | 528                       |
    | Dense (h * C, linear)                      | (N, h, C)  | 306                       |
    | total                                      |            | 39,810                    |
    """

    def __init__(self, channels: int, horizons: int) -> None:
        super().__init__()
        self.channels, self.horizons = channels, horizons
        self.conv = nn.Conv1d(channels, 32, kernel_size=3)
        self.norm = nn.BatchNorm1d(32, eps=_BATCH_NORM_EPS)
        self.dropout1 = nn.Dropout(0.1)
        self.lstm1 = nn.LSTM(32, 64, batch_first=True)
        self.dropout2 = nn.Dropout(0.2)
        self.lstm2 = nn.LSTM(64, 32, batch_first=True)
        self.dense1 = nn.Linear(32, 32)
        self.dense2 = nn.Linear(32, 16)
        self.output = nn.Linear(16, horizons * channels)
        for lstm in (self.lstm1, self.lstm2):
            bias: Tensor = lstm.get_parameter("bias_hh_l0")
            nn.init.zeros_(bias)
            bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, h, C) for windows (N, T, C)."""
        # Causal: padded on the left only, so that no step sees a later one.
        h = functional.relu(self.conv(functional.pad(x.transpose(1, 2), (2, 0))))
        h = self.dropout1(self.norm(h)).transpose(1, 2)
        h = self.dropout2(self.lstm1(h)[0])
        h = self.lstm2(h)[0][:, -1]
        h = functional.relu(self.dense2(functional.relu(self.dense1(h))))
        outputs: Tensor = self.output(h)
        return outputs.view(len(x), self.horizons, self.channels)


def trainable_parameters(network: nn.Module) -> int:
    """Number of trainable parameters, as the layer table counts them."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def fit_network(
    inputs: Floats,
    targets: Floats,
    *,
    seed: int,
    epochs: int,
    wanted: int,
    batch: int = 128,
    learning_rate: float = 0.002,
    noise: float = 0.3,
    progress: Progress | None = None,
    what: str = "LSTM",
) -> LstmForecaster:
    """Train on inputs (M, W, C) and targets (M, h, C); NaN targets do not count.

    The first `wanted` channels are what the network is for; the others count a tenth. `noise` is the standard deviation
    of what is added to the inputs. Deterministic on one thread, given the seed.
    """
    with _one_thread(seed):
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        known = ~torch.isnan(y)
        y = torch.nan_to_num(y)
        importance = torch.full((inputs.shape[2],), 0.1)
        importance[:wanted] = 1.0
        network = LstmForecaster(inputs.shape[2], targets.shape[1])
        steps = max(1, len(x) // batch)
        weights = [p for p in network.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=learning_rate, epochs=epochs, steps_per_epoch=steps
        )
        network.train()
        for epoch in range(epochs):
            for rows in torch.tensor_split(torch.randperm(len(x)), steps):
                optimiser.zero_grad(set_to_none=True)
                seen = x[rows] + noise * torch.randn_like(x[rows])
                error = functional.smooth_l1_loss(network(seen), y[rows], reduction="none", beta=_LINEAR_BEYOND)
                weight = known[rows] * importance
                loss = (error * weight).sum() / weight.sum().clamp(min=1)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimiser.step()
                schedule.step()
            if progress is not None:
                progress(epoch + 1, epochs, what)
        network.eval()
    return network


def predict(network: LstmForecaster, inputs: Floats) -> Doubles:
    """Outputs (N, h, C) of inputs (N, W, C), in chunks so that memory stays bounded."""
    network.eval()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(inputs[i : i + _CHUNK])).numpy() for i in range(0, len(inputs), _CHUNK)]
    if not parts:
        return np.zeros((0, network.horizons, network.channels))
    return np.concatenate(parts).astype(np.float64)


@contextlib.contextmanager
def _one_thread(seed: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)
