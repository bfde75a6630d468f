"""Warn about batches that suit the data badly, before hours of training and not after.

warn_odd_batches(batch_size=16_384, rows=900, partitions=16, negatives="in_batch")
"""

from __future__ import annotations

import logging

from crossfade.base.text import counted

_logger = logging.getLogger(__name__)

_FEW_NEGATIVES = 100


def warn_odd_batches(batch_size: int, rows: int, partitions: int, negatives: str) -> None:
    """Log a warning if a batch is larger than the data, and one if examples have few in-batch negatives.

    Args:
        batch_size: interactions of a step.
        rows: interactions of an epoch.
        partitions: parts of a batch, inside which examples are negatives of each other.
        negatives: the kind of the negatives, with ``auto`` resolved.
    """
    if batch_size > rows:
        _logger.warning(
            f"train.batch_size is {batch_size:,}, but train has {counted(rows, 'interaction')}, so that an epoch is "
            "one step; lower train.batch_size"
        )
    others = min(batch_size, rows) // max(1, partitions) - 1
    if negatives == "in_batch" and others < _FEW_NEGATIVES:
        _logger.warning(
            f"in-batch negatives: an example has about {max(0, others):,}, the items of the other examples of its "
            f"partition (batches of {min(batch_size, rows):,} in {counted(partitions, 'partition')}); expected at "
            f"least {_FEW_NEGATIVES}: raise train.batch_size, lower data.partitions, or set negatives.kind to mixed"
        )
