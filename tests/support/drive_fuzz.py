"""Run commands on corrupt files in one process: each must succeed, or end with one line that names the corrupt file.

    drive_fuzz.py FOLDER KIND FIRST COUNT        cases FIRST to FIRST + COUNT of a kind; 0: without end
    drive_fuzz.py FOLDER all FIRST COUNT DONE    those of each kind, without the first DONE of all

A case is identified by its kind and number. It is printed before it starts, so a crash belongs to the last one printed;
one that exceeds its time ends the process with the stack of its threads. Problems are printed as they are found.
"""

import faulthandler
import io
import itertools
import json
import os
import random
import resource
import shutil
import sys
import traceback
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cluster_data import write_job, write_planted
from mutations import any_value, corrupt_bytes, corrupt_pages, corrupt_parquet, corrupt_text, corrupt_tree
from waiting import wait_until

from crossfade.base.io.folder import Folder
from crossfade.cli.main import main
from crossfade.trainer.data.parquet import file_entry, write_options

CASE_SECONDS = 180.0
CASE_KILOBYTES = 2 << 20
"""Memory that a case may take beyond the peak of all cases before it."""

_PROGRESS = (
    *("crossfade: skipped ", "crossfade: epoch=", "crossfade: resuming from step ", "crossfade: run: there is no run"),
    *("metrics: ", "to see it: "),
)
"""What lines begin with that may precede an error."""
Command = list[str]
Prepare = Callable[[random.Random, Path], tuple[Command, str]]
"""Corrupts something in a folder; returns the command to run and what its error must name."""

TRAIN = ["train", "job.yaml", "--run-dir", "run"]


def make_originals(folder: Path) -> None:
    """Write what cases corrupt: a dataset, its job, a run with checkpoints, and raw events in every format."""
    write_planted(folder / "data", train_files=((500, 17), (40,)), named=True)
    for path in (folder / "data/train/part-00000.parquet", folder / "data/vocabulary/track/part-00001.parquet"):
        table = pq.read_table(path)
        pq.write_table(table, path, row_group_size=300, **write_options(table.schema))
    manifest = json.loads((folder / "data/manifest.json").read_text())
    _update_entries(folder / "data", manifest)
    (folder / "data/manifest.json").write_text(json.dumps(manifest))
    train = {"epochs": 1, "max_steps": 4, "batch_size": 100}
    write_job(folder / "job.yaml", "data", train=train, checkpoint={"interval_steps": 2, "path": "checkpoints"})
    code = _run(TRAIN)[0]
    assert code == 0
    draw = np.random.default_rng(1)
    columns = {
        "customer": [f"c{number}" for number in draw.integers(0, 30, 400)],
        "item": draw.integers(0, 20, 400).tolist(),
        "w": draw.random(400).tolist(),
        "t": draw.integers(0, 10**9, 400).tolist(),
    }
    (folder / "raw").mkdir()
    pq.write_table(pa.table(columns), folder / "raw/e.parquet", row_group_size=150)
    plain = {"compression": "none", "use_dictionary": False, "version": "1.0"}
    pq.write_table(pa.table(columns), folder / "raw/plain.parquet", **plain)
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    for name, delimiter in (("e.csv", ","), ("e.tsv", "\t")):
        (folder / "raw" / name).write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows))
    (folder / "raw/e.txt").write_text("".join(f"{n} {n + 1} {n * 7}\n" for n in range(100)))
    (folder / "raw/ids.csv").write_text("customer,x\nc001,1\nc002,2\n")
    pq.write_table(pa.table({"customer": ["c001", "c003"]}), folder / "raw/ids.parquet")


def _update_entries(data: Path, manifest: dict[str, Any]) -> None:
    for part in (*manifest["entities"].values(), *manifest["splits"].values()):
        part["files"] = [file_entry(Folder(data), file["path"]).model_dump() for file in part["files"]]


def _delete_run(folder: Path) -> None:
    for name in ("run", "checkpoints"):
        shutil.rmtree(folder / name)


def _corrupt_one(draw: random.Random, folder: Path, pattern: str, corrupt: Callable[..., bytes]) -> Path:
    paths = sorted(folder.glob(pattern))
    path = draw.choice(paths)
    path.write_bytes(corrupt(draw, path.read_bytes(), draw.choice(paths).read_bytes()))
    return path


def dataset(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt files of a dataset, so that they no longer match its manifest."""
    _delete_run(folder)
    _corrupt_one(draw, folder, "data/*/**/*.parquet", corrupt_parquet)
    return TRAIN, "data"


def checksummed(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt pages of a dataset's files, and update the checksums in its manifest."""
    _delete_run(folder)
    path = _corrupt_one(draw, folder, "data/*/**/*.parquet", corrupt_pages)
    content, manifest = path.read_bytes(), json.loads((folder / "data/manifest.json").read_text())
    length = int.from_bytes(content[-8:-4], "little") + 8
    for part in (*manifest["entities"].values(), *manifest["splits"].values()):
        for file in part["files"]:
            if file["path"] == path.relative_to(folder / "data").as_posix():
                file.update(bytes=len(content), footer_crc32=zlib.crc32(content[-length:]))
    (folder / "data/manifest.json").write_text(json.dumps(manifest))
    return draw.choice((TRAIN, TRAIN, ["validate", "data"], _forget(draw))), "data"


def _forget(draw: random.Random) -> Command:
    return ["forget", "data", "--ids", draw.choice(("raw/ids.csv", "raw/ids.parquet"))]


def manifests(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt the manifest of a dataset: its bytes, or values in its JSON."""
    _delete_run(folder)
    path = folder / "data/manifest.json"
    if draw.random() < 0.3:
        _corrupt_one(draw, folder, "data/manifest.json", corrupt_text)
    else:
        path.write_text(json.dumps(corrupt_tree(draw, json.loads(path.read_text()))))
    return draw.choice((TRAIN, TRAIN, ["validate", "data"], _forget(draw), ["plan", "job.yaml"])), "data"


def raw(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt raw events."""
    kind = draw.choice(("parquet", "parquet", "csv", "tsv", "txt"))
    path = _corrupt_one(draw, folder, f"raw/[ep]*.{kind}", corrupt_parquet if kind == "parquet" else corrupt_text)
    options = ["--weight", "w", "--timestamp", "t"] if kind != "txt" else ["--format", "lightgcn"]
    events = str(path.relative_to(folder))
    return ["prepare", "--events", events, "--out", "out", *options, "--memory", "1"], events


def id_lists(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt lists of ids to forget."""
    name = draw.choice(("ids.csv", "ids.parquet"))
    _corrupt_one(draw, folder, f"raw/{name}", corrupt_text if name == "ids.csv" else corrupt_parquet)
    return ["forget", "data", "--ids", f"raw/{name}"], f"raw/{name}"


def checkpoints(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt files of checkpoints, or values in a manifest whose CRC-32 then is updated."""
    manifest = draw.choice(sorted(folder.glob("checkpoints/*/manifest.json")))
    if draw.random() < 0.5:
        _corrupt_one(draw, folder, "checkpoints/*/**/*.*", corrupt_bytes)
    else:
        tree = json.loads(manifest.read_text())
        del tree["crc32"]
        tree = corrupt_tree(draw, tree)
        body = json.dumps(tree, indent=1).encode().removesuffix(b"\n}")
        manifest.write_bytes(body + b',\n "crc32": %d\n}\n' % zlib.crc32(body))
    shutil.rmtree(folder / "run")
    start = f"checkpoint.warm_start_from={draw.choice((manifest.parent.relative_to(folder), 'checkpoints'))}"
    resume = ["train", "job.yaml", "--run-dir", "run", "--resume"]
    warm_start = [*TRAIN, "--set", start, "--set", "checkpoint.path=null"]
    return draw.choice((resume, warm_start)), "checkpoints"


def jobs(draw: random.Random, folder: Path) -> tuple[Command, str]:
    """Corrupt a job file: its bytes, or its structure."""
    _delete_run(folder)
    path = folder / "job.yaml"
    mutation = draw.randrange(5)
    if mutation < 2:
        _corrupt_one(draw, folder, "job.yaml", corrupt_text)
    elif mutation == 2:
        path.write_bytes(draw.randbytes(draw.randrange(300)))
    elif mutation == 3:
        path.write_text(json.dumps(any_value(draw)))
    else:
        path.write_text(json.dumps(corrupt_tree(draw, json.loads(path.read_text()))))
    return draw.choice((["plan", "job.yaml"], TRAIN)), ""


KINDS: dict[str, Prepare] = {
    kind.__name__: kind for kind in (dataset, checksummed, manifests, raw, id_lists, checkpoints, jobs)
}


def _run(command: Command) -> tuple[int, str, str]:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = main([str(part) for part in command])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return code, stdout.getvalue(), stderr.getvalue()


def problem_of(command: Command, named: str) -> str | None:
    """Run ``command``; return what is wrong with its outcome, or None."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        code, _, stderr = _run(command)
    except BaseException:
        return traceback.format_exc()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if added > CASE_KILOBYTES:
        return f"took {added:,} KiB of memory more than any case before it"
    if code == 0 or (command[0], code, stderr) == ("plan", 1, ""):  # a plan that does not fit is not an error
        return None
    lines = stderr.split("\n")[:-1]
    last = lines[-1] if lines else ""
    lists_problems = command[0] in ("validate", "prepare")
    others = [line for line in lines[:-1] if not line.lstrip("\r").startswith(_PROGRESS)]
    if code not in (1, 2) or not last.startswith("crossfade: error: ") or (others and not lists_problems and code == 2):
        return f"exit code {code}, with the output:\n{stderr}"
    if not all(line.isprintable() for line in (lines if lists_problems else [last])):
        return f"a line is not printable: {stderr!r}"
    if not any(named in line for line in (lines if lists_problems else [last])) or len(last) > 2000:
        return f"did not name {named} in one short line: {last[:3000]}"
    if code == 1 and command[0] != "train":
        return f"exit code 1: {last}"
    return None


def _clear(folder: Path) -> None:
    """Delete ``folder``, into which a thread of a failed training may still be writing its last checkpoint."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_gone, f"{folder} to stay deleted", seconds=CASE_SECONDS)


def main_loop(folder: Path, kind: str, first: int, count: int, done: int = 0) -> int:
    """Run the cases; return how many had a problem."""
    originals, work_dir = folder / "originals", folder / "work"
    work_dir.mkdir(parents=True)
    os.chdir(work_dir)
    make_originals(work_dir)
    work_dir.rename(originals)
    faulthandler.enable()
    problems = 0
    kinds = KINDS if kind == "all" else [kind]
    cases = ((each, n) for each in kinds for n in (range(first, first + count) if count else itertools.count(first)))
    for each, number in itertools.islice(cases, done, None):
        shutil.copytree(originals, work_dir)
        os.chdir(work_dir)
        command, named = KINDS[each](random.Random(f"{each} {number}"), work_dir)
        print(f"case {each} {number}: {' '.join(command)}", flush=True)
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        problem = problem_of(command, named)
        faulthandler.cancel_dump_traceback_later()
        if problem is not None:
            problems += 1
            print(f"problem: {problem}", flush=True)
        os.chdir(folder)
        _clear(work_dir)
    return problems


if __name__ == "__main__":
    sys.exit(1 if main_loop(Path(sys.argv[1]).resolve(), sys.argv[2], *map(int, sys.argv[3:])) else 0)
