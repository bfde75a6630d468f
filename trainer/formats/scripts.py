"""Write the scripts that load an export into a database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path


def write_script(path: Path, text: str) -> None:
    """Write an executable script to ``path``."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def export_suffix(date: datetime) -> str:
    """Return a suffix for names that differs between exports: their time, such as 20261127t143000."""
    return date.astimezone(UTC).strftime("%Y%m%dt%H%M%S")
