"""Measure the first minutes with Crossfade, implicit, and TorchRec: from plays to neighbors and recommendations.

    python benchmarks/first_minutes/measure.py FOLDER        # that of user_artists.dat and artists.dat, HetRec 2011

Each gets an environment in build/first_minutes/ and the same plays.csv, and runs the file ``with_…`` beside this one:
once, as on the first day, and again. Prints the table of docs/comparison.md; what they print is in ``TOOL/first``.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "first_minutes"
PEERS = ROOT / "benchmarks" / "peers"
TOOLS: dict[str, list[list[str]]] = {
    "crossfade": [[str(ROOT)]],
    "implicit": [["implicit==0.7.3"]],
    "torchrec": [["-r", str(PEERS / "torch.txt")], ["--no-deps", "-r", str(PEERS / "torchrec.txt")]],
}
"""By tool, the arguments of each ``pip install``."""


def main() -> None:
    """Measure each tool, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="read user_artists.dat and artists.dat here")
    source = parser.parse_args().source
    rows = [measure(tool, source) for tool in TOOLS]
    print("\n".join(["| | Crossfade | implicit | TorchRec |", "|---|---|---|---|"]))
    for name in rows[0]:
        print(f"| {name} | {' | '.join(row[name] for row in rows)} |")


def measure(tool: str, source: Path) -> dict[str, str]:
    """Install a tool into a new environment, run its script twice, and return its column of the table."""
    folder = FOLDER / tool
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder.parent)
    empty = size(folder / "venv")
    install = [str(folder / "venv" / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    installed = sum(run([*install, *arguments], ROOT)[0] for arguments in TOOLS[tool])
    megabytes = (size(folder / "venv") - empty) / 1e6
    [script] = HERE.glob(f"with_{tool}.*")
    write_plays(source, folder / "plays.csv")
    shell = ["sh", str(script)] if script.suffix == ".sh" else ["python", str(script)]
    first = run(shell, folder, folder / "venv", folder / "first")
    for made in ("data", "runs"):
        shutil.rmtree(folder / made, ignore_errors=True)
    again = run(shell, folder, folder / "venv", folder / "again")
    return {
        "commands to install": str(len(TOOLS[tool])),
        "seconds to install": f"{installed:.0f}",
        "installed, MB": f"{megabytes:,.0f}",
        "lines written": str(lines_of(script)),
        "seconds to run, first time": f"{first[0]:.0f}",
        "seconds to run, again": f"{again[0]:.0f}",
        "processor seconds, first time": f"{first[1]:.1f}",
        "processor seconds, again": f"{again[1]:.1f}",
    }


def run(
    command: list[str], folder: Path, environment: Path | None = None, output: Path | None = None
) -> tuple[float, float]:
    """Run a command in a folder, with an environment's programs first; return its seconds and processor seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = f"{environment / 'bin'}:{os.environ['PATH']}" if environment else os.environ["PATH"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    begin, used = time.perf_counter(), processor_seconds()
    done = subprocess.run(command, cwd=folder, env={**variables, "PATH": path}, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - begin, processor_seconds() - used
    if output:
        output.write_bytes(done.stdout)
    return seconds


def processor_seconds() -> float:
    """Return the processor time of all processes that ended, which other work on the machine hardly changes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_plays(source: Path, out: Path) -> None:
    """Write a line for each customer and artist, with the artist's name and the number of plays."""
    with (source / "artists.dat").open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = {line["id"]: line["name"] for line in lines}
    with (
        (source / "user_artists.dat").open(encoding="utf-8", newline="") as file,
        out.open("w", encoding="utf-8", newline="") as csv_file,
    ):
        writer = csv.writer(csv_file)
        writer.writerow(["customer", "artist", "plays"])
        for line in csv.DictReader(file, delimiter="\t"):
            writer.writerow([line["userID"], names[line["artistID"]], line["weight"]])


def lines_of(script: Path) -> int:
    """Count the lines of a script that are neither empty, nor comments, nor its docstring."""
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    return sum(bool(line) and not line.startswith(("#", '"""')) for line in lines)


def size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
