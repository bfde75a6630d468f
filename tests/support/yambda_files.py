"""Write files of the schema of Yambda, with made-up listening, for tests and trials.

write_yambda(tmp_path, users=40, items=300, listens=4_000)
assert (tmp_path / "flat" / "50m" / "listens.parquet").is_file()

    PYTHONPATH=tests/support:. .venv/bin/python -m yambda_files yambda --listens 46_467_212

Users, tracks, and listens have the numbers of Yambda-50M by default. Each user listens to tracks of three genres, more
to popular ones, and to some of any genre, over all of the 300 days; of the listens, 1.9 % are followed by a like, 0.2 %
by a dislike, 0.7 % by an unlike, and 0.05 % by an undislike. Events are ordered by user and time, as published. Tracks
have one artist and album of their genre, and four of five an embedding near the center of it.

Shapes: N events of a block of users.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LAST_TIMESTAMP = 26_000_000
GENRES = 50
KINDS = {"listens": "listen", "likes": "like", "dislikes": "dislike", "unlikes": "unlike", "undislikes": "undislike"}
_SHARES = {"likes": 0.019, "dislikes": 0.0023, "unlikes": 0.007, "undislikes": 0.0005}
_BLOCK_EVENTS = 1_000_000
_EVENT = [("uid", pa.uint32()), ("timestamp", pa.uint32()), ("item_id", pa.uint32()), ("is_organic", pa.uint8())]
_PLAY = [("played_ratio_pct", pa.uint16()), ("track_length_seconds", pa.uint32())]
_KIND = [("event_type", pa.dictionary(pa.int32(), pa.string()))]


def write_yambda(
    root: Path, users: int, items: int, listens: int, size: str = "50m", width: int = 16, seed: int = 0
) -> Path:
    """Write all files below ``root``, with embeddings of ``width`` numbers; return the folder of the events."""
    folder, draw = root / "flat" / size, np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tracks(root, items, width, draw)
    schemas = {name: pa.schema(_EVENT + (_PLAY if name == "listens" else [])) for name in KINDS}
    schemas["multi_event"] = pa.schema(_EVENT + _PLAY + _KIND)
    writers = {
        name: pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd")
        for name, schema in schemas.items()
    }
    block = max(1, users * _BLOCK_EVENTS // max(listens, 1))
    for first in range(0, users, block):
        of_block = range(first, min(first + block, users))
        plays = _draw_listens(of_block, items, listens * len(of_block) // users, draw)
        tables = {"listens": plays} | {name: _draw_reactions(plays, share, draw) for name, share in _SHARES.items()}
        tables["multi_event"] = _merge(tables)
        for name, table in tables.items():
            writers[name].write_table(table.select(schemas[name].names).cast(schemas[name]))
    for writer in writers.values():
        writer.close()
    return folder


def _write_tracks(root: Path, items: int, width: int, draw: np.random.Generator) -> None:
    item_N = np.arange(1, items + 1, dtype=np.uint32)
    genre_N = item_N % GENRES
    artist_N = genre_N + GENRES * draw.integers(0, max(1, items // (7 * GENRES)), items)
    album_N = genre_N + GENRES * draw.integers(0, max(1, items // (3 * GENRES)), items)
    for name, value_N in (("artist", artist_N), ("album", album_N)):
        columns = {f"{name}_id": pa.array(value_N, pa.uint32()), "item_id": item_N}
        pq.write_table(pa.table(columns), root / f"{name}_item_mapping.parquet")
    has_N = item_N % 5 != 0
    centers = draw.normal(size=(GENRES, width))
    vector_ND = centers[genre_N[has_N]] + draw.normal(size=(int(has_N.sum()), width))
    unit_ND = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
    vectors = {"embed": vector_ND, "normalized_embed": unit_ND}
    offsets = np.arange(len(vector_ND) + 1, dtype=np.int32) * width
    columns = {name: pa.ListArray.from_arrays(offsets, value_ND.ravel()) for name, value_ND in vectors.items()}
    pq.write_table(pa.table({"item_id": item_N[has_N], **columns}), root / "embeddings.parquet")


def _draw_listens(users: range, items: int, count: int, draw: np.random.Generator) -> pa.Table:
    user_N = np.sort(draw.choice(np.array(users), count)) if count else np.zeros(0, np.int64)
    genre_N = (user_N * 7 + draw.integers(0, 3, count) * 11) % GENRES
    rank_N = (items * draw.random(count) ** 3).astype(np.int64)
    own_N = np.minimum(rank_N // GENRES * GENRES + genre_N, items - 1)
    item_N = np.where(draw.random(count) < 0.7, own_N, rank_N) + 1
    time_N = draw.integers(0, LAST_TIMESTAMP // 5 + 1, count) * 5
    order_N = np.lexsort((time_N, user_N))
    played_N = np.where(draw.random(count) < 0.6, 100, draw.integers(0, 101, count))
    return pa.table(
        {
            "uid": user_N[order_N] * 10,
            "timestamp": time_N[order_N],
            "item_id": item_N[order_N],
            "is_organic": draw.integers(0, 2, count),
            "played_ratio_pct": played_N,
            "track_length_seconds": draw.integers(20, 80, count) * 5,
        }
    )


def _draw_reactions(plays: pa.Table, share: float, draw: np.random.Generator) -> pa.Table:
    return plays.filter(pa.array(draw.random(len(plays)) < share)).select([name for name, _ in _EVENT])


def _merge(tables: dict[str, pa.Table]) -> pa.Table:
    kinds = [
        table.append_column("event_type", pa.array([KINDS[name]] * len(table), pa.string()))
        for name, table in tables.items()
    ]
    merged = pa.concat_tables(kinds, promote_options="default")
    return merged.sort_by([("uid", "ascending"), ("timestamp", "ascending")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=934_057)
    parser.add_argument("--listens", type=int, default=46_467_212)
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    print(write_yambda(options.root, options.users, options.items, options.listens, width=options.width))
