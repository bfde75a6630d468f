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
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.page import replace_section
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
        title: its heading.
        folder: its folder in that of the data.
        files: the file of each split of the dataset, in its folder.
        options: further options of ``prepare``.
        metrics: the columns of its table.
        published: published results, by the first of the metrics or all of them.
    """

    title: str
    folder: str
    files: Mapping[str, str]
    options: tuple[str, ...]
    metrics: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]]


def _of_lightgcnpp(title: str, folder: str, published: Mapping[str, tuple[float, ...]]) -> Split:
    files = {name: f"{name}.txt" for name in ("train", "valid", "test")}
    metrics = ("recall@10", "ndcg@10", "recall@40", "ndcg@40")
    return Split(title, folder, files, ("--format", "lightgcn"), metrics, published)


def _of_ir_benchmark(title: str, folder: str, published: Mapping[str, tuple[float, ...]]) -> Split:
    files = {name: f"{name}.tsv" for name in ("train", "test")}
    columns = ("--query", "customer=user_procid", "--item", "item=item_procid")
    return Split(title, folder, files, columns, ("recall@20", "ndcg@20"), published)


SPLITS = {
    "lastfm_split": _of_lightgcnpp(
        "Last.fm",
        "lastfm_lightgcnpp",
        {
            "BPR-MF": (0.1361, 0.1532, 0.2784, 0.2235),
            "LightGCN": (0.1741, 0.1996, 0.3481, 0.2854),
            "XSimGCL": (0.1801, 0.2062, 0.3575, 0.2937),
            "LightGCN++": (0.1889, 0.2171, 0.3745, 0.3083),
        },
    ),
    "ml1m_split": _of_lightgcnpp(
        "MovieLens-1M",
        "ml1m_lightgcnpp",
        {
            "BPR-MF": (0.1291, 0.2677, 0.3192, 0.2914),
            "LightGCN": (0.1495, 0.2977, 0.3586, 0.3265),
            "XSimGCL": (0.1657, 0.3216, 0.3830, 0.3504),
            "LightGCN++": (0.1667, 0.3243, 0.3852, 0.3534),
        },
    ),
    "gowalla_split": _of_lightgcnpp(
        "Gowalla",
        "gowalla_lightgcnpp",
        {
            "BPR-MF": (0.0895, 0.0899),
            "LightGCN": (0.1182, 0.1284),
            "LightGCN++": (0.1219, 0.1321),
            "NCL++": (0.1234, 0.1331),
        },
    ),
    "ir_gowalla": _of_ir_benchmark(
        "Gowalla of IR-Benchmark",
        "ir_gowalla",
        {
            "MF, BPR": (0.1355, 0.1111),
            "LightGCN, BPR": (0.1745, 0.1402),
            "MF, softmax": (0.2064, 0.1624),
            "MF, BSL": (0.2071, 0.1630),
            "MF, PSL": (0.2089, 0.1647),
            "MF, SL@20": (0.2121, 0.1709),
            "LightGCN, SL@20": (0.2128, 0.1729),
        },
    ),
    "ir_electronic": _of_ir_benchmark(
        "Amazon Electronics of IR-Benchmark",
        "ir_electronic",
        {
            "MF, BPR": (0.0816, 0.0527),
            "LightGCN, BPR": (0.0813, 0.0524),
            "MF, softmax": (0.0821, 0.0529),
            "MF, BSL": (0.0834, 0.0530),
            "MF, PSL": (0.0838, 0.0541),
            "MF, SL@20": (0.0901, 0.0590),
            "LightGCN, SL@20": (0.0903, 0.0591),
        },
    ),
}
"""The splits, by the names of their jobs."""
NOTES = {
    "lastfm_split": """\
A search over 100 settings found 0.1720 ± 0.0004 on valid at best (ndcg@10, three seeds):

```
.venv/bin/crossfade tune jobs/lastfm_split.yaml --trials 100 --search model.temperature=log:0.11..0.22 \\
    --search optimizer.learning_rate=log:0.06..0.6 --search 'train.batch_size=2048|4096|8192|16384' \\
    --search train.query_frequency_power=-0.9..0 --search train.item_frequency_power=0..0.35 \\
    --search 'train.epochs=20|40|60'
```
""",
    "gowalla_split": """\
The test split is no random sample of the interactions: the 50 items with the most interactions in train and valid have
5.6 % of test, 1.49 times their share of train and valid. In the other splits here it is 0.99 to 1.00 times. So a
ranking that favors popular items can gain on this test and lose on valid, and settings chosen on valid do not show the
gain. On the split of Gowalla below, LightGCN and plain embeddings with the same loss are alike.
""",
    "ir_electronic": """\
`top_k: 20` weighs interactions by their place around the 20th of the list, as SL@20 does ([model.md](model.md)). It
gains on both splits of IR-Benchmark. On Last.fm and MovieLens-1M it loses a percent of recall@40, so it is no default.
""",
}
"""What stands below the table of a split."""


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


def section(place: Place, runs: Sequence[Run]) -> str:
    """Return the section of the page, with the rows of finished runs."""
    parts = [_HEAD]
    for name, split in SPLITS.items():
        rows: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            report = place.report(run)
            if run.split == name and report is not None:
                rows.setdefault(run.row, []).append(report)
        parts += [f"### {split.title} (`jobs/{name}.yaml`)", "", *_table(split, rows)]
        for row, values in split.published.items():
            cells = [f"{value:.4f}" for value in values] + [""] * (len(split.metrics) - len(values))
            parts.append(f"| {row}, published | | {' | '.join(cells)} | | |")
        if name in NOTES:
            parts += ["", NOTES[name].rstrip()]
        parts.append("")
    return "\n".join(parts)


def write(place: Place, runs: Sequence[Run]) -> None:
    """Write the section into the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replace_section(text, "Quality on published splits", section(place, runs)), encoding="utf-8")


_HEAD = """\
## Quality on published splits

Written by `make quality` ([`benchmarks/quality.py`](../benchmarks/quality.py)), which trains every row from a clean
state. Embeddings have 64 columns. The splits, and the rows called published, are those of

- "Revisiting LightGCN: unexpected inflexibility, inconsistency, and a remedy towards improved recommendation"
  (LightGCN++, RecSys 2024), supplement, tables 9 and 10. Its protocol: hyperparameters and the stopping point are
  chosen on valid, never on test; test is reported; all items are ranked except those that the listener has in train,
  so items of valid stay and count as misses (`evaluate.exclude_splits: [train]`).
- IR-Benchmark, as published in table 2 of "Breaking the top-K barrier: advancing top-K ranking metrics optimization in
  recommender systems" (KDD 2025). It has no valid split: ours train all epochs on its train split. The defaults were
  chosen on parts of its train split, and of those of the other splits, never on test.

Ours are plain two-tower models of IDs only: one embedding per customer, one per item, compared by cosine. Figures are
means over seeds, ± their standard deviation where there are several. All jobs name their data and how they are
evaluated, and leave the rest to the defaults. Choices were made by the column of valid. Minutes are of a machine that
did other work too.
"""


def _table(split: Split, rows: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return the lines of a table: its head, and a line for each row."""
    names = ["", "seeds", *split.metrics, "valid ndcg@10", "minutes"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for name, reports in rows.items():
        metrics = [report["metrics"] for report in reports]
        cells = [_mean([values["test"][metric] for values in metrics]) for metric in split.metrics]
        valid = _mean([values["valid"]["ndcg@10"] for values in metrics]) if "valid" in metrics[0] else ""
        minutes = statistics.mean(report["wall_seconds"] for report in reports) / 60
        lines.append(f"| {name} | {len(reports)} | {' | '.join(cells)} | {valid} | {minutes:.1f} |")
    return lines


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
