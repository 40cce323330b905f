"""The forest against scikit-learn, which fitted it, and against files that are damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier

from natwork_ray.errors import InputError
from natwork_ray.profiling.forest import Forest, fit_forest, joined


def _rows(seed: int, count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((count, 5)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int8) + 2 * (features[:, 1] > 0.5).astype(np.int8)
    return features, labels


@pytest.fixture(scope="module")
def forest() -> Forest:
    return fit_forest(*_rows(1), classes=5, trees=7, seed=3)


def test_shares_are_those_of_scikit_learn(forest: Forest) -> None:
    features, labels = _rows(1)
    theirs = ExtraTreesClassifier(n_estimators=7, max_features=0.3, random_state=3).fit(features, labels)
    asked, _ = _rows(2, 5000)
    shares = forest.shares(asked)
    np.testing.assert_allclose(shares[:, :4], theirs.predict_proba(asked), atol=1e-6)
    assert (shares[:, 4] == 0).all()
    np.testing.assert_allclose(forest.shares(features).argmax(axis=1), labels)


def test_a_feature_on_a_threshold_goes_left_as_in_scikit_learn(forest: Forest) -> None:
    features, labels = _rows(1)
    theirs = ExtraTreesClassifier(n_estimators=7, max_features=0.3, random_state=3).fit(features, labels)
    asked = np.repeat(forest.threshold[np.isfinite(forest.threshold)][:, None], 5, axis=1)
    for rows in (asked, np.nextafter(asked, np.float32(np.inf))):
        np.testing.assert_allclose(forest.shares(rows)[:, :4], theirs.predict_proba(rows), atol=1e-6)


def test_a_label_that_does_not_occur_gets_nothing_and_keeps_its_place() -> None:
    features, labels = _rows(1)
    forest = fit_forest(features, np.where(labels == 0, 2, 6).astype(np.int8), classes=7, trees=3, seed=0)
    assert set(np.flatnonzero(forest.shares(features).sum(axis=0))) == {2, 6}


def test_joined_forests_vote_with_all_their_trees(forest: Forest) -> None:
    other = fit_forest(*_rows(5), classes=5, trees=7, seed=4)
    asked, _ = _rows(2)
    both = joined([forest, other]).shares(asked)
    np.testing.assert_allclose(both, (forest.shares(asked) + other.shares(asked)) / 2, atol=1e-6)


def test_a_file_gives_back_the_same_forest(forest: Forest) -> None:
    asked, _ = _rows(2)
    again = Forest.from_tensors(forest.tensors())
    assert again.depth == forest.depth
    np.testing.assert_array_equal(again.shares(asked), forest.shares(asked))


def test_nothing_asked_nothing_answered(forest: Forest) -> None:
    assert forest.shares(np.zeros((0, 5), dtype=np.float32)).shape == (0, 5)


@pytest.mark.parametrize("rows", [np.zeros((2, 4)), np.zeros(5), np.array([[0, 0, np.nan, 0, 0]])])
def test_rows_of_another_shape_are_refused(forest: Forest, rows: np.ndarray) -> None:
    with pytest.raises(InputError, match="asked about rows"):
        forest.shares(rows.astype(np.float32))


def test_one_class_is_nothing_to_learn() -> None:
    features, _ = _rows(1)
    with pytest.raises(InputError, match="one class"):
        fit_forest(features, np.zeros(len(features), dtype=np.int8), classes=7, trees=1, seed=0)


NAMES = st.sampled_from(["roots", "feature", "threshold", "children", "leaf", "votes", "width"])
BROKEN = st.sampled_from(["missing", "type", "shorter", "minus", "huge", "dimension"])


@given(name=NAMES, how=BROKEN, place=st.integers(0, 10**6))
def test_damage_is_refused_or_harmless(forest: Forest, name: str, how: str, place: int) -> None:
    tensors = dict(forest.tensors())
    array = tensors[name].copy()
    match how:
        case "missing":
            del tensors[name]
        case "type":
            tensors[name] = array.astype(np.float64)
        case "shorter":
            tensors[name] = array[:-1]
        case "dimension":
            tensors[name] = array[None]
        case _:
            array.reshape(-1)[place % array.size] = -3 if how == "minus" else 30_000
            tensors[name] = array
    try:
        again = Forest.from_tensors(tensors)
    except InputError as error:
        assert "train" in error.hint  # noqa: PT017
        return
    # A changed threshold or a tree fewer is another forest, but one that can be walked.
    shares = again.shares(np.zeros((2, again.n_features), dtype=np.float32))
    assert np.isfinite(shares).all()
    assert how not in {"missing", "type", "dimension"}


def test_a_walk_in_circles_is_refused(forest: Forest) -> None:
    tensors = dict(forest.tensors())
    children = forest.children.copy()
    inner = int(np.flatnonzero(forest.leaf < 0)[1])
    children[inner, 0] = 0
    with pytest.raises(InputError, match="point out of range"):
        Forest.from_tensors({**tensors, "children": children})
