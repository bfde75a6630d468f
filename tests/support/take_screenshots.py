"""Take screenshots of the dashboard for docs/: a job on two servers, one of which is killed, and a run in process.

make screenshots        # needs Chromium, and data/lastfm as 'make train' prepares it
"""

import argparse
import sys
import tempfile
from pathlib import Path

from browser import PHONE, browsing, visiting
from running_command import crossfade, started, succeeded, wait_for_steps
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 250_000
WIDE = {"width": 1280, "height": 1240}
JOB = ROOT / "jobs" / "lastfm.yaml"
SETTINGS = [
    *("--set", f"data.path={ROOT / 'data' / 'lastfm'}", "--set", "checkpoint.interval_seconds=10"),
    *("--set", "train.epochs=12"),
]


def train(folder: Path, name: str, *more: object) -> tuple[object, ...]:
    return ("train", JOB, "--run-dir", folder / "runs" / name, "--set", f"name={name}", *SETTINGS, *more)


def make_runs(folder: Path) -> None:
    """Train a run in process, and one on servers of which one is killed."""
    (folder / "runs").mkdir()
    succeeded(
        crossfade(*train(folder, "lastfm-fast", "--set", "optimizer.learning_rate=0.01"), cwd=folder, seconds=900)
    )
    with started(*train(folder, "lastfm", "--servers", 2, "--workers", 2), cwd=folder) as run:
        wait_for_steps(run, folder / "runs" / "lastfm", 120)
        saved = folder / "runs" / "lastfm" / "checkpoints"
        wait_until(lambda: list(saved.glob("step-*/manifest.json")), 300, "a checkpoint")
        run.roles()["server-1"].kill()
        succeeded(run.finish(900))


def take(folder: Path, out: Path) -> None:
    with started("dashboard", "--port", 0, cwd=folder) as page, browsing() as browser:
        assert page.process.stdout is not None
        address = page.process.stdout.readline().split()[1]
        for name, size, scheme, runs in (
            ("dashboard-light", WIDE, "light", "run=lastfm"),
            ("dashboard-dark", WIDE, "dark", "run=lastfm&run=lastfm-fast"),
            ("dashboard-phone", PHONE, "light", "run=lastfm"),
        ):
            with visiting(browser, f"{address}?{runs}", size=size, color_scheme=scheme) as visit:
                drawn = "() => document.querySelectorAll('.js-plotly-plot .trace').length > 8"
                visit.page.wait_for_function(drawn)
                visit.page.mouse.move(2, 2)
                path = out / f"{name}.png"
                visit.page.screenshot(path=path, scale="css", animations="disabled")
                size_bytes = path.stat().st_size
                print(f"{path}: {size_bytes:,} bytes")
                assert size_bytes < MAX_BYTES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--work-dir", type=Path, help="folder for the runs, which is kept; existing runs are reused")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work_dir or Path(temporary)
        if not (folder / "runs").exists():
            make_runs(folder)
        take(folder, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
