"""``crossfade train``: run a job, in this process or as a distributed one on this host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossfade.progress import TrainingDisplay
    from deploy.cluster import Address
    from trainer.job import Job
    from trainer.run import RunFolder

_EPILOG = """\
Examples:
  crossfade train jobs/lastfm.yaml                               in this process
  crossfade train jobs/lastfm.yaml --servers 2 --workers 2       the same job on MXNet's dist_sync store
  crossfade train jobs/lastfm.yaml --set train.epochs=5 --set optimizer.learning_rate=0.05
  crossfade train --explain                                      every key of a job file: type, default and meaning

The run folder gets job.yaml (as resolved), metrics.jsonl, report.json, embeddings/ (those that did best on the valid
split) and, for a distributed job, logs/ (one file a role). A folder that holds an earlier run is moved aside.
"""


class _Explain(argparse.Action):
    """``--explain``: print the keys of a job file and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print them."""
        from trainer.job import explain_fields

        rows = [("KEY", "TYPE", "DEFAULT", "MEANING"), *explain_fields()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[3]}")
        parser.exit()


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "train",
        help="train embeddings as a job file says",
        description="Train embeddings as a job file says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="JOB", help="job file, YAML")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the job file",
    )
    parser.add_argument("--servers", type=int, metavar="N", help="the same as --set cluster.servers=N")
    parser.add_argument("--workers", type=int, metavar="N", help="the same as --set cluster.workers=N")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in DIR instead of moving it aside"
    )
    parser.add_argument("--explain", action=_Explain, nargs=0, help="print every key of a job file, and end")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print how it went."""
    from crossfade.progress import TrainingDisplay
    from deploy.capacity import check_fits_this_machine
    from trainer.job import load_job
    from trainer.run import RunFolder, default_run_dir, open_data

    overrides = list(arguments.overrides)
    for key in ("servers", "workers"):
        if getattr(arguments, key) is not None:
            overrides.append(f"cluster.{key}={getattr(arguments, key)}")
    job = load_job(arguments.job, overrides)
    _, _, model = open_data(job)
    check_fits_this_machine(job, model.tables)
    scheduler = _check_runtime(job)
    folder = RunFolder(arguments.run_dir or default_run_dir(job))
    with folder.begin(job, overwrite=arguments.overwrite) as moved:
        if moved is not None:
            print(f"the earlier run in {folder.path} was moved to {moved}")
        with TrainingDisplay(job.evaluate.select) as display:
            report = _train(job, scheduler, folder, display)
    display.print_report(report, folder.path)
    return 0


def _check_runtime(job: Job) -> Address | None:
    """Refuse a job that cannot run here, before an earlier run is touched; the scheduler's address, if it needs one."""
    if job.cluster.servers or job.train.engine == "mxnet":
        from kvstore.mxnet_import import require_mxnet

        require_mxnet()
    if not job.cluster.servers:
        return None
    from deploy.cluster import scheduler_address

    return scheduler_address(job.cluster)


def _train(job: Job, scheduler: Address | None, folder: RunFolder, display: TrainingDisplay) -> dict[str, Any]:
    if scheduler is not None:
        from deploy.agent import run_cluster

        roles = f"1 scheduler, {job.cluster.servers} servers, {job.cluster.workers} workers"
        print(f"starting {roles} (logs: {folder.logs})", file=sys.stderr)
        run_cluster(job.cluster, scheduler, folder, display.show)
        return folder.report()
    from kvstore.local import LocalStore
    from trainer.run import run_training

    return run_training(job, folder, LocalStore(), display.show)
