"""LightGBM, imported when it is needed: it is a compiled package that wants the system's OpenMP runtime.

Training is deterministic: one thread, a seed, rows in the order given. A booster that was trained and one that was read
back from its text give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.errors import InputError, PreconditionError
from natwork_ray.trees.tree_text import check_trees, trimmed

if TYPE_CHECKING:
    from types import ModuleType

# What a text of trees stands for: inputs (N, features) to predictions (N,).
Trees = Callable[[NDArray[Any]], NDArray[np.float64]]


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


def train_text(
    inputs: NDArray[Any],
    target: NDArray[Any],
    parameters: dict[str, Any],
    *,
    feature_names: tuple[str, ...],
    trees: int,
    seed: int,
    weight: NDArray[Any] | None = None,
) -> str:
    """Trees that map (N, features) inputs to (N,) target, as text; `weight` (N,) says how much each row counts."""
    package = lightgbm()
    settled = {
        "verbosity": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        **parameters,
    }
    data = package.Dataset(
        inputs, np.ascontiguousarray(target), weight=weight, feature_name=list(feature_names), params=settled
    )
    booster = package.train(settled, data, num_boost_round=trees)
    return trimmed(booster.model_to_string())


def trees_of(text: str, *, feature_names: tuple[str, ...], raw: bool = False) -> Trees:
    """The function that a text of trees stands for; `raw` for the trees' sums, before any link function.

    Raises:
        InputError: the text is not one that `train_text` makes.
        PreconditionError: LightGBM cannot be loaded.
    """
    check_trees(text, feature_names=feature_names)
    package = lightgbm()
    try:
        booster = package.Booster(model_str=text)
    except package.basic.LightGBMError as error:
        raise InputError(
            f"LightGBM refuses the trees: {error}"[:300], hint="it must be a file that `natwork train` wrote"
        ) from error

    def predict(inputs: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(booster.predict(inputs, num_threads=1, raw_score=raw), dtype=np.float64)

    return predict
