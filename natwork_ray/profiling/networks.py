"""The two networks of D3.3 Annex A for microservice profiling: layer by layer as published, in PyTorch.

What the annex leaves open, and what is done here:

- Padding is not stated. `same` padding is used, so that a convolution keeps T and short windows (T >= 2) work.
- Names and arguments in the annex are those of Keras, so Keras' conventions hold: `SeparableConv1D` has no bias
  between its depthwise and pointwise halves, and the activation comes before batch normalisation.
- Softmax is not part of `forward`, which returns logits (the loss and the comparison of classes need them);
  `probabilities` applies it.

Left out: the annex's LSTM, which belongs to forecasting.

    >>> LightCnn()(torch.zeros(4, 10, 12)).shape
    torch.Size([4, 2])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from natwork_ray.domain.anomaly import STAGE_2_CLASSES
from natwork_ray.domain.telemetry import N_METRICS

# Keras' default; PyTorch's own is 1e-5.
_BATCH_NORM_EPS = 1e-3


class LightCnn(nn.Module):
    """Stage 1, "Lightweight 2-class 1D-CNN": is the resource usage anomalous?

    Layers in the annex's order; shapes for an input of (N, T, C), parameters for C = 12:

    | layer                                      | output       | trainable parameters |
    |--------------------------------------------|--------------|----------------------|
    | Conv1D (16 filters, kernel 5, ReLU)        | (N, T, 16)   | 976                  |
    | BatchNorm                                  | (N, T, 16)   | 32                   |
    | SeparableConv1D (32 filters, kernel 3, ReLU) | (N, T, 32) | 592 (48 + 544)       |
    | MaxPooling1D (pool 2)                      | (N, T//2, 32) | 0                   |
    | Conv1D (64 filters, kernel 3, ReLU)        | (N, T//2, 64) | 6,208               |
    | GlobalAveragePooling1D                     | (N, 64)      | 0                    |
    | Dropout (0.25)                             | (N, 64)      | 0                    |
    | Dense (32, ReLU)                           | (N, 32)      | 2,080                |
    | Dense (2, Softmax)                         | (N, 2)       | 66                   |
    | total                                      |              | 9,954                |

    Output unit 1 is "anomalous".
    """

    def __init__(self, channels: int = N_METRICS) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, 16, kernel_size=5, padding="same")
        self.norm = nn.BatchNorm1d(16, eps=_BATCH_NORM_EPS)
        self.depthwise = nn.Conv1d(16, 16, kernel_size=3, padding="same", groups=16, bias=False)
        self.pointwise = nn.Conv1d(16, 32, kernel_size=1)
        self.pool = nn.MaxPool1d(2)
        self.conv2 = nn.Conv1d(32, 64, kernel_size=3, padding="same")
        self.dropout = nn.Dropout(0.25)
        self.dense1 = nn.Linear(64, 32)
        self.dense2 = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of windows (N, T, C), T >= 2."""
        h = functional.relu(self.conv1(x.transpose(1, 2)))
        h = self.norm(h)
        h = functional.relu(self.pointwise(self.depthwise(h)))
        h = self.pool(h)
        h = functional.relu(self.conv2(h))
        h = self.dropout(h.mean(dim=2))
        h = functional.relu(self.dense1(h))
        logits: Tensor = self.dense2(h)
        return logits


class SevenClassCnn(nn.Module):
    """Stage 2, "1D-CNN multiclass classification": which anomaly is it?

    Layers in the annex's order; shapes for an input of (N, T, C), parameters for C = 12:

    | layer                                | output         | trainable parameters |
    |--------------------------------------|----------------|----------------------|
    | Conv1D (32 filters, kernel 5, ReLU)  | (N, T, 32)     | 1,952                |
    | BatchNorm                            | (N, T, 32)     | 64                   |
    | Conv1D (64 filters, kernel 3, ReLU)  | (N, T, 64)     | 6,208                |
    | MaxPooling1D (pool 2)                | (N, T//2, 64)  | 0                    |
    | Conv1D (128 filters, kernel 3, ReLU) | (N, T//2, 128) | 24,704               |
    | GlobalAveragePooling1D               | (N, 128)       | 0                    |
    | Dropout (0.3)                        | (N, 128)       | 0                    |
    | Dense (64, ReLU)                     | (N, 64)        | 8,256                |
    | Dense (7, Softmax)                   | (N, 7)         | 455                  |
    | total                                |                | 41,639               |

    Output units are in the order of `natwork_ray.domain.anomaly.STAGE_2_CLASSES`.
    """

    def __init__(self, channels: int = N_METRICS) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, 32, kernel_size=5, padding="same")
        self.norm = nn.BatchNorm1d(32, eps=_BATCH_NORM_EPS)
        self.conv2 = nn.Conv1d(32, 64, kernel_size=3, padding="same")
        self.pool = nn.MaxPool1d(2)
        self.conv3 = nn.Conv1d(64, 128, kernel_size=3, padding="same")
        self.dropout = nn.Dropout(0.3)
        self.dense1 = nn.Linear(128, 64)
        self.dense2 = nn.Linear(64, len(STAGE_2_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 7) of windows (N, T, C), T >= 2."""
        h = functional.relu(self.conv1(x.transpose(1, 2)))
        h = self.norm(h)
        h = functional.relu(self.conv2(h))
        h = self.pool(h)
        h = functional.relu(self.conv3(h))
        h = self.dropout(h.mean(dim=2))
        h = functional.relu(self.dense1(h))
        logits: Tensor = self.dense2(h)
        return logits


def probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """Softmax of a network's logits: the annex's last layer, (N, classes), rows sum to 1."""
    return torch.softmax(network(x), dim=1)


def trainable_parameters(network: nn.Module) -> int:
    """Number of trainable parameters, as the layer tables count them."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
