"""Annex A's layer tables: shapes and parameters, layer by layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natwork_ray.profiling.networks import LightCnn, SevenClassCnn, probabilities, trainable_parameters

_T = 10


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_children():
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape)))
    network.eval()(torch.zeros(3, _T, 12))
    return seen


def _count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def test_light_layers() -> None:
    network = LightCnn()
    assert _shapes(network) == {
        "conv1": (3, 16, _T),
        "norm": (3, 16, _T),
        "depthwise": (3, 16, _T),
        "pointwise": (3, 32, _T),
        "pool": (3, 32, _T // 2),
        "conv2": (3, 64, _T // 2),
        "dropout": (3, 64),
        "dense1": (3, 32),
        "dense2": (3, 2),
    }
    assert {name: _count(layer) for name, layer in network.named_children()} == {
        "conv1": 976,
        "norm": 32,
        "depthwise": 48,
        "pointwise": 544,
        "pool": 0,
        "conv2": 6208,
        "dropout": 0,
        "dense1": 2080,
        "dense2": 66,
    }
    assert trainable_parameters(network) == 9_954
    assert network.dropout.p == 0.25


def test_seven_class_layers() -> None:
    network = SevenClassCnn()
    assert _shapes(network) == {
        "conv1": (3, 32, _T),
        "norm": (3, 32, _T),
        "conv2": (3, 64, _T),
        "pool": (3, 64, _T // 2),
        "conv3": (3, 128, _T // 2),
        "dropout": (3, 128),
        "dense1": (3, 64),
        "dense2": (3, 7),
    }
    assert {name: _count(layer) for name, layer in network.named_children()} == {
        "conv1": 1952,
        "norm": 64,
        "conv2": 6208,
        "pool": 0,
        "conv3": 24_704,
        "dropout": 0,
        "dense1": 8256,
        "dense2": 455,
    }
    assert trainable_parameters(network) == 41_639
    assert network.dropout.p == 0.3


@pytest.mark.parametrize("build", [LightCnn, SevenClassCnn])
@pytest.mark.parametrize("length", [2, 3, 5, 20])
def test_any_window_of_two_or_more(build: type[nn.Module], length: int) -> None:
    p = probabilities(build().eval(), torch.randn(4, length, 12))
    assert torch.allclose(p.sum(dim=1), torch.ones(4))


def test_other_channel_counts() -> None:
    assert LightCnn(channels=3)(torch.zeros(2, 4, 3)).shape == (2, 2)


def test_relu_comes_before_batch_normalisation() -> None:
    network = LightCnn().eval()
    seen: list[torch.Tensor] = []
    network.norm.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    network(torch.randn(5, 6, 12))
    assert (seen[0] >= 0).all()
