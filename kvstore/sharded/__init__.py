"""Tables whose rows are divided among the ranks that train."""

from typing import Literal

WireDtype = Literal["float32", "bfloat16", "stochastic_bfloat16"]
"""How rows and gradients travel between hosts: as they are, rounded to nearest even, or rounded at random."""
