"""Mutants as the .toml files in this folder define them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
_KEYS = {"name", "file", "find", "replace", "tests", "note"}


class UsageError(Exception):
    """The arguments or the files of mutants are invalid."""


@dataclass(frozen=True)
class Mutant:
    """One deliberate change of one file."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    @property
    def package(self) -> str:
        """Return the folder of its file."""
        return str(Path(self.file).parent)

    def applied_to(self, text: str) -> str:
        """Return the changed ``text`` of its file.

        Raises:
            ValueError: the mutant does not apply.
        """
        count = text.count(self.find)
        if count != 1:
            raise ValueError(f"its text to find occurs {count} times in {self.file}")
        changed = text.replace(self.find, self.replace)
        if changed == text:
            raise ValueError("it changes nothing")
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"the result is not valid Python: {error}") from error
        return changed


@dataclass(frozen=True)
class Result:
    """The verdict on one mutant, noticed, survived or broken, and how it came about."""

    mutant: Mutant
    verdict: str
    seconds: float
    how: str = ""


def load_mutants() -> list[Mutant]:
    """Read all files of mutants.

    Raises:
        UsageError: an entry lacks a key or has an unknown one, or a name is used twice.
    """
    mutants: list[Mutant] = []
    for path in sorted(HERE.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            place = f"{path.name}: {entry.get('name', 'an entry without a name')}"
            if unknown := set(entry) - _KEYS:
                raise UsageError(f"{place}: {', '.join(sorted(unknown))}: unknown key")
            if missing := _KEYS - {"note"} - set(entry):
                raise UsageError(f"{place}: lacks {', '.join(sorted(missing))}")
            if not entry["tests"]:
                raise UsageError(f"{place}: names no test")
            if any(entry["name"] == mutant.name for mutant in mutants):
                raise UsageError(f"{place}: the name is used twice")
            values = {key: entry[key] for key in ("name", "file", "find", "replace")}
            mutants.append(Mutant(**values, tests=tuple(entry["tests"])))
    return mutants


def misfits(mutants: Sequence[Mutant], root: Path) -> dict[str, str]:
    """Return why mutants do not apply below ``root``, by name of those that do not."""
    reasons = {}
    for mutant in mutants:
        try:
            mutant.applied_to((root / mutant.file).read_text(encoding="utf-8"))
            for test in mutant.tests:
                path, _, function = test.partition("::")
                if f"def {function.partition('[')[0]}" not in (root / path).read_text(encoding="utf-8"):
                    raise ValueError(f"there is no {test}")
        except (OSError, ValueError) as error:
            reasons[mutant.name] = str(error)
    return reasons
