"""Extremely randomised trees as plain arrays: fitted by scikit-learn, walked by ONNX Runtime (`trees.engines`).

Training needs scikit-learn; whoever only asks a trained forest does not, and a model file can hold it as tensors. Each
tree votes with the class shares of the leaf that a row ends in; the forest averages its trees.

Rules kept:

- Same answers as scikit-learn's, up to float32: thresholds are rounded downwards, so that no float32 feature changes
  sides.
- What comes from a file is checked before anybody walks it: trees lie end to end, children behind their only parent.

    >>> forest = fit_forest(features, kinds, seed=7)
    >>> shares = forest.shares(features)        # float32 (M, classes), rows add up to 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from natwork_ray.errors import InputError
from natwork_ray.profiling.profile import Floats
from natwork_ray.trees.engines import Sums, forest_sums

MAX_NODES = 1_000_000
MAX_DEPTH = 64
_Scalar = TypeVar("_Scalar", np.int16, np.int32, np.float32)
_HINT = "the model file is damaged: train it anew with `natwork train profiler`"


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees laid end to end.

    Attributes:
        roots: int32 (B,), the node that each tree starts with.
        feature: int16 (nodes,), the feature asked at a node; 0 at leaves.
        threshold: float32 (nodes,), left when the feature is not larger; infinite at leaves.
        children: int32 (nodes, 2), left and right; a leaf is its own child, so that walking on stays there.
        leaf: int32 (nodes,), row of `votes` at leaves, -1 elsewhere.
        votes: float32 (leaves, K), class shares.
        n_features: F, the width of what it is asked about.
        depth: questions on the longest path.
    """

    roots: NDArray[np.int32]
    feature: NDArray[np.int16]
    threshold: Floats
    children: NDArray[np.int32]
    leaf: NDArray[np.int32]
    votes: Floats
    n_features: int
    depth: int

    def shares(self, features: Floats) -> Floats:
        """Class shares (M, K) of rows (M, F), averaged over the trees.

        Raises:
            InputError: rows of another width, or not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.n_features or not np.isfinite(features).all():
            raise InputError(
                f"forest was asked about rows of shape {features.shape}",
                hint=f"give finite rows of {self.n_features} features",
            )
        return np.asarray(self._sums(features) * np.float32(1.0 / len(self.roots)), dtype=np.float32)

    @cached_property
    def _sums(self) -> Sums:
        is_leaf = self.leaf >= 0
        return forest_sums(
            np.searchsorted(self.roots, np.arange(len(self.leaf)), side="right") - 1,
            np.where(is_leaf, -1, self.feature),
            self.threshold,
            self.children,
            self.votes[self.leaf[is_leaf]],
            features=self.n_features,
        )

    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The arrays by name, for a model file; `from_tensors` reads them back."""
        return {
            "roots": self.roots,
            "feature": self.feature,
            "threshold": self.threshold,
            "children": self.children,
            "leaf": self.leaf,
            "votes": self.votes,
            "width": np.array([self.n_features], dtype=np.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> Forest:
        """Read and check what `tensors` gave.

        Raises:
            InputError: anything missing, of another type or shape, out of range, or a walk that would not end.
        """
        roots = _tensor(tensors, "roots", np.int32, 1)
        feature = _tensor(tensors, "feature", np.int16, 1)
        threshold = _tensor(tensors, "threshold", np.float32, 1)
        children = _tensor(tensors, "children", np.int32, 2)
        leaf = _tensor(tensors, "leaf", np.int32, 1)
        votes = _tensor(tensors, "votes", np.float32, 2)
        width = _tensor(tensors, "width", np.int32, 1)
        nodes = len(feature)
        if not 1 <= nodes <= MAX_NODES or not len(roots) or width.shape != (1,) or not 1 <= width[0] <= 2**15 - 1:
            raise InputError(f"forest of {len(roots)} trees, {nodes} nodes, {width} features", hint=_HINT)
        if {len(threshold), len(children), len(leaf)} != {nodes} or children.shape[1] != 2:
            raise InputError("forest's arrays differ in length", hint=_HINT)
        own = np.arange(nodes)
        is_leaf = leaf >= 0
        ahead = children > own[:, None]
        # Trees lie end to end, and every node but a root has one parent, in its own tree.
        parents = np.bincount(np.clip(children[~is_leaf], 0, nodes - 1).reshape(-1), minlength=nodes)
        expected = np.ones(nodes, dtype=np.intp)
        expected[np.clip(roots, 0, nodes - 1)] = 0
        end_to_end = bool(roots[0] == 0 and (np.diff(roots) > 0).all() and roots[-1] < nodes)
        ends = np.append(roots, nodes)[np.searchsorted(roots, own, side="right")] if end_to_end else own
        sound = (
            end_to_end
            and bool((children[~is_leaf] < ends[~is_leaf, None]).all())
            and bool((parents == expected).all())
            and bool(((feature >= 0) & (feature < width[0])).all())
            and bool((leaf < len(votes)).all())
            and bool(ahead[~is_leaf].all())
            and bool((children[is_leaf] == own[is_leaf, None]).all())
            and bool(np.isfinite(threshold[~is_leaf]).all())
            and bool(np.isfinite(votes).all())
            and bool(((votes >= 0) & (votes <= 1)).all())
        )
        if not sound:
            raise InputError("forest's nodes point out of range or hold impossible figures", hint=_HINT)
        depth = _depth(roots, children, is_leaf)
        return cls(roots, feature, threshold, children, leaf, votes, int(width[0]), depth)


def fit_forest(
    features: Floats,
    labels: NDArray[np.int8],
    *,
    classes: int,
    trees: int,
    seed: int,
    max_features: float = 0.3,
    max_leaves: int | None = None,
) -> Forest:
    """Fit extremely randomised trees on rows (M, F) with labels (M,) below `classes`.

    Labels that do not occur get a share of 0. The same rows and seed give the same forest.

    Raises:
        InputError: fewer than two classes among the labels: there is nothing to tell apart.
    """
    # Imported late: only training needs it, and it takes a second.
    from sklearn.ensemble import ExtraTreesClassifier

    if len(np.unique(labels)) < 2:
        raise InputError("training data hold one class only", hint="give labelled runs with at least two kinds of rows")
    model = ExtraTreesClassifier(
        n_estimators=trees, max_features=max_features, max_leaf_nodes=max_leaves, random_state=seed, n_jobs=1
    ).fit(features, labels)
    places = model.classes_.astype(np.intp)
    return joined([_laid_out(one.tree_, places, classes) for one in model.estimators_])


def joined(forests: Sequence[Forest]) -> Forest:
    """One forest of all their trees, each tree with one voice."""
    nodes = np.cumsum([0, *(len(f.feature) for f in forests)])
    leaves = np.cumsum([0, *(len(f.votes) for f in forests)])
    return Forest(
        roots=np.concatenate([f.roots + n for f, n in zip(forests, nodes, strict=False)]).astype(np.int32),
        feature=np.concatenate([f.feature for f in forests]),
        threshold=np.concatenate([f.threshold for f in forests]),
        children=np.concatenate([f.children + n for f, n in zip(forests, nodes, strict=False)]).astype(np.int32),
        leaf=np.concatenate(
            [np.where(f.leaf >= 0, f.leaf + n, -1) for f, n in zip(forests, leaves, strict=False)]
        ).astype(np.int32),
        votes=np.concatenate([f.votes for f in forests]),
        n_features=forests[0].n_features,
        depth=max(f.depth for f in forests),
    )


def _laid_out(tree: object, places: NDArray[np.intp], classes: int) -> Forest:
    """One scikit-learn tree in our layout."""
    left = np.asarray(tree.children_left)  # type: ignore[attr-defined]
    right = np.asarray(tree.children_right)  # type: ignore[attr-defined]
    is_leaf = left < 0
    own = np.arange(len(left))
    exact = np.asarray(tree.threshold)  # type: ignore[attr-defined]
    rounded = exact.astype(np.float32)
    rounded = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    counts = np.asarray(tree.value)[is_leaf, 0, :]  # type: ignore[attr-defined]
    votes = np.zeros((len(counts), classes), dtype=np.float32)
    votes[:, places] = counts / counts.sum(axis=1, keepdims=True)
    children = np.where(is_leaf[:, None], own[:, None], np.stack([left, right], axis=1)).astype(np.int32)
    roots = np.zeros(1, dtype=np.int32)
    return Forest(
        roots=roots,
        feature=np.where(is_leaf, 0, np.asarray(tree.feature)).astype(np.int16),  # type: ignore[attr-defined]
        threshold=np.where(is_leaf, np.float32(np.inf), rounded).astype(np.float32),
        children=children,
        leaf=np.where(is_leaf, np.cumsum(is_leaf) - 1, -1).astype(np.int32),
        votes=votes,
        n_features=int(tree.n_features),  # type: ignore[attr-defined]
        depth=_depth(roots, children, is_leaf),
    )


def _depth(roots: NDArray[np.int32], children: NDArray[np.int32], is_leaf: NDArray[np.bool_]) -> int:
    at = np.unique(roots)
    for depth in range(MAX_DEPTH + 1):
        at = at[~is_leaf[at]]
        if not len(at):
            return depth
        at = np.unique(children[at])
    raise InputError(f"forest is deeper than {MAX_DEPTH} questions", hint=_HINT)


def _tensor(
    tensors: Mapping[str, NDArray[np.generic]], name: str, dtype: type[_Scalar], dimensions: int
) -> NDArray[_Scalar]:
    array = tensors.get(name)
    if array is None or array.dtype != dtype or array.ndim != dimensions:
        raise InputError(f"forest's array {name!r} is missing or of another type", hint=_HINT)
    return array.astype(dtype, copy=False)
