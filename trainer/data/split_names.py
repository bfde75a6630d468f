"""The names of the splits of a dataset, which ``trainer/prepare/hold_out.py`` makes."""

from typing import Literal, get_args

SplitName = Literal["train", "valid", "test"]
ALL_SPLITS: tuple[SplitName, ...] = get_args(SplitName)
