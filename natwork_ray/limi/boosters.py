"""LightGBM, imported when it is needed: it is a compiled package that wants the system's OpenMP runtime.

Training is deterministic: one thread, a seed, rows in the order given. A booster that was trained and one that was read
back from its text give the same numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.limi.features import FEATURES, Floats
from natwork_ray.limi.selection import Trees
from natwork_ray.limi.tree_text import check_trees, trimmed

if TYPE_CHECKING:
    from types import ModuleType


def lightgbm() -> ModuleType:
    """The package.

    Raises:
        PreconditionError: it or the OpenMP runtime is missing.
    """
    try:
        import lightgbm as package
    except (ImportError, OSError) as error:
        raise PreconditionError(
            f"LightGBM cannot be loaded: {error}",
            hint="`pip install lightgbm`; on Debian and Ubuntu its OpenMP runtime is `apt-get install libgomp1`",
        ) from error
    return package


def train_text(inputs: Floats, target: Floats, parameters: dict[str, Any], *, trees: int, seed: int) -> str:
    """Trees that map (N, 18) inputs to (N,) target, as text."""
    package = lightgbm()
    settled = {
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        **parameters,
    }
    data = package.Dataset(inputs, np.ascontiguousarray(target), feature_name=list(FEATURES), params=settled)
    booster = package.train(settled, data, num_boost_round=trees)
    return trimmed(booster.model_to_string())


def trees_of(text: str) -> Trees:
    """The function that a text of trees stands for.

    Raises:
        InputError: the text is not one that `train_text` makes.
        PreconditionError: LightGBM cannot be loaded.
    """
    check_trees(text, feature_names=FEATURES)
    package = lightgbm()
    try:
        booster = package.Booster(model_str=text)
    except package.basic.LightGBMError as error:
        raise InputError(
            f"LightGBM refuses the trees: {error}"[:300], hint="it must be a file that `natwork train selector` wrote"
        ) from error

    def predict(inputs: Floats) -> Floats:
        return np.asarray(booster.predict(inputs, num_threads=1), dtype=np.float64)

    return predict
