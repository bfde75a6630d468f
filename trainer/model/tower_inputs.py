"""TODO-DOC split from trainer/model/towers.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from kvstore.arrays import BoolArray, FloatArray, IntArray
from trainer.model.active_rows import ActiveRows
from trainer.model.spec import TowerSpec


@njit(cache=True, error_model="numpy", parallel=True)
def _add_means(out_AD, values_VD, index_N, starts_A1, share_A):  # type: ignore[no-untyped-def]
    """Add to each row the embeddings of its values, each times the row's share."""
    for a in prange(out_AD.shape[0]):
        for n in range(starts_A1[a], starts_A1[a + 1]):
            for d in range(out_AD.shape[1]):
                out_AD[a, d] += share_A[a] * values_VD[index_N[n], d]


@njit(cache=True, error_model="numpy", parallel=True)
def _sum_shares(gradient_AD, owner_N, share_A, order_N, starts_V1):  # type: ignore[no-untyped-def]
    """Sum for each value the gradients of the rows that have it, in the order of rows, whatever the threads."""
    out_VD = np.zeros((starts_V1.shape[0] - 1, gradient_AD.shape[1]), gradient_AD.dtype)
    for v in prange(out_VD.shape[0]):
        for n in range(starts_V1[v], starts_V1[v + 1]):
            a = owner_N[order_N[n]]
            for d in range(out_VD.shape[1]):
                out_VD[v, d] += share_A[a] * gradient_AD[a, d]
    return out_VD


@dataclass(frozen=True)
class FeatureBag:
    """The values that some rows have of a feature: row a has uses ``starts_A1[a]`` to ``starts_A1[a + 1]``.

    ``counts_A``: how many each row has. ``owner_N``: whose each use is.
    """

    values: ActiveRows
    starts_A1: IntArray
    counts_A: IntArray
    owner_N: IntArray

    @staticmethod
    def of(values_N: IntArray, starts_A1: IntArray) -> FeatureBag:
        """That of the values ``values_N``, one row's after another's."""
        counts_A = np.diff(starts_A1)
        return FeatureBag(ActiveRows.of(values_N), starts_A1, counts_A, np.repeat(np.arange(len(counts_A)), counts_A))


@dataclass(frozen=True)
class TowerInputs:
    """What the vectors of some rows of a tower are made of.

    ``own_A``: whose own embedding counts, and ``rows``, which those are in its table. ``bags``: by feature.
    ``weight_A``: what each part counts, float64; None: 1.
    """

    own_A: BoolArray
    rows: IntArray
    bags: dict[str, FeatureBag]
    weight_A: FloatArray | None

    def active(self, tower: TowerSpec) -> dict[str, IntArray]:
        """The active rows of each table, sorted and unique."""
        own = {tower.id_table.name: self.rows} if tower.id_table else {}
        return own | {name: bag.values.rows_A for name, bag in self.bags.items()}

    def combine(self, tower: TowerSpec, block: Mapping[str, FloatArray]) -> FloatArray:
        """The vectors (A, D), of the active rows of each table in ``block``."""
        some_VD = next(iter(block[table.name] for table in tower.tables))
        out_AD = np.zeros((len(self.own_A), tower.entity.dim), some_VD.dtype)
        if tower.id_table is not None:
            out_AD[self.own_A] = block[tower.id_table.name]
            if self.weight_A is not None:
                out_AD *= self.weight_A[:, None].astype(out_AD.dtype)
        for name, bag in self.bags.items():
            share_A = self._share(bag, out_AD.dtype)
            _add_means(out_AD, block[name], bag.values.index_N, bag.starts_A1, share_A)
        return out_AD

    def gradients(self, tower: TowerSpec, gradient_AD: FloatArray) -> dict[str, FloatArray]:
        """The gradients by the active rows of each table, of those by the vectors."""
        own = {}
        if tower.id_table is not None:
            own_AD = gradient_AD[self.own_A]
            if self.weight_A is not None:
                own_AD *= self.weight_A[self.own_A, None].astype(own_AD.dtype)
            own[tower.id_table.name] = own_AD
        return own | {name: self._of_values(bag, gradient_AD) for name, bag in self.bags.items()}

    def _of_values(self, bag: FeatureBag, gradient_AD: FloatArray) -> FloatArray:
        share_A = self._share(bag, gradient_AD.dtype)
        gradient_VD: FloatArray = _sum_shares(
            gradient_AD, bag.owner_N, share_A, bag.values.order_N, bag.values.starts_A1
        )
        return gradient_VD

    def _share(self, bag: FeatureBag, dtype: np.dtype[np.floating[Any]]) -> FloatArray:
        """What one value counts in each row."""
        share_A = 1.0 / np.maximum(bag.counts_A, 1)
        return (share_A if self.weight_A is None else share_A * self.weight_A).astype(dtype)
