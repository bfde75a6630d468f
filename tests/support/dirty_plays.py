"""Write plays as people have them: commas and emoji in names, replays, gaps, timestamps of four formats, bad lines.

plays = DirtyPlays(tmp_path / "plays.csv", count=2000)
plays.pairs         # the plays of each (customer, title) that can be read
plays.lines         # the lines of each fault
"""

from __future__ import annotations

import csv
import io
import random
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

HEADER = ["user", "artist", "title", "plays", "at"]
ARTISTS = ["Earth, Wind & Fire", "Sigur Rós", 'The "5" Royales', "AC|DC", "back\\slash", "🎧 Lo-Fi 🎶", "Björk"]
TITLES = ["September", "two\nlines", "Creep, live", "🔥", '7" mix', "a|b", "Hoppípolla"]
FAULTS = {
    "unquoted comma": b"u1,Earth, Wind & Fire,September,3,2024-05-01T10:00:00\n",
    "short": b"u1,Bjork\n",
    "stray quote": b'u1,"Bjork,Hyperballad,3,2024-05-01T10:00:00\n',
    "not UTF-8": b"u1,Sigur R\xf3s,Svefn,3,2024-05-01T10:00:00\n",
    "text as plays": b"u1,Bjork,Army of Me,n/a,2024-05-01T10:00:00\n",
    "null byte": b"u1,Bjork,Army\0of Me,3,2024-05-01T10:00:00\n",
    "no such time": b"u1,Bjork,Army of Me,3,soon\n",
    "no customer": b",Bjork,Army of Me,3,2024-05-01T10:00:00\n",
    "no title": b"u1,Bjork,,3,2024-05-01T10:00:00\n",
    "no time": b"u1,Bjork,Army of Me,3,\n",
}
"""A line of each fault."""
_FAULT_EVERY = 50


class DirtyPlays:
    """A file of ``count`` plays, in which every 50th line has one of the ``FAULTS``."""

    def __init__(self, path: Path, count: int, seed: int = 3) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.times: set[int] = set()
        self.lines: dict[str, list[int]] = defaultdict(list)
        draw, line = random.Random(seed), 2
        with path.open("wb") as file:
            file.write((",".join(HEADER) + "\n").encode())
            for number in range(count):
                if number % _FAULT_EVERY == _FAULT_EVERY - 1:
                    fault = list(FAULTS)[number // _FAULT_EVERY % len(FAULTS)]
                    self.lines[fault].append(line)
                    text = FAULTS[fault]
                else:
                    text = self._play(draw)
                file.write(text)
                line += text.count(b"\n")

    def _play(self, draw: random.Random) -> bytes:
        user, artist, title = f"u{draw.randrange(40)}", draw.choice(ARTISTS), draw.choice(TITLES)
        plays, second = draw.randrange(1, 9), 1_700_000_000 + draw.randrange(10**6) * 60
        at = datetime.fromtimestamp(second, UTC)
        form = draw.randrange(4)
        written = [at.isoformat(), f"{at:%d/%m/%Y %H:%M}", str(second), str(second * 1000)][form]
        self.times.add(second - second % 60 if form == 1 else second)
        self.pairs[user, title] += plays
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([user, artist, title, plays, written])
        return text.getvalue().encode()
