"""Corrupt files with a seeded generator: the same state of the generator gives the same result."""

import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    *(0, -1, 7, 2**31, -(2**31), 2**62, 2**63, 2**64, 0.5, -0.0, 1e300, float("inf"), float("nan")),
    *("", " ", "-1", "9" * 5000, "\x00", "../..", "/dev/null", "\x1b[31m", "s3://", "file://x", "2024-99-99", "a\nb"),
    *(None, True, [], {}, [[]], [1, "x"], {"": 0}, {"name": None}),
]
"""JSON values that readers often mishandle."""
TOKENS = [
    *(b"", b"-1", b"1e999", b"nan", b"9" * 5000, b"\x00", b"\n", b"\r\n", b'"', b"'", b",", b"{", b"[" * 3000, b"null"),
    *(b"\xff\xfe", b"\xed\xa0\x80", "𝄞".encode(), b"1:99:99", b"!!int x", b"!!python/object:os.system", b"../.."),
]
"""What parsers of text often mishandle."""
END_BYTES = 8
"""The length of a Parquet footer, and the magic bytes after it."""


def corrupt_bytes(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Apply one to five mutations: truncate, delete, overwrite, double, or splice pieces."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        begin = draw.randint(0, len(content))
        end = min(len(content), begin + draw.choice((1, 4, 30, 1000)))
        replacements = (
            content[end:],
            draw.randbytes(end - begin) + content[end:],
            content[begin:end] + content[begin:],
            other[draw.randint(0, len(other)) :],
            b"",
        )
        content = content[:begin] + draw.choice(replacements)
    return content


def corrupt_parquet(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate Parquet: the footer, keeping its length field correct, or only the pages before it, or anything."""
    kind, start = draw.randrange(3), _footer_start(content)
    if kind == 0 or not 4 <= start < len(content):
        return corrupt_bytes(draw, content, other)
    if kind == 1:
        return corrupt_pages(draw, content, other)
    footer = corrupt_bytes(draw, content[start:-END_BYTES], other)
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def corrupt_pages(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate the pages of Parquet, but neither its footer nor its size."""
    start = _footer_start(content)
    pages = corrupt_bytes(draw, content[4:start], other)[: start - 4].ljust(start - 4, b"\0")
    return b"PAR1" + pages + content[start:]


def _footer_start(content: bytes) -> int:
    return len(content) - END_BYTES - int.from_bytes(content[-END_BYTES:-4], "little")


def corrupt_text(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate text: replace or insert a token, or mutate its bytes."""
    if draw.random() < 0.4:
        return corrupt_bytes(draw, content, other)
    begin = draw.randint(0, len(content))
    return content[:begin] + draw.choice(TOKENS) + content[begin + draw.choice((0, 0, 1, 5)) :]


def corrupt_tree(draw: random.Random, tree: Any) -> Any:
    """Return a copy of a JSON value in which one to three nodes are replaced or deleted."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        nodes = list(_nodes(tree))
        if not nodes:
            return any_value(draw)
        parent, key = draw.choice(nodes)
        if draw.random() < 0.25:
            del parent[key]
        else:
            parent[key] = any_value(draw)
    return tree


def any_value(draw: random.Random) -> Any:
    """Return a JSON value that readers may mishandle."""
    return json.loads(json.dumps(draw.choice(VALUES)))


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _nodes(tree[key])
