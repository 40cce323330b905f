"""LightGBM's text form of trees: cut to what a prediction needs, and checked before LightGBM's own parser sees it.

LightGBM reads model files quickly and trustingly: an index out of range is a read out of bounds. Model files come from
others, so every tree is checked here first: known keys in their order, arrays of the right length, children that lead
downwards and reach each node once, features that exist, finite numbers. Nothing is repaired; anything odd is refused.

Every capability that keeps boosters keeps them in this form: the migration models, detection and forecasts.

Left out of the text: importances and training parameters, which no prediction needs. Not accepted: categorical splits
and missing values, which our training never makes.
"""

from __future__ import annotations

import math
import re

from natwork_ray.errors import InputError

MAX_TREES = 512
MAX_LEAVES = 64
_END = "end of trees\n"
_HINT = "it must be a file that `natwork train` wrote"
_NUMBERS = re.compile(r"[0-9.eE+\- ]*")
_RANGE = re.compile(r"none|\[-?[0-9.]{1,30}(?:e[+-]?[0-9]{1,3})?:-?[0-9.]{1,30}(?:e[+-]?[0-9]{1,3})?\]")
_KEYS = (
    "num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child",
    "leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight", "internal_count", "is_linear",
)  # fmt: skip
_LINEAR_KEYS = ("leaf_const", "num_features", "leaf_features", "leaf_coeff")
_HEADER_KEYS = (
    "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective", "feature_names",
    "feature_infos", "tree_sizes",
)  # fmt: skip
_OBJECTIVES = frozenset({"regression", "quantile", "binary"})


def trimmed(text: str) -> str:
    """The part of a model's text that predicting needs."""
    return text[: text.index(_END)] + _END


def check_trees(text: str, *, feature_names: tuple[str, ...]) -> None:
    """Accept what `trimmed` gives for a model on these features: at most MAX_TREES trees of MAX_LEAVES leaves.

    Raises:
        InputError: anything else.
    """
    head, _, rest = text.partition("\n\n")
    sizes = _check_header(head, feature_names)
    for number, size in enumerate(sizes):
        # LightGBM cuts the trees apart by these sizes.
        block, rest = rest[:size], rest[size:]
        _check_tree(block, number, len(feature_names))
    if rest != _END:
        raise _refused("the trees are not followed by their end")


def _refused(what: str) -> InputError:
    return InputError(f"model of trees: {what}"[:200], hint=_HINT)


def _check_header(head: str, feature_names: tuple[str, ...]) -> list[int]:
    lines = head.split("\n")
    pairs = [line.partition("=") for line in lines[1:]]
    if lines[0] != "tree" or tuple(key for key, _, _ in pairs) != _HEADER_KEYS:
        raise _refused("unknown header")
    found = {key: text for key, _, text in pairs}
    fixed = {
        "version": "v4", "num_class": "1", "num_tree_per_iteration": "1", "label_index": "0",
        "max_feature_idx": str(len(feature_names) - 1), "feature_names": " ".join(feature_names),
    }  # fmt: skip
    for key, expected in fixed.items():
        if found[key] != expected:
            raise _refused(f"{key} is {found[key][:60]!r}, not {expected[:60]!r}")
    if found["objective"].split(" ")[0] not in _OBJECTIVES or len(found["objective"]) > 40:
        raise _refused(f"objective {found['objective'][:40]!r}")
    infos = found["feature_infos"].split(" ")
    if len(infos) != len(feature_names) or not all(_RANGE.fullmatch(info) for info in infos):
        raise _refused("feature_infos do not fit the features")
    sizes = _integers(found["tree_sizes"], "tree_sizes", low=1, high=2**20)
    if not 1 <= len(sizes) <= MAX_TREES:
        raise _refused(f"{len(sizes)} trees, use 1 to {MAX_TREES}")
    return sizes


def _check_tree(block: str, number: int, features: int) -> None:
    lines = block.rstrip("\n").split("\n")
    if lines[0] != f"Tree={number}" or not block.endswith("\n\n"):
        raise _refused(f"tree {number} does not begin or end where tree_sizes say")
    pairs = [line.partition("=") for line in lines[1:]]
    keys = tuple(key for key, _, _ in pairs)
    linear = len(keys) > len(_KEYS) + 1
    if keys != (*_KEYS, *(_LINEAR_KEYS if linear else ()), "shrinkage"):
        raise _refused(f"tree {number} has other keys")
    cells = {key: text for key, _, text in pairs}
    (leaves,) = _integers(cells["num_leaves"], "num_leaves", low=1, high=MAX_LEAVES, count=1)
    if (cells["num_cat"], cells["is_linear"]) != ("0", "1" if linear else "0"):
        raise _refused(f"tree {number} is of a kind that our training never makes")
    inner = leaves - 1
    _integers(cells["split_feature"], "split_feature", low=0, high=features - 1, count=inner)
    # 2: numerical, default left, no missing values.
    _integers(cells["decision_type"], "decision_type", low=2, high=2, count=inner)
    _reals(cells["threshold"], "threshold", inner)
    _reals(cells["leaf_value"], "leaf_value", leaves)
    _reals(cells["shrinkage"], "shrinkage", 1)
    for key in ("split_gain", "internal_value", "internal_weight", "internal_count"):
        _reals(cells[key], key, inner)
    for key in ("leaf_weight", "leaf_count"):
        _reals(cells[key], key, None)
    _check_shape(
        _integers(cells["left_child"], "left_child", low=-leaves, high=inner - 1, count=inner),
        _integers(cells["right_child"], "right_child", low=-leaves, high=inner - 1, count=inner),
        number,
    )
    if linear:
        _reals(cells["leaf_const"], "leaf_const", leaves)
        terms = sum(_integers(cells["num_features"], "num_features", low=0, high=features, count=leaves))
        _integers(cells["leaf_features"], "leaf_features", low=0, high=features - 1, count=terms)
        _reals(cells["leaf_coeff"], "leaf_coeff", terms)


def _check_shape(left: list[int], right: list[int], number: int) -> None:
    """Every inner node but the root, and every leaf, has exactly one parent, which stands before it."""
    reached: set[int] = set()
    for parent, children in enumerate(zip(left, right, strict=True)):
        for child in children:
            if child in reached or 0 <= child <= parent:
                raise _refused(f"tree {number} is no tree")
            reached.add(child)


def _tokens(text: str, key: str) -> list[str]:
    if not _NUMBERS.fullmatch(text):
        raise _refused(f"{key} holds something that is no number")
    return text.split()


def _integers(text: str, key: str, *, low: int, high: int, count: int | None = None) -> list[int]:
    try:
        found = [int(token) for token in _tokens(text, key)]
    except ValueError as error:
        raise _refused(f"{key} holds something that is no whole number") from error
    if any(not low <= each <= high for each in found) or (count is not None and len(found) != count):
        raise _refused(f"{key} has a wrong length or a value outside {low} to {high}")
    return found


def _reals(text: str, key: str, count: int | None) -> None:
    try:
        found = [float(token) for token in _tokens(text, key)]
    except ValueError as error:
        raise _refused(f"{key} holds something that is no number") from error
    if not all(map(math.isfinite, found)) or (count is not None and len(found) != count):
        raise _refused(f"{key} has a wrong length or a number that is not finite")
