"""Names and headers of the files of a checkpoint (docs/checkpoint-format.md).

This module imports nothing large, so that the process that writes a checkpoint starts fast and takes little memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FORMAT_VERSION = 2
MANIFEST_FORMAT, PART_FORMAT = "crossfade-checkpoint", "crossfade-checkpoint-part"
MANIFEST_NAME = "manifest.json"
WEIGHTS = "weights"
HEADER_BYTES = 128

STEP_NAME = re.compile(r"step-([0-9]{9,18})")
TABLE_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
PART_NAME = re.compile(r"part-[0-9]{5,9}-of-[0-9]{5,9}\.json")
SHARD_NAME = re.compile(
    r"(?P<table>[A-Za-z0-9_-]+)/(?P<array>[a-z_]+)\.(?P<number>[0-9]{5,9})-of-(?P<shards>[0-9]{5,9})\.npy"
)
EXTRA_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.npz")
"""Name of a small file that the writer adds: never a name of a manifest or a part."""


def step_name(step: int) -> str:
    """Return the name of the checkpoint of ``step`` in the folder of checkpoints."""
    return f"step-{step:09d}"


def part_name(part: int, parts: int) -> str:
    """Return the name of the file that lists what part ``part`` of ``parts`` wrote."""
    return f"part-{part:05d}-of-{parts:05d}.json"


def shard_name(table: str, array: str, number: int, num_shards: int) -> str:
    """Return the path, inside a checkpoint, of the file with one array of shard ``number`` of ``table``."""
    return f"{table}/{array}.{number:05d}-of-{num_shards:05d}.npy"


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an .npy file of version 1.0 (numpy.lib.format), independent of the version of numpy.

    It is always ``HEADER_BYTES`` long, so the offset of a row can be computed.
    """
    fields = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + fields.encode()
    return header.ljust(HEADER_BYTES - 1) + b"\n"
