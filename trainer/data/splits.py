"""The splits of a dataset."""

from typing import Literal, get_args

SplitName = Literal["train", "valid", "test"]
ALL_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
