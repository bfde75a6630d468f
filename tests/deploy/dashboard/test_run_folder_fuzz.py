"""Corrupt files of a run folder, checkpoints included, are read or rejected in one line: never anything else.

Cases are deterministic; CONTRIBUTING.md has how to run more of them.
"""

import json
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster_data import write_job, write_planted
from command_here import crossfade_here
from fuzzed_json import corrupt_json, fuzz, fuzz_range, judge
from mutations import corrupt_bytes, corrupt_text
from run_folders import load, sample

from crossfade.base.errors import CheckpointError, InputError
from crossfade.cli.status import _screen, _table
from crossfade.deploy.dashboard.run_reader import RunReader
from crossfade.deploy.dashboard.summary import summarize
from crossfade.kvstore.checkpoint.checkpoint import open_checkpoint
from crossfade.kvstore.local import LocalStore
from crossfade.trainer.embeddings.staged import LIST_FILE, StagedEmbeddings
from crossfade.trainer.embeddings.vector_origin import embeddings_origin
from crossfade.trainer.model.dense import DenseLayers
from crossfade.trainer.runs.job_inputs import JobInputs, load_inputs, load_row_counts
from crossfade.trainer.runs.ownership import check_claimable
from crossfade.trainer.runs.run_folder import RunFolder
from crossfade.trainer.training.checkpointing import CheckpointMetadata
from crossfade.trainer.training.restore import restore_train_state

CASES, FIRST = fuzz_range(100)
JSON_FILES = ("run.json", "report.json", "state.json", "restarts.json", "row_counts.json", "checkpoints/owner.json")


@dataclass(frozen=True)
class TrainedRun:
    """A run with a file of every kind, its checkpoint and its inputs."""

    path: Path
    step: Path
    metadata: CheckpointMetadata
    inputs: JobInputs

    def restore(self) -> None:
        """Read the checkpoint as a run that resumes does."""
        uri = str(self.step)
        state = restore_train_state(self.metadata, uri, 0)
        assert state.step == open_checkpoint(uri).manifest.step
        LocalStore().create(self.metadata.tables, self.metadata.optimizer, 1, uri)
        DenseLayers.of(self.metadata.job, self.inputs.model).load(open_checkpoint(uri))

    def read_files(self) -> None:
        """Read the other files as the commands do."""
        folder = RunFolder(self.path)
        folder.run_id(), folder.started(), folder.restarts(), folder.report()
        job = folder.job()
        embeddings_origin(str(self.path), job)
        row_counts = load_row_counts(self.path, job, self.metadata.data, self.inputs.manifest.splits["train"])
        assert row_counts is None or sum(map(sum, row_counts)) <= self.inputs.manifest.splits["train"].rows
        check_claimable(str(self.path / "checkpoints"), None, job.name, take_over=True)
        StagedEmbeddings(str(self.path / "checkpoints")).epoch()

    def show(self) -> None:
        """Show the run as 'crossfade status' does, which reports what it cannot read."""
        reader = RunReader(self.path, "run")
        reader.refresh()
        summary = summarize(reader)
        text = "\n".join([*_screen(summary), *_table([summary, summary]), json.dumps(summary.to_json())])
        assert "run" in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    root = tmp_path_factory.mktemp("fuzz")
    data = write_planted(root / "data", train_files=((500, 17), (40,)))
    job = write_job(
        root / "job.yaml",
        data,
        train={"epochs": 1, "max_steps": 4, "batch_size": 100},
        model={"dense": {"query": [4, 8]}},
        checkpoint={"interval_steps": 2},
    )
    result = crossfade_here("train", job, "--run-dir", root / "run")
    assert result.returncode == 0, result.stderr
    run = root / "run"
    restart = {"generation": 2, "cause": "x", "step": 3, "checkpoint": None, "lost_steps": 1, "lost_seconds": 0.5}
    (run / "restarts.json").write_text(json.dumps([restart]))
    counts = {"since": None, "until": None, "row_counts": [[500, 17], [40]]}
    failure = {"generation": 1, "role": "worker-0", "host": "here", "cause": "x", "error": "y", "log": "z"}
    lost = {"ends_run": True, "step": 3, "lost_steps": 1, "lost_seconds": 0.5}
    with (run / "processes.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1.0, "event": "failure", **failure, **lost}) + "\n")
        file.write(
            json.dumps(sample(at=1.0, worker_0=load(phase_seconds={"pull": 1.0}), server_0=load(updated=3))) + "\n"
        )
    folder = RunFolder(run)
    inputs = load_inputs(folder.job())
    metadata = CheckpointMetadata.of(folder.job(), folder.run_id(), inputs.model.tables)
    (run / "row_counts.json").write_text(json.dumps({**counts, "data": metadata.data}))
    staged = {"epoch": 1, "folder": "epoch-000001", "files": {"track/rows-000000000000.parquet": 3}}
    (run / "checkpoints" / "embeddings").mkdir()
    (run / "checkpoints" / "embeddings" / LIST_FILE).write_text(json.dumps(staged))
    step = max((run / "checkpoints").glob("step-*"))
    trained = TrainedRun(run, step, metadata, inputs)
    trained.restore()
    trained.read_files()
    trained.show()
    return trained


@contextmanager
def restored(*paths: Path) -> Iterator[None]:
    """Write the files at ``paths`` back after the context."""
    contents = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def seal(content: bytes) -> bytes:
    """Return the JSON object ``content`` as a manifest whose CRC-32 matches."""
    body = content.rstrip().removesuffix(b"}")
    return body + b',\n "crc32": %d\n}\n' % zlib.crc32(body)


def with_digest(manifest: bytes, section: str, name: str, content: bytes) -> bytes:
    """Return ``manifest``, sealed, with the size and the CRC-32 of the file ``name`` in ``section``."""
    tree = json.loads(manifest)
    del tree["crc32"]
    for entry in tree[section]:
        if entry["name"] == name:
            entry.update(bytes=len(content), crc32=zlib.crc32(content))
    return seal(json.dumps(tree).encode())


@pytest.mark.slow
def test_corrupt_checkpoint_is_restored_or_rejected(trained: TrainedRun) -> None:
    step, rejections = trained.step, (CheckpointError, InputError)
    manifest, dense = step / "manifest.json", step / "dense.npz"
    [part] = step.glob("part-*.json")

    def checkpoints(draw: random.Random) -> str | None:
        kind = draw.randrange(6)
        array = draw.choice(sorted(step.glob("*/*.npy")))
        with restored(manifest, part, dense, array):
            tree = json.loads(manifest.read_bytes())
            del tree["crc32"]
            if kind < 3:
                manifest.write_bytes(seal(corrupt_json(draw, json.dumps(tree).encode())))
            elif kind == 3:
                part.write_bytes(corrupt_json(draw, part.read_bytes()))
                manifest.write_bytes(with_digest(manifest.read_bytes(), "parts", part.name, part.read_bytes()))
            elif kind == 4:
                dense.write_bytes(corrupt_bytes(draw, dense.read_bytes(), manifest.read_bytes()))
                manifest.write_bytes(with_digest(manifest.read_bytes(), "files", dense.name, dense.read_bytes()))
            else:
                path = draw.choice((manifest, part, dense, array))
                path.write_bytes(corrupt_bytes(draw, path.read_bytes(), array.read_bytes()))
            return judge(trained.path.parent, trained.restore, rejections)

    fuzz(CASES, FIRST, checkpoints)


@pytest.mark.slow
def test_corrupt_run_file_is_read_or_rejected(trained: TrainedRun) -> None:
    listing = f"checkpoints/embeddings/{LIST_FILE}"
    logs = ("events.jsonl", "processes.jsonl")

    def run_files(draw: random.Random) -> str | None:
        path = trained.path / draw.choice((*JSON_FILES, *JSON_FILES, listing, *logs, *logs, *logs, "job.yaml"))
        with restored(path):
            content = path.read_bytes()
            if path.suffix == ".jsonl":
                lines = content.splitlines()
                number = draw.randrange(len(lines))
                lines[number] = corrupt_json(draw, lines[number])
                path.write_bytes(b"\n".join(lines) + b"\n")
            elif path.suffix == ".json":
                path.write_bytes(corrupt_json(draw, content))
            else:
                path.write_bytes(corrupt_text(draw, content, b"{}"))
            return judge(trained.path.parent, trained.read_files, (InputError,)) or judge(
                trained.path.parent, trained.show, ()
            )

    fuzz(CASES // 2, FIRST, run_files)
