"""Label the items of a map, and place the labels' names on it.

    labels = choose_labels(groups, names, neighbor_NK, colors=12)
    labels.names, labels.label_N                        # label_N is -1 for items without one

Shapes: N items, K neighbors, L groups, P pairs of an item and a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossfade.base.arrays import BoolArray, FloatArray, IntArray
from crossfade.trainer.data.jagged_array import JaggedArray

PALETTE = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#ee7733", "#009988", "#cc3311", "#997700", "#5e4fa2", "#bb88dd"),
)
"""Colors of labels, by number; readable on light and dark ground."""
_MAX_GROUPS = 64
"""Groups that are considered, the largest ones."""
_MIN_SHARE = 0.01
"""Least share of the items in a group."""
_MAX_JACCARD, _MAX_CONTAINED = 0.3, 0.6
"""Shares of common items, of all items of two groups and of the smaller one's, above which one group suffices."""


@dataclass(frozen=True)
class Labels:
    """The labels of items: ``names``, the most frequent first, and each item's number in it or -1, int64 (N,)."""

    names: tuple[str, ...]
    label_N: IntArray

    @property
    def colors(self) -> list[str]:
        """The color of each label: ``map.parquet`` keeps it, so that all pages show the same."""
        return [PALETTE[number % len(PALETTE)] for number in range(len(self.names))]


def choose_labels(groups: JaggedArray, names: Sequence[str], neighbor_NK: IntArray, colors: int) -> Labels:
    """Label items by up to ``colors`` of their ``groups``, which have ``names``, that are regions of the embedding.

    A group scores the root of its items times how much more often an item's neighbors are in it, if the item is, than
    all items are. The groups with the highest scores are chosen, but of two that largely have the same items, only one.
    An item of several chosen groups gets the smallest, which says most about it.
    """
    members = _members(groups, names)
    scores = {name: _score(is_member_N, neighbor_NK) for name, is_member_N in members.items()}
    chosen: list[str] = []
    for name in sorted(members, key=lambda name: -scores[name]):
        if len(chosen) < colors and not any(_overlap(members[name], members[other]) for other in chosen):
            chosen.append(name)
    chosen.sort(key=lambda name: -np.count_nonzero(members[name]))
    label_N = np.full(len(neighbor_NK), -1)
    for number, name in enumerate(chosen):
        label_N[members[name]] = number
    return Labels(tuple(chosen), label_N)


def _members(groups: JaggedArray, names: Sequence[str]) -> dict[str, BoolArray]:
    """Return which items are in each of the largest groups, bool (N,), of those that are not small."""
    items = len(groups.counts_L)
    item_P, value_P = np.repeat(np.arange(items), groups.counts_L), groups.values_N
    counts_L = np.bincount(value_P, minlength=len(names))
    members = {}
    for value in np.argsort(-counts_L, kind="stable")[:_MAX_GROUPS]:
        if counts_L[value] >= max(1, _MIN_SHARE * items):
            is_member_N = np.zeros(items, np.bool_)
            is_member_N[item_P[value_P == value]] = True
            members[names[value]] = is_member_N
    return members


def _score(is_member_N: BoolArray, neighbor_NK: IntArray) -> float:
    excess = is_member_N[neighbor_NK[is_member_N]].mean() - is_member_N.mean()
    return float(np.sqrt(np.count_nonzero(is_member_N)) * excess)


def _overlap(one_N: BoolArray, other_N: BoolArray) -> bool:
    """Return whether two groups largely have the same items."""
    common, either = np.count_nonzero(one_N & other_N), np.count_nonzero(one_N | other_N)
    smaller = min(np.count_nonzero(one_N), np.count_nonzero(other_N))
    return bool(common > _MAX_JACCARD * either or common > _MAX_CONTAINED * smaller)


def place_names(labels: Labels, place_N2: FloatArray, neighbor_NK: IntArray) -> dict[str, tuple[float, float]]:
    """Return where on the map to write the name of each label: at the item whose neighbors have it most.

    Their neighbors count as well, so that the item is amid its region. Names that would lie close to that of a more
    frequent label are left out.
    """
    size = max(float(np.ptp(place_N2, axis=0).max()), 1e-9)
    placed: dict[str, tuple[float, float]] = {}
    for number, name in enumerate(labels.names):
        has_label_N = labels.label_N == number
        if not has_label_N.any():
            continue
        share_N = has_label_N[neighbor_NK].mean(axis=1)[neighbor_NK].mean(axis=1)
        x, y = map(float, place_N2[np.argmax(np.where(has_label_N, share_N, -1.0))])
        if all(np.hypot(x - other_x, y - other_y) > size / 25 for other_x, other_y in placed.values()):
            placed[name] = x, y
    return placed
