"""An alert about a run or a service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Alert:
    """One alert."""

    level: Level
    text: str
