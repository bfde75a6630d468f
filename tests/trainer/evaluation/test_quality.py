"""The quality benchmark: it trains unfinished runs, writes the page, and names missing splits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cluster_data import planted_splits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
RUN = "lastfm_split-crossfade-seed1"


def write_published(data: Path) -> None:
    """Write all splits in the published format, a customer a line, with planted plays."""
    for folder in ("lastfm_lightgcnpp", "ml1m_lightgcnpp", "gowalla_lightgcnpp"):
        (data / folder).mkdir(parents=True)
        for split, (customers_N, tracks_N) in planted_splits().items():
            lines = [
                " ".join(map(str, [customer, *tracks_N[customers_N == customer]]))
                for customer in np.unique(customers_N)
            ]
            (data / folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    for folder in ("ir_gowalla", "ir_electronic"):
        (data / folder).mkdir(parents=True)
        splits = planted_splits()
        for split in ("train", "test"):
            pairs = "".join(f"{customer}\t{track}\n" for customer, track in zip(*splits[split], strict=True))
            (data / folder / f"{split}.tsv").write_text(f"user_procid\titem_procid\n{pairs}")


def quality(workspace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "benchmarks/quality.py",
        "--data",
        "data",
        "--runs",
        "runs",
        "--out",
        "quality.md",
        *options,
    ]
    paths = [str(workspace / part) if part in {"data", "runs", "quality.md"} else part for part in command]
    return subprocess.run(paths, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_benchmark_trains_unfinished_runs_and_writes_the_page(tmp_path: Path) -> None:
    write_published(tmp_path / "data")
    first = quality(tmp_path, "--only", RUN)
    assert first.returncode == 0, first.stderr
    page = (tmp_path / "quality.md").read_text()
    assert "| Crossfade | 1 | 0." in page
    assert "| LightGCN++, published | | 0.1889 | 0.2171 |" in page
    report = tmp_path / "runs" / RUN / "report.json"
    trained = report.stat().st_mtime_ns
    assert quality(tmp_path, "--only", RUN).returncode == 0
    assert report.stat().st_mtime_ns == trained
    listed = quality(tmp_path, "--list").stdout.splitlines()
    assert [line.split()[-1] for line in listed if line.startswith("finished")] == [RUN]
    assert len(listed) > 20


def test_missing_split_is_rejected_with_the_option_that_names_it(tmp_path: Path) -> None:
    result = quality(tmp_path, "--only", RUN)
    assert result.returncode == 2
    assert "lastfm_lightgcnpp/train.txt: no such file; --data or CROSSFADE_DATA must name a folder" in result.stderr
