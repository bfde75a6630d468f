"""Measure quality on published splits: train each job from a clean state and write the results into docs/evidence.md.

    make quality                                          all unfinished runs, then the page
    make quality ARGS='--only "lastfm*" --seeds 1'        some of it
    .venv/bin/python benchmarks/quality.py --list         list the runs, and which are finished

The data is not part of this project: --data, or CROSSFADE_DATA, names a folder that has lastfm_lightgcnpp/,
ml1m_lightgcnpp/ and gowalla_lightgcnpp/, each with train.txt, valid.txt, and test.txt as LightGCN++ published them
(RecSys 2024), and ir_gowalla/ and ir_electronic/, each with train.tsv and test.tsv of IR-Benchmark. Finished runs in
--runs are kept while their job stays the same; delete them to train again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.trainer.config.loading import load_job
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.runs.job_inputs import load_inputs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "evidence.md"
SEEDS = 3
ON_SERVERS = ("--servers", "2", "--workers", "2")


@dataclass(frozen=True)
class Split:
    """A published split.

    Attributes:
        folder: its folder in that of the data.
        files: the file of each split of the dataset, in its folder.
        options: further options of ``prepare``.
        metrics: the columns of its table.
    """

    folder: str
    files: Mapping[str, str]
    options: tuple[str, ...]
    metrics: tuple[str, ...]


def _of_lightgcnpp(folder: str) -> Split:
    files = {name: f"{name}.txt" for name in ("train", "valid", "test")}
    return Split(folder, files, ("--format", "lightgcn"), ("recall@10", "ndcg@10", "recall@40", "ndcg@40"))


def _of_ir_benchmark(folder: str) -> Split:
    files = {name: f"{name}.tsv" for name in ("train", "test")}
    columns = ("--query", "customer=user_procid", "--item", "item=item_procid")
    return Split(folder, files, columns, ("recall@20", "ndcg@20"))


SPLITS = {
    "lastfm_split": _of_lightgcnpp("lastfm_lightgcnpp"),
    "ml1m_split": _of_lightgcnpp("ml1m_lightgcnpp"),
    "gowalla_split": _of_lightgcnpp("gowalla_lightgcnpp"),
    "ir_gowalla": _of_ir_benchmark("ir_gowalla"),
    "ir_electronic": _of_ir_benchmark("ir_electronic"),
}
"""The splits, by the names of their jobs."""


@dataclass(frozen=True)
class Run:
    """One training. ``split`` names the table of the page, ``row`` its row."""

    split: str
    row: str
    job: JobConfig
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder."""
        words = "".join(character if character.isalnum() else "-" for character in self.row.lower())
        return f"{self.split}-{words}-seed{self.job.train.seed}"


@dataclass(frozen=True)
class Place:
    """The folders of the data and of the runs."""

    data: Path
    runs: Path

    def dataset(self, split: str) -> Path:
        """Return the folder of a split's dataset."""
        return self.runs / "data" / split

    def report(self, run: Run) -> dict[str, Any] | None:
        """Return the report of a finished run of the same job, or None."""
        folder = self.runs / run.name
        if not (folder / "report.json").exists():
            return None
        trained, job = load_job(folder / "job.yaml"), load_inputs(run.job).job
        is_other = job.resume_conflicts(trained) or trained.optimizer != job.optimizer
        if is_other or trained.train.epochs != job.train.epochs:
            return None
        report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return report


def all_runs(place: Place, seeds: Sequence[int]) -> Iterator[Run]:
    """Yield every run, those of the main table first."""
    jobs = {split: ROOT / "jobs" / f"{split}.yaml" for split in SPLITS}
    common = {split: [f"data.path={place.dataset(split)}", "metrics.port=null"] for split in SPLITS}
    for seed in seeds:
        for split, job in jobs.items():
            overrides = [*common[split], f"train.seed={seed}"]
            yield Run(split, "Crossfade", load_job(job, overrides))
            yield Run(split, "Crossfade, top_k 20", load_job(job, [*overrides, "top_k=20"]))
    for seed in seeds:
        for split, job in jobs.items():
            overrides = [*common[split], f"train.seed={seed}"]
            yield Run(split, "Crossfade, 2 servers and 2 workers", load_job(job, overrides), ON_SERVERS)


def crossfade(log: Path, *arguments: object) -> None:
    """Run a ``crossfade`` command with its output in ``log``.

    Raises:
        CrossfadeError: the command failed.
    """
    command = [sys.executable, "-m", "crossfade", *map(str, arguments)]
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise CrossfadeError(f"crossfade {arguments[0]} ended with exit code {code}; see {log}")


def prepare(place: Place, split: str) -> None:
    """Prepare the dataset of a split, unless it exists.

    Raises:
        InputError: a file of the split is missing.
    """
    published, dataset = SPLITS[split], place.dataset(split)
    if (dataset / "manifest.json").exists():
        return
    files = {name: place.data / published.folder / file for name, file in published.files.items()}
    for file in files.values():
        if not file.exists():
            raise InputError(
                f"{file}: no such file; --data or CROSSFADE_DATA must name a folder that has "
                f"{published.folder}/ with the files of the split"
            )
    dataset.parent.mkdir(parents=True, exist_ok=True)
    options = [part for name, file in files.items() for part in (f"--{name}", file)]
    crossfade(place.runs / f"{split}-prepare.log", "prepare", *published.options, *options, "--out", dataset)


def train(place: Place, run: Run) -> None:
    """Train a run from a clean state."""
    job = place.runs / f"{run.name}.yaml"
    job.write_text(run.job.to_yaml(), encoding="utf-8")
    folder = place.runs / run.name
    log = place.runs / f"{run.name}.log"
    crossfade(log, "train", job, "--run-dir", folder, "--overwrite", *run.options)


def write(place: Place, runs: Sequence[Run]) -> None:
    """Write the rows of finished runs into the tables of the page, which has one below the name of each job."""
    page = PAGE.read_text(encoding="utf-8")
    for name, split in SPLITS.items():
        reports: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            report = place.report(run)
            if run.split == name and report is not None:
                reports.setdefault(run.row, []).append(report)
        for row, measured in reports.items():
            page = replace_row(page, f"jobs/{name}.yaml", row, row_of(split, row, measured))
    PAGE.write_text(page, encoding="utf-8")


def replace_row(page: str, job: str, row: str, text: str) -> str:
    """Return ``page`` with the line ``text`` in place of ``row`` below the heading of ``job``, or as the first row.

    Raises:
        InputError: the page has no table there.
    """
    heading = rf"^### [^\n]*{re.escape(job)}(?:(?!^#).*\n)*?"
    for place in (rf"({heading})\| {re.escape(row)} \|.*\n", rf"({heading}\|[-|]+\n)"):
        found = re.search(place, page, re.MULTILINE)
        if found is not None:
            return page[: found.end(1)] + text + "\n" + page[found.end() :]
    raise InputError(f"{PAGE}: no table below a heading with {job}")


def row_of(split: Split, row: str, reports: Sequence[Mapping[str, Any]]) -> str:
    """Return the line of a table: means over the seeds of ``reports``."""
    metrics = [report["metrics"] for report in reports]
    cells = [_mean([values["test"][metric] for values in metrics]) for metric in split.metrics]
    valid = _mean([values["valid"]["ndcg@10"] for values in metrics]) if "valid" in metrics[0] else ""
    minutes = statistics.mean(report["wall_seconds"] for report in reports) / 60
    return f"| {row} | {len(reports)} | {' | '.join(cells)} | {valid} | {minutes:.1f} |"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("CROSSFADE_DATA", "data")
    parser.add_argument("--data", type=Path, default=Path(data), metavar="DIR", help="read the splits from this folder")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "quality", metavar="DIR", help="keep the runs in this folder"
    )
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help="train the main rows with N seeds (default: 3)"
    )
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="train only runs whose names match, such as *-seed1"
    )
    parser.add_argument("--list", action="store_true", help="list the runs and which are finished; train none")
    return parser.parse_args()


def main() -> int:
    """Train all unfinished runs and write the page."""
    arguments = _arguments()
    place = Place(arguments.data.absolute(), arguments.runs.absolute())
    try:
        runs = list(all_runs(place, range(1, arguments.seeds + 1)))
        if arguments.list:
            for run in runs:
                print(f"{'finished' if place.report(run) else 'to train':<9} {run.name}")
            return 0
        for split in SPLITS:
            prepare(place, split)
        unfinished = [run for run in runs if fnmatch.fnmatch(run.name, arguments.only) and place.report(run) is None]
        for run in (bar := tqdm(unfinished, desc="quality", unit="run", dynamic_ncols=True)):
            bar.set_postfix_str(run.name)
            begin = time.monotonic()
            train(place, run)
            report = place.report(run)
            assert report is not None, f"{run.name}: its report is of another job"
            test = " ".join(f"{name} {report['metrics']['test'][name]:.4f}" for name in SPLITS[run.split].metrics)
            tqdm.write(f"{run.name}: {test}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
            write(place, runs)
        write(place, runs)
        print(PAGE)
    except CrossfadeError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
