"""Take the pictures in docs/: the dashboard with a job that loses a server, a map of artists, and the page Explore.

make screenshots        # needs Chromium, and data/lastfm and runs/lastfm as 'make train' leaves them
"""

import argparse
import sys
import tempfile
from pathlib import Path

from browser import browsing, visiting
from running_command import crossfade, started, succeeded, wait_for_steps
from waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 250_000
WIDE = {"width": 1280, "height": 1330}  # ends below the table of processes
JOB = ROOT / "jobs" / "lastfm.yaml"
# In so small a catalog all items are negatives by default, and no rows are saved.
SETTINGS = [
    *("--set", f"data.path={ROOT / 'data' / 'lastfm'}", "--set", "checkpoint.interval_seconds=10"),
    *("--set", "negatives.kind=shared", "--set", "train.batch_size=2048", "--set", "train.epochs=12"),
]


def train(folder: Path, name: str, *more: object) -> tuple[object, ...]:
    return ("train", JOB, "--run-dir", folder / "runs" / name, "--set", f"name={name}", *SETTINGS, *more)


def make_runs(folder: Path) -> None:
    """Train a run on servers of which one is killed."""
    (folder / "runs").mkdir()
    with started(*train(folder, "lastfm", "--servers", 2, "--workers", 2), cwd=folder) as run:
        wait_for_steps(run, folder / "runs" / "lastfm", 120)
        saved = folder / "runs" / "lastfm" / "checkpoints"
        wait_until(lambda: list(saved.glob("step-*/manifest.json")), "a checkpoint", seconds=300)
        run.roles()["server-1"].kill()
        succeeded(run.finish(900))


def take(folder: Path, out: Path) -> None:
    with started("dashboard", "--port", 0, cwd=folder) as page, browsing() as browser:
        assert page.process.stdout is not None
        address = page.process.stdout.readline().split()[1]
        with visiting(browser, f"{address}?run=lastfm", size=WIDE, color_scheme="light") as visit:
            visit.page.wait_for_function("() => document.querySelectorAll('.js-plotly-plot .trace').length > 3")
            visit.page.mouse.move(2, 2)
            path = out / "dashboard-light.png"
            visit.page.screenshot(path=path, scale="css", animations="disabled")
            print(f"{path}: {path.stat().st_size:,} bytes")
            assert path.stat().st_size < MAX_BYTES


def take_map(folder: Path, out: Path) -> None:
    """Draw the map of the run that ``make train`` leaves, and search on its page."""
    succeeded(crossfade("map", ROOT / "runs" / "lastfm", "--out", folder / "map", cwd=folder, seconds=900))
    address = (folder / "map" / "map.html").as_uri()
    with browsing() as browser, visiting(browser, address, size={"width": 1200, "height": 790}) as visit:
        visit.page.fill("#query", "Metallica")
        visit.page.wait_for_selector("#found button")
        visit.page.mouse.move(2, 2)
        visit.page.screenshot(path=out / "map-page.png", scale="css", animations="disabled")
    assert (out / "map-page.png").stat().st_size < MAX_BYTES


def take_explore(folder: Path, out: Path) -> None:
    """Show the neighbors of an artist and the recommendations for a listener of the run that ``make train`` leaves."""
    size, path = {"width": 1280, "height": 1180}, out / "explore.png"
    run = started("dashboard", "runs/lastfm", "--port", 0, cwd=ROOT, variables={"TMPDIR": str(folder)})
    with run as command, browsing() as browser:
        assert command.process.stdout is not None
        address = command.process.stdout.readline().split()[1]
        state = "run=lastfm&item=154&customer=2"
        with visiting(browser, f"{address}explore?{state}", size=size, color_scheme="light") as visit:
            visit.page.wait_for_selector("#recommendations:not([hidden])", timeout=60_000)
            visit.page.wait_for_selector("#results:not([aria-busy])")
            visit.page.mouse.move(2, 2)
            visit.page.screenshot(path=path, scale="css", animations="disabled")
    assert path.stat().st_size < MAX_BYTES


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
        take_map(folder, arguments.out)
        take_explore(folder, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
