"""Annex A's LSTM has the published shapes, sees no later step, and learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from natwork_ray.forecasting.networks import LstmForecaster, fit_network, predict, trainable_parameters


def test_layers_have_the_parameters_of_the_table() -> None:
    network = LstmForecaster(channels=6, horizons=3)
    counted = {name: trainable_parameters(module) for name, module in network.named_children()}
    assert counted == {
        "conv": 608,
        "norm": 64,
        "dropout1": 0,
        "lstm1": 24_832,
        "dropout2": 0,
        "lstm2": 12_416,
        "dense1": 1_056,
        "dense2": 528,
        "output": 306,
    }
    assert trainable_parameters(network) == 39_810


@pytest.mark.parametrize(("channels", "horizons"), [(6, 3), (1, 1), (12, 10)])
def test_there_are_h_times_c_outputs(channels: int, horizons: int) -> None:
    network = LstmForecaster(channels, horizons).eval()
    assert network.output.out_features == horizons * channels
    assert network(torch.zeros(4, 20, channels)).shape == (4, horizons, channels)


def test_the_convolution_is_causal() -> None:
    network = LstmForecaster(2, 1).eval()
    seen: list[torch.Tensor] = []
    network.norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    x = torch.randn(1, 10, 2)
    network(x)
    later = x.clone()
    later[:, 6:] += 1.0
    network(later)
    assert torch.equal(seen[0][..., :6], seen[1][..., :6])
    assert not torch.equal(seen[0][..., 6:], seen[1][..., 6:])


def test_the_second_bias_stays_zero_and_training_is_deterministic() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6, 2)).astype(np.float32)
    y = np.stack([x[:, -1] * 0.8, x[:, -1] * 0.2], axis=1)
    y[::5, 0, 0] = np.nan
    reports: list[int] = []
    fits = [
        fit_network(
            x, y, seed=1, epochs=12, wanted=2, batch=32, learning_rate=0.01, noise=0.0,
            progress=lambda done, _total, _what: reports.append(done),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert reports == [*range(1, 13), *range(1, 13)]
    assert not fits[0].lstm1.bias_hh_l0.any()  # type: ignore[operator]
    first, second = (predict(network, x) for network in fits)
    assert np.array_equal(first, second)
    assert np.nanmean((first - y) ** 2) < 0.5 * np.nanmean(y**2)


def test_no_windows_give_no_outputs() -> None:
    assert predict(LstmForecaster(2, 3), np.zeros((0, 8, 2), dtype=np.float32)).shape == (0, 3, 2)
