"""The mutants apply to the code as it is, and their tests exist."""

from pathlib import Path

from mutants import load_mutants, misfits

ROOT = Path(__file__).resolve().parents[2]


def test_mutants_fit_the_code() -> None:
    mutants = load_mutants()
    assert len(mutants) >= 60
    assert misfits(mutants, ROOT) == {}
