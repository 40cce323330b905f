"""Trees as one ONNX graph, run by ONNX Runtime: the same sums as LightGBM's own prediction, several times faster.

A detector asks its trees about every window of every container. LightGBM's own prediction took twice as long for 1,024
windows of its 189 inputs. The graph is built from the text that `tree_text.check_trees` has accepted, so there is
nothing new to store, to check or to trust. What moved a prediction (`trees.attribution`) is asked of such a graph too,
and so are forests that vote for classes.

The decisions are exactly the same for float32 inputs: LightGBM compares them with a float64 threshold t, the graph with
the largest float32 that is not above t, and no float32 lies between the two (inputs within 1e-35 of 0 aside, which
LightGBM takes for 0). The sums are float32, and so agree to about six digits.

    >>> trees = raw_sums(text, feature_names=FEATURES)
    >>> trees(inputs).shape                     # inputs float32 (N, features)
    (N,)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from natwork_ray.trees.attribution import Paths
from natwork_ray.trees.boosters import Trees
from natwork_ray.trees.tree_text import check_trees

# Inputs (N, features) to sums (N, K).
Sums = Callable[[NDArray[Any]], NDArray[np.float32]]


def raw_sums(text: str, *, feature_names: tuple[str, ...]) -> Trees:
    """The trees' raw sums, before any link function, as a function of float32 inputs (N, features).

    Raises:
        InputError: the text is not one that our training makes.
    """
    check_trees(text, feature_names=feature_names)
    paths = Paths.of(text)
    sums = _summing(paths, paths.value[_leaves(paths)][:, None])

    def raw(inputs: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(sums(inputs), dtype=np.float64)[:, 0]

    return raw


def path_sums(paths: Paths, *, groups: NDArray[np.intp], count: int) -> Sums:
    """Contributions of features (trees.attribution), summed per group: float32 inputs (N, features) to (N, count).

    What the features on a path contributed is known when its leaf is, so it is the same graph with other leaves.

    Args:
        paths: the trees.
        groups: (features,) the group of each feature, below `count`; -1 for features that are left out.
        count: number of groups.
    """
    return _summing(paths, paths.along(groups, count)[_leaves(paths)])


def forest_sums(
    trees: NDArray[np.intp],
    feature: NDArray[Any],
    threshold: NDArray[np.float32],
    children: NDArray[Any],
    votes: NDArray[np.float32],
    *,
    features: int,
) -> Sums:
    """The sums of a forest's votes: float32 inputs (N, features) to float32 (N, K).

    Args:
        trees: (nodes,) the tree that a node belongs to; a tree's first node is its root.
        feature: (nodes,) the feature asked, -1 for leaves.
        threshold: (nodes,) float32, an input up to this goes left.
        children: (nodes, 2) left and right, ahead of their node and of the same tree; of leaves, anything.
        votes: (leaves, K), leaves in the order of the nodes.
        features: the width of inputs.
    """
    places = np.arange(len(trees))
    return _session(trees, places, feature, threshold, children, votes, features)


def _summing(paths: Paths, weights: NDArray[np.float64]) -> Sums:
    """Sums of weights (leaves, K), leaves tree by tree."""
    # A leaf is its own child, and the last nodes of small trees are padding that no node leads to.
    used = (paths.feature >= 0) | _leaves(paths)
    tree, node = np.nonzero(used)
    children = np.stack([paths.left[used], paths.right[used]], axis=1)
    threshold = rounded_down(paths.threshold[used])
    return _session(tree, node, paths.feature[used], threshold, children, weights, paths.features)


def _session(
    tree: NDArray[np.intp],
    node: NDArray[np.intp],
    feature: NDArray[Any],
    threshold: NDArray[np.float32],
    children: NDArray[Any],
    weights: NDArray[Any],
    features: int,
) -> Sums:
    # Half a second together: whoever asks no trees does not pay for them.
    import onnxruntime
    from onnx import TensorProto, helper

    asks = feature >= 0
    told = weights != 0
    told[:, 0] = True  # every leaf says something, if only 0
    leaf, target = np.nonzero(told)
    leaf_tree, leaf_node = tree[~asks][leaf], node[~asks][leaf]
    lists: dict[str, Any] = {
        "n_targets": weights.shape[1],
        "nodes_treeids": tree.tolist(),
        "nodes_nodeids": node.tolist(),
        "nodes_featureids": np.maximum(feature, 0).tolist(),
        "nodes_values": np.where(asks, threshold, np.float32(0.0)).tolist(),
        "nodes_modes": ["BRANCH_LEQ" if inner_node else "LEAF" for inner_node in asks],
        "nodes_truenodeids": np.where(asks, children[:, 0], 0).tolist(),
        "nodes_falsenodeids": np.where(asks, children[:, 1], 0).tolist(),
        "target_treeids": leaf_tree.tolist(),
        "target_nodeids": leaf_node.tolist(),
        "target_ids": target.tolist(),
        "target_weights": weights[leaf, target].tolist(),
    }
    ensemble = helper.make_node("TreeEnsembleRegressor", ["inputs"], ["sums"], domain="ai.onnx.ml", **lists)
    graph = helper.make_graph(
        [ensemble],
        "trees",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, [None, features])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, [None, weights.shape[1]])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def sums(inputs: NDArray[Any]) -> NDArray[np.float32]:
        (found,) = session.run(None, {"inputs": np.ascontiguousarray(inputs, dtype=np.float32)})
        return np.asarray(found, dtype=np.float32)

    return sums


def _leaves(paths: Paths) -> NDArray[np.bool_]:
    """(trees, nodes) true for leaves that a node leads to, and for the only node of a tree without questions."""
    reached = np.zeros(paths.feature.shape, dtype=bool)
    inner = paths.feature >= 0
    tree = np.nonzero(inner)[0]
    reached[tree, paths.left[inner]] = reached[tree, paths.right[inner]] = True
    reached[:, 0] |= ~inner.any(axis=1)
    return reached & ~inner


def rounded_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each threshold."""
    near = thresholds.astype(np.float32)
    return np.where(near.astype(np.float64) > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
