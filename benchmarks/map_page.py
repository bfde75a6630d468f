"""Measure how the page of a map loads and moves in Chromium, by its number of items.

    .venv/bin/python benchmarks/map_page.py [--items 5000 100000 1000000]

The items are random points in clusters, with names of about twenty letters. Load is the time from opening the file to
the first drawn frame; frames are those per second while the map is dragged for three seconds, with nothing hidden.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from crossfade.trainer.maps.items_map import ItemsMap
from crossfade.trainer.maps.map_files import write_page
from crossfade.trainer.maps.map_labels import Labels

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from browser import Visit, browsing

DRAG = """(milliseconds) => new Promise((done) => {
  let frames = 0;
  const start = performance.now();
  function step(now) {
    if (now - start >= milliseconds) return done(1000 * frames / (now - start));
    view.x += frames % 2 ? 40 : -40;
    draw();
    frames++;
    requestAnimationFrame(step);
  }
  requestAnimationFrame(step);
})"""


def random_map(count: int) -> ItemsMap:
    """Return a map of ``count`` items in twelve clusters."""
    generator = np.random.default_rng(1)
    label_N = generator.integers(0, 12, count)
    center_L2 = generator.uniform(-50, 50, (12, 2))
    place_N2 = (center_L2[label_N] + 6 * generator.standard_normal((count, 2))).astype(np.float32)
    names = [f"Artist number {number:,} of all" for number in range(count)]
    neighbor_NK = generator.integers(0, count, (count, 10)).astype(np.int32)
    labels = Labels(tuple(f"genre {number}" for number in range(12)), label_N)
    return ItemsMap(
        f"{count:,} items", np.arange(count), pa.array(range(count)), names, place_N2, labels, neighbor_NK, None
    )


def main() -> None:
    """Write the pages, open them, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[5_000, 100_000, 1_000_000], metavar="N")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="map-page-") as folder, browsing() as browser:
        for count in arguments.items:
            path = Path(folder) / "map.html"
            write_page(random_map(count), path)
            context = browser.new_context(viewport={"width": 1440, "height": 1000})
            page = Visit(context.new_page()).page
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("#names span.island")
            seconds = time.perf_counter() - start
            frames = page.evaluate(DRAG, 3000)
            size = path.stat().st_size / 1e6
            print(f"{count:>9,} items: {size:6.1f} MB, {seconds:5.2f} s to load, {frames:5.1f} frames/s")
            context.close()


if __name__ == "__main__":
    main()
