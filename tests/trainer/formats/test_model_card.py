"""The model card of an export: front matter, metrics that are those of the vectors, and no path of the machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_data import OVERFITTING, TRACKS, train_rows, write_job, write_planted
from command_here import crossfade_here
from running_command import succeeded

from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import data_fingerprint
from crossfade.trainer.embeddings.vector_origin import checkpoint_origin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run whose best epoch is not its last."""
    folder = tmp_path_factory.mktemp("card")
    data = write_planted(folder / "planted-data", named=True)
    train = {"epochs": 12, "patience": None}
    write_job(folder / "job.yaml", data, train=train, optimizer=OVERFITTING)
    succeeded(crossfade_here("train", "job.yaml", "--run-dir", "run", cwd=folder))
    return folder


def card_of(workspace: Path, out: Path, source: str, *options: object) -> str:
    succeeded(crossfade_here("export", source, "--out", out, *options, cwd=workspace))
    return (out / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    opening, text, _ = card.split("---\n", 2)
    assert opening == ""
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def report_of(workspace: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((workspace / "run" / "report.json").read_text())
    return report


def test_card_of_embeddings_has_the_metrics_of_the_report(workspace: Path, tmp_path: Path) -> None:
    card, report = card_of(workspace, tmp_path / "out", "run", "--to", "numpy"), report_of(workspace)
    assert report["best_epoch"] < report["epochs"]
    front = front_matter(card)
    assert front["library_name"] == "crossfade"
    assert front["tags"][0] == "recommendation"
    valid, test = (report["metrics"][split] for split in ("valid", "test"))
    means = (f"{of_split['recall@5']:.4f} ± {of_split['recall@5_se']:.4f}" for of_split in (valid, test))
    assert f"\n| recall@5 | {' | '.join(means)} |\n" in card
    assert f"\n| queries | {valid['queries']} | {test['queries']} |\n" in card
    assert f"| vectors | embeddings of epoch {report['best_epoch']}, the best on valid, exported " in card


def test_card_of_another_step_has_no_metrics(workspace: Path, tmp_path: Path) -> None:
    steps = report_of(workspace)["steps"]
    for number, options in enumerate(((), ("--to", "safetensors"))):
        source = "run" if number == 0 else "run/checkpoints"
        card = card_of(workspace, tmp_path / str(number), source, *options)
        assert "## Metrics" not in card
        assert f"| vectors | checkpoint of step {steps:,}, exported " in card


def test_card_describes_dataset_and_rows(workspace: Path, tmp_path: Path) -> None:
    card = card_of(workspace, tmp_path / "out", "run", "--to", "safetensors")
    fingerprint = data_fingerprint(Folder(workspace / "planted-data"))
    assert f"| dataset | planted-data, fingerprint {fingerprint:08x} " in card
    assert "\n| job | planted, by crossfade " in card
    for line in (
        f"| interactions, train | {train_rows():,} |",
        f"| track | {TRACKS} |",
        f"| track | {TRACKS} | 8 | 0 |",
    ):
        assert f"\n{line}\n" in card
    assert "the format `safetensors`" in card
    assert str(workspace) not in card
    assert str(tmp_path) not in card


def test_metrics_of_the_last_epoch_are_those_of_its_checkpoint(workspace: Path, tmp_path: Path) -> None:
    report = report_of(workspace) | {"best_epoch": report_of(workspace)["epochs"]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert checkpoint_origin(str(tmp_path), report["steps"]).metrics == report["metrics"]
    assert checkpoint_origin(str(tmp_path), report["steps"] - 1).metrics == {}
