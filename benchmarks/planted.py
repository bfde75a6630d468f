"""Write raw events of customers with moods, or with likes of their own, as jobs/history.yaml and jobs/kinds.yaml need.

    .venv/bin/python benchmarks/planted.py --queries 2000 --items 2000 --interactions 2e5 --moods 6 --out data/raw_moods
    .venv/bin/python benchmarks/planted.py --queries 1000 --items 2000 --interactions 3e5 --likes genre --out data/raw

Events are those of ``crossfade synthesize --raw-events``, but for one of two:

- With ``--moods N``, a customer has one genre at a time, and turns to another after each of N parts of the time, the
  first of which has begun before.
- With ``--likes genre``, items of every other genre get most likes and library adds; with ``--likes customer``, items
  of the first of each customer's own genres.

Shapes: N events of a chunk.
"""

import argparse

import numpy as np
import numpy.typing as npt

from crossfade.base.hashing import Unsigned
from crossfade.trainer.prepare.options import SyntheticSpec
from crossfade.trainer.prepare.synthetic_draws import MAX_OWN_GENRES, Chunk, Floats, Generator, genre_of
from crossfade.trainer.prepare.synthetic_events import write_raw_events

_LIKED_SHARES = (0.68, 0.14, 0.08, 0.10)
_UNLIKED_SHARES = (0.88, 0.015, 0.005, 0.10)


class MoodGenerator(Generator):
    """Draws one genre of a customer at a time, of so many ``moods``; positions are in order of time."""

    moods = 0

    def draw_taste(self, query_N: Unsigned, position_N: Unsigned) -> Floats:
        """Draw the genre of the customer at each position."""
        elapsed_N = position_N * (self.moods / self.spec.interactions)
        mood_N = (elapsed_N + self.uniform("turn", query_N)).astype(np.uint64)
        return self.uniform("mood", query_N * np.uint64(self.moods + 1) + mood_N)


class LikeGenerator(Generator):
    """Draws likes and library adds of every other genre, or with ``of_customer`` of one genre of each customer."""

    of_customer = False

    def draw_events(self, chunk: Chunk, position_N: Unsigned) -> npt.NDArray[np.int8]:
        """Draw the kind of each event."""
        genre_N = genre_of(chunk.item_N, self.spec.genres)
        is_liked_N = genre_N % 2 == 0
        if self.of_customer:
            first_N = self.uniform("own genre", chunk.query_N.astype(np.uint64) * np.uint64(MAX_OWN_GENRES))
            is_liked_N = genre_N == self.find_genres(first_N)
        liked_N, unliked_N = (self.draw_kinds(shares, position_N) for shares in (_LIKED_SHARES, _UNLIKED_SHARES))
        return np.where(chunk.stray_N, super().draw_events(chunk, position_N), np.where(is_liked_N, liked_N, unliked_N))


def main() -> None:
    """Write the events."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("queries", "items", "interactions"):
        parser.add_argument(f"--{name}", type=float, required=True, metavar="N")
    parser.add_argument("--genres", type=int, default=SyntheticSpec.model_fields["genres"].default, metavar="N")
    planted = parser.add_mutually_exclusive_group(required=True)
    planted.add_argument("--moods", type=int, metavar="N")
    planted.add_argument("--likes", choices=["genre", "customer"])
    parser.add_argument("--out", required=True, metavar="DIR")
    given = parser.parse_args()
    sizes = {name: int(getattr(given, name)) for name in ("queries", "items", "interactions", "genres")}
    generator: Generator
    if given.moods:
        generator = MoodGenerator(SyntheticSpec.of(**sizes), seed=0)
        generator.moods = given.moods
    else:
        generator = LikeGenerator(SyntheticSpec.of(**sizes), seed=0)
        generator.of_customer = given.likes == "customer"
    write_raw_events(given.out, generator)


if __name__ == "__main__":
    main()
