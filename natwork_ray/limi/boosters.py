"""The trees of the migration models: `natwork_ray.trees` on the features of `limi.features`."""

from __future__ import annotations

from typing import Any

from natwork_ray.limi.features import FEATURES, Floats
from natwork_ray.limi.selection import Trees
from natwork_ray.trees import boosters


def train_text(inputs: Floats, target: Floats, parameters: dict[str, Any], *, trees: int, seed: int) -> str:
    """Trees that map (N, 18) inputs to (N,) target, as text."""
    return boosters.train_text(inputs, target, parameters, feature_names=FEATURES, trees=trees, seed=seed)


def trees_of(text: str) -> Trees:
    """The function that a text of trees stands for.

    Raises:
        InputError: the text is not one that `train_text` makes.
        PreconditionError: LightGBM cannot be loaded.
    """
    return boosters.trees_of(text, feature_names=FEATURES)
