"""What LightGBM's own parser would believe is refused before it gets there."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natwork_ray.errors import InputError
from natwork_ray.limi.boosters import train_text, trees_of
from natwork_ray.limi.features import FEATURES
from natwork_ray.trees.tree_text import check_trees

RNG = np.random.default_rng(2)
X = RNG.normal(size=(400, len(FEATURES)))
Y = 2 * X[:, 0] + np.abs(X[:, 1]) * X[:, 2] + RNG.normal(size=400) / 10
LINEAR = train_text(
    X, Y, {"objective": "regression", "linear_tree": True, "num_leaves": 5, "min_data_in_leaf": 20}, trees=4, seed=1
)
QUANTILE = train_text(X, Y, {"objective": "quantile", "alpha": 0.95, "num_leaves": 4}, trees=3, seed=1)


@pytest.mark.parametrize("text", [LINEAR, QUANTILE])
def test_what_training_writes_is_accepted_and_predicts(text: str) -> None:
    predicted = trees_of(text)(X)
    assert np.isfinite(predicted).all()
    assert np.corrcoef(predicted, Y)[0, 1] > 0.4


def test_trees_that_learnt_nothing_are_accepted() -> None:
    text = train_text(X, Y, {"objective": "quantile", "alpha": 0.5, "min_data_in_leaf": 1000}, trees=1, seed=1)
    assert len(set(trees_of(text)(X))) == 1


def with_sizes(text: str) -> str:
    """The text with tree_sizes that fit, so that only the other fault is there."""
    blocks = re.findall(r"Tree=\d+\n.*?\n\n(?=Tree=|end of trees)", text, re.DOTALL)
    return re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(b)) for b in blocks), text, count=1)


def line(key: str, new: str) -> Callable[[str], str]:
    """Replace the first line of that key."""
    return lambda text: re.sub(rf"(?m)^{key}=.*$", f"{key}={new}", text, count=1)


@pytest.mark.parametrize(
    "change",
    [
        line("split_feature", "99 0 0 0"),
        line("split_feature", "-1 0 0 0"),
        line("split_feature", "0 0 0"),
        line("split_feature", "0 0 0 0.5"),
        line("left_child", "0 1 2 3"),
        line("left_child", "7 -1 -2 -3"),
        line("left_child", "-1 -1 -1 -1"),
        line("right_child", "-99 -2 -3 -4"),
        line("leaf_value", "nan 0 0 0 0"),
        line("leaf_value", "1e999 0 0 0 0"),
        line("leaf_value", "0 0 0 0"),
        line("threshold", "0 0 0 x"),
        line("threshold", "0 0 0 1-1"),
        line("decision_type", "1 2 2 2"),
        line("num_cat", "1"),
        line("num_leaves", "65"),
        line("num_leaves", "0"),
        line("num_leaves", ""),
        line("is_linear", "0"),
        line("num_features", "999 0 0 0 0"),
        line("leaf_features", "18"),
        line("shrinkage", "1 1"),
        line("version", "v3"),
        line("num_class", "2"),
        line("max_feature_idx", "99"),
        line("feature_names", "a b"),
        line("feature_infos", "none"),
        line("objective", "lambdarank"),
        lambda text: text.replace("Tree=1", "Tree=7", 1),
        lambda text: text.replace("num_cat=0", "cat_threshold=0\nnum_cat=0", 1),
        lambda text: text + "parameters:\n",
        lambda text: text.replace("end of trees\n", ""),
        lambda text: "tree_" + text,
    ],
)
def test_a_fault_is_refused(change: Callable[[str], str]) -> None:
    changed = change(LINEAR)
    assert changed != LINEAR
    with pytest.raises(InputError, match="model of trees"):
        check_trees(with_sizes(changed), feature_names=FEATURES)


@pytest.mark.parametrize("sizes", ["", "1", "9999999", "-5", "1 1 1 1", "a"])
def test_sizes_that_do_not_fit_are_refused(sizes: str) -> None:
    with pytest.raises(InputError):
        check_trees(line("tree_sizes", sizes)(LINEAR), feature_names=FEATURES)


@given(text=st.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_trees(text, feature_names=FEATURES)


@given(at=st.integers(0, len(QUANTILE) - 1), byte=st.sampled_from("0 9-.e=\nxn,"))
def test_one_wrong_character_is_refused_or_leaves_finite_trees(at: int, byte: str) -> None:
    changed = QUANTILE[:at] + byte + QUANTILE[at + 1 :]
    try:
        trees = trees_of(changed)
    except InputError:
        return
    assert np.isfinite(trees(X)).all()
