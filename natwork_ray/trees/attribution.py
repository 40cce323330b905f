"""Which inputs moved a prediction of trees, and by how much.

On its way to a leaf an input passes inner nodes; every node has a value (what the tree would say if it ended there),
and each step changes it. The change belongs to the input that the node asked about. Summed over all trees:

    prediction = start + sum of contributions

exactly, up to the digits in which LightGBM writes the values of inner nodes. These are the paths' contributions
(Saabas), not Shapley values: those cost milliseconds per window at the size of our models, these microseconds, and they
rank the inputs that a person asks about much alike. They depend on nothing but the leaf, so each leaf holds its own
(`Paths.along`), and asking for them is asking which leaf (`trees.engines.path_sums`).

    >>> pushes = path_sums(Paths.of(text), groups=np.arange(features), count=features)
    >>> pushes(inputs).shape                    # inputs (M, features)
    (M, features)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from natwork_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class Paths:
    """The trees as arrays (trees, nodes): inner nodes first, then leaves; a leaf is its own child.

    Attributes:
        feature: which input a node asks about; -1 for leaves.
        threshold: an input up to this goes left.
        left, right: the node that comes next.
        value: what the tree would say if it ended at the node.
        features: number of inputs.
    """

    feature: NDArray[np.intp]
    threshold: NDArray[np.float64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    value: NDArray[np.float64]
    features: int

    @classmethod
    def of(cls, text: str) -> Paths:
        """The trees of a text that `tree_text.check_trees` accepts.

        Raises:
            InputError: trees with a linear model in their leaves, which have no path's contributions.
        """
        head, *blocks = text.split("\n\nTree=")
        trees = [_fields(block) for block in blocks]
        if any("is_linear=1" in block.split("\n") for block in blocks):
            raise InputError("linear trees have no contributions of paths", hint="train trees with constant leaves")
        features = int(_fields(head)["max_feature_idx"]) + 1
        leaves = max(int(tree["num_leaves"]) for tree in trees)
        shape = (len(trees), 2 * leaves - 1)
        feature = np.full(shape, -1, dtype=np.intp)
        threshold, value = np.zeros(shape), np.zeros(shape)
        left = np.tile(np.arange(shape[1], dtype=np.intp), (shape[0], 1))
        right = left.copy()
        for number, tree in enumerate(trees):
            inner = int(tree["num_leaves"]) - 1
            value[number, inner : 2 * inner + 1] = _numbers(tree["leaf_value"])
            feature[number, :inner] = _numbers(tree["split_feature"])
            threshold[number, :inner] = _numbers(tree["threshold"])
            value[number, :inner] = _numbers(tree["internal_value"])
            for place, key in ((left, "left_child"), (right, "right_child")):
                child = _numbers(tree[key]).astype(np.intp)
                # LightGBM writes leaf i as -(i + 1).
                place[number, :inner] = np.where(child >= 0, child, inner - child - 1)
        return cls(feature, threshold, left, right, value, features)

    @property
    def start(self) -> float:
        """What the trees say before any input was asked about."""
        return float(self.value[:, 0].sum())

    def along(self, groups: NDArray[np.intp], count: int) -> NDArray[np.float64]:
        """(trees, nodes, count) what the features on the way to each node contributed, summed per group.

        Args:
            groups: (features,) the group of each feature, below `count`; -1 for features that are left out.
            count: number of groups.
        """
        out = np.zeros((*self.feature.shape, count))
        # Children lie behind their parent, so a node is complete before it is passed on.
        for node in range(self.feature.shape[1]):
            trees = np.flatnonzero(self.feature[:, node] >= 0)
            group = groups[self.feature[trees, node]]
            told = group >= 0
            for children in (self.left[trees, node], self.right[trees, node]):
                out[trees, children] = out[trees, node]
                change = self.value[trees, children] - self.value[trees, node]
                out[trees[told], children[told], group[told]] += change[told]
        return out


def _fields(block: str) -> dict[str, str]:
    return {key: text for key, _, text in (line.partition("=") for line in block.split("\n"))}


def _numbers(text: str) -> NDArray[np.float64]:
    return np.array(text.split(), dtype=np.float64)
