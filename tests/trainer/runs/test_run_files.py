"""Files of a run folder that others may have written are read as their model, or rejected in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crossfade.base.errors import InputError
from crossfade.trainer.runs.run_folder import RunFolder

REPORT = {"steps": 4, "epochs": 1, "best_epoch": 1, "metrics": {"valid": {"ndcg@10": 0.5, "queries": 3}}, "more": [1]}


def test_valid_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.restarts() == []
    (tmp_path / "run.json").write_text('{"id": "3f2a", "name": "plays", "started": 1.5}')
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    run.write_restarts([{"generation": 2, "cause": "x"}])
    assert (run.run_id(), run.started(), run.report(), run.restarts()) == (
        "3f2a",
        1.5,
        REPORT,
        [{"generation": 2, "cause": "x"}],
    )
    assert list(run.report()) == list(REPORT)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("run.json", {"id": "../../other"}, "id: string should match pattern"),
        ("run.json", {"name": "plays"}, "id: is missing"),
        ("run.json", {"id": "1", "started": "1e999x"}, "started: input should be a valid number"),
        ("run.json", ["1"], "input should be a valid dictionary"),
        ("report.json", {**REPORT, "metrics": {"valid": None}}, "metrics.valid: input should be a valid dictionary"),
        ("report.json", {**REPORT, "steps": -1}, "steps: input should be greater than or equal to 0"),
        ("report.json", {}, "steps: is missing"),
        ("restarts.json", {"a": 1}, "input should be a valid list"),
        ("restarts.json", "[" * 5000, "nested too deeply"),
        ("restarts.json", '[{"step": NaN}]', "NaN is not a number of JSON"),
        ("run.json", '{"id": "1", "id": "2"}', "the key 'id' is given twice"),
    ],
)
def test_file_of_another_form_is_rejected(tmp_path: Path, name: str, content: Any, problem: str) -> None:
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    run = RunFolder(tmp_path)
    read = {"run.json": run.run_id, "report.json": run.report, "restarts.json": run.restarts}[name]
    with pytest.raises(InputError, match=f"{tmp_path / name}: is not as 'crossfade train' writes it: .*{problem}"):
        read()


def test_fifo_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(InputError, match=r"run.json: cannot be read: not a regular file"):
        RunFolder(tmp_path).run_id()


def test_damaged_file_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: [")
    with pytest.raises(InputError, match=r"job\.yaml:1: not valid YAML"):
        RunFolder(tmp_path).check_readable()
    (tmp_path / "run.json").touch()
    with pytest.raises(InputError, match=r"run\.json: is empty; restore it, or delete it for a new run ID"):
        RunFolder(tmp_path).check_readable()
