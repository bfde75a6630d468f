"""The matrix kernels of processors that OpenBLAS does not know."""

import os
import sys
from pathlib import Path

import pytest

from crossfade.base.blas_kernels import choose_blas_kernels

AVX512 = "avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "flags", "expected"),
    [
        ("GenuineIntel", 6, 207, AVX512, "SkylakeX"),
        ("GenuineIntel", 6, 186, "avx avx2 fma", "Haswell"),
        ("GenuineIntel", 6, 175, "sse4_2", None),
        ("GenuineIntel", 6, 143, AVX512, None),
        ("AuthenticAMD", 25, 207, AVX512, None),
    ],
)
def test_kernels_follow_from_the_features_of_a_later_processor(
    vendor: str,
    family: int,
    model: int,
    flags: str,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nflags\t\t: {flags}\n"
    (tmp_path / "cpuinfo").write_text(f"{described}\nprocessor\t: 1\nmodel\t\t: 999\n")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")  # so that what it was is restored, even nothing
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    monkeypatch.setitem(sys.modules, "numpy", sys)
    choose_blas_kernels(tmp_path / "cpuinfo")
    assert "OPENBLAS_CORETYPE" not in os.environ, "numpy has been imported"
    monkeypatch.delitem(sys.modules, "numpy")
    choose_blas_kernels(tmp_path / "missing")
    assert "OPENBLAS_CORETYPE" not in os.environ
    choose_blas_kernels(tmp_path / "cpuinfo")
    assert os.environ.get("OPENBLAS_CORETYPE") == expected
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    choose_blas_kernels(tmp_path / "cpuinfo")
    assert os.environ["OPENBLAS_CORETYPE"] == "Zen"
