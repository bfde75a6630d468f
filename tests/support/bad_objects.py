"""Objects on S3 that ``crossfade prepare`` must reject, and what its message names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from preparing import random_events, write_parquet

from crossfade.base.io.folder import Folder

Case = Callable[[Folder, Path], dict[str, Any]]


def upload(workspace: Folder, name: str, path: Path) -> str:
    workspace.write(name, path.read_bytes())
    return f"{workspace.uri}/{name}"


def truncated_among_valid(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    good = write_parquet(tmp_path / "good.parquet", **random_events(3000))
    for name in ("a.parquet", "c.parquet"):
        upload(workspace, f"in/{name}", good)
    workspace.write("in/b.parquet", good.read_bytes()[:5000])
    return {"train": [f"{workspace.uri}/in/*.parquet"]}


def corrupt_among_valid(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    good = write_parquet(tmp_path / "good.parquet", **random_events(3000))
    upload(workspace, "in/a.parquet", good)
    content = bytearray(good.read_bytes())
    content[4:3000] = bytes(2996)
    workspace.write("in/b.parquet", bytes(content))
    return {"train": [f"{workspace.uri}/in/*.parquet"]}


def other_schema(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    upload(workspace, "in/a.parquet", write_parquet(tmp_path / "a.parquet", customer=["x"], item=[1]))
    upload(workspace, "in/b.parquet", write_parquet(tmp_path / "b.parquet", customer=[1], item=[1]))
    return {"train": [f"{workspace.uri}/in/*.parquet"]}


def null_id(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    return {
        "train": [
            upload(workspace, "e.parquet", write_parquet(tmp_path / "e.parquet", customer=[1, None], item=[1, 1]))
        ]
    }


def bad_line(workspace: Folder, _: Path) -> dict[str, Any]:
    workspace.write("e.csv", b"customer,item\n1,1\n2,-5\n")
    return {"train": [f"{workspace.uri}/e.csv"]}


def only_empty_files(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    none = pa.array([], pa.int64())
    return {"train": [upload(workspace, "e.parquet", write_parquet(tmp_path / "e.parquet", customer=none, item=none))]}


def output_above_input(workspace: Folder, tmp_path: Path) -> dict[str, Any]:
    good = write_parquet(tmp_path / "good.parquet", **random_events(10))
    return {"train": [upload(workspace, "out/e.parquet", good)], "overwrite": True}


REJECTED: dict[str, tuple[Case, list[str]]] = {
    "truncated Parquet": (truncated_among_valid, ["/in/b.parquet: is not a readable Parquet file"]),
    "corrupt Parquet": (corrupt_among_valid, ["/in/b.parquet: cannot be read as Parquet", "corrupt"]),
    "two schemas": (other_schema, ["/in/b.parquet", "integers", "/in/a.parquet", "strings", "id_type string"]),
    "null id": (null_id, ["/e.parquet, row 2: the query id of column 'customer' is missing"]),
    "negative id": (bad_line, ["/e.csv, line 3", "'-5'", "negative"]),
    "no events": (only_empty_files, ["no interaction"]),
    "missing key": (
        lambda workspace, _: {"train": [f"{workspace.uri}/no.parquet"]},
        ["train ", "/no.parquet: no such object"],
    ),
    "no match": (
        lambda workspace, _: {"train": [f"{workspace.uri}/*.parquet"]},
        ["train ", "/*.parquet: matches no object"],
    ),
    "folder": (lambda workspace, _: {"train": [workspace.uri]}, ["is a folder", "/*.parquet"]),
    "input file inside --out": (output_above_input, ["/out/e.parquet: is inside out"]),
}
