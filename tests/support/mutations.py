"""Corrupt files with a seeded generator: the same state of the generator gives the same result."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

NUMBERS = [
    0,
    1,
    -1,
    7,
    127,
    128,
    2**31 - 1,
    2**31,
    2**32 - 1,
    -(2**31),
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
]
FLOATS = [0.5, -0.0, 1e300, -1e-300, float("inf"), float("nan")]
WORDS = [
    "",
    " ",
    "-1",
    "1e999",
    "nan",
    "9" * 40,
    "9" * 5000,
    "0x",
    "\x00",
    "\n",
    '"',
    "'",
    "../..",
    "/dev/null",
    "é",
    "𝄞",
]
WORDS += [
    "null",
    "true",
    "2024-99-99",
    "1:99:99",
    "!!int x",
    "!!python/object:os.system",
    "a\nb",
    "\x1b[31m",
    "s3://",
    "file://x",
]
TOKENS = [word.encode() for word in WORDS] + [
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r",
    b"\r\n",
    b"\t",
    b",",
    b"{",
    b"[" * 3000,
]
END_BYTES = 8


def corrupt_bytes(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Apply one to five mutations: flip bits; truncate, delete, insert, swap, overwrite or splice pieces."""
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        content = draw.choice(_MUTATIONS)(draw, content, other)
    return content


def corrupt_parquet(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate Parquet: mostly the footer, keeping its length field correct, or only the pages before it."""
    if len(content) < 4 + END_BYTES:
        return corrupt_bytes(draw, content, other)
    length = struct.unpack("<I", content[-END_BYTES:-4])[0]
    pages, footer = content[: -END_BYTES - length], content[-END_BYTES - length : -END_BYTES]
    kind = draw.randrange(8)
    if kind < 4:
        changed = corrupt_bytes(draw, footer, other[-END_BYTES - length : -END_BYTES])
        return pages + changed + struct.pack("<I", len(changed)) + b"PAR1"
    if kind < 6:
        return corrupt_pages(draw, content, other)
    if kind == 6:
        wrong = draw.choice([*(number % 2**32 for number in NUMBERS), draw.getrandbits(32), draw.randrange(2 * length)])
        return content[:-END_BYTES] + struct.pack("<I", wrong) + b"PAR1"
    return corrupt_bytes(draw, content, other)


def corrupt_pages(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate the pages of Parquet, but neither its footer nor its size."""
    end = len(content) - END_BYTES - struct.unpack("<I", content[-END_BYTES:-4])[0]
    return b"PAR1" + _same_size(draw, content[4:end], other) + content[end:]


def corrupt_text(draw: random.Random, content: bytes, other: bytes) -> bytes:
    """Mutate text: also replace or insert tokens that parsers often mishandle."""
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.6:
            begin = draw.randint(0, len(content))
            end = min(len(content), begin + draw.choice((0, 0, 1, 5)))
            content = content[:begin] + draw.choice(TOKENS) + content[end:]
        else:
            content = corrupt_bytes(draw, content, other)
    return content


def corrupt_tree(draw: random.Random, tree: Any) -> Any:
    """Return a copy of a JSON value in which one to three nodes are replaced, deleted or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        nodes = list(_nodes(tree))
        if not nodes:
            return any_value(draw)
        parent, key = draw.choice(nodes)
        action = draw.randrange(6)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, dict):
            parent[draw.choice(WORDS)] = parent.pop(key)
        elif action == 2:
            parent[key] = draw.choice(nodes)[0] if draw.random() < 0.2 else any_value(draw)
            tree = json.loads(_dump(tree))
        else:
            parent[key] = _near(draw, parent[key])
    return tree


def any_value(draw: random.Random, depth: int = 3) -> Any:
    """Return a random JSON value."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(FLOATS),
        lambda: draw.choice(WORDS),
        lambda: draw.choice((None, True, False)),
        lambda: [any_value(draw, depth - 1) for _ in range(draw.randrange(4))],
        lambda: {draw.choice(WORDS): any_value(draw, depth - 1) for _ in range(draw.randrange(4))},
    ]
    return draw.choice(kinds if depth else kinds[:4])()


def _near(draw: random.Random, value: Any) -> Any:
    """Return another value, often of the same type."""
    if isinstance(value, bool) or draw.random() < 0.2:
        return any_value(draw)
    if isinstance(value, int):
        return draw.choice([value + 1, value - 1, -value, 2 * value, *NUMBERS])
    if isinstance(value, float):
        return draw.choice([-value, *FLOATS, *NUMBERS])
    if isinstance(value, str):
        return draw.choice([value + " ", value.upper(), value[:-1], *WORDS])
    if isinstance(value, list):
        return draw.choice([value[:-1], value + value, value[::-1], [], [value]])
    return any_value(draw)


def _dump(tree: Any) -> str:
    try:
        return json.dumps(tree)
    except ValueError:  # a reference cycle
        return "{}"


def _nodes(tree: Any) -> Any:
    if isinstance(tree, (dict, list)):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _nodes(tree[key])


def _flip(draw: random.Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8)) if content else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _overwrite(draw: random.Random, content: bytes, _: bytes) -> bytes:
    width = draw.choice((1, 4, 8))
    start = draw.randint(0, max(0, len(content) - width))
    value = draw.choice(NUMBERS) % 256**width
    return content[:start] + value.to_bytes(width, "little") + content[start + width :]


def _random_range(draw: random.Random, content: bytes) -> tuple[int, int]:
    begin = draw.randint(0, len(content))
    return begin, min(len(content), begin + draw.choice((1, 4, 30, 1000)))


def _truncate(draw: random.Random, content: bytes, _: bytes) -> bytes:
    return content[: draw.randint(0, len(content))]


def _delete(draw: random.Random, content: bytes, _: bytes) -> bytes:
    begin, end = _random_range(draw, content)
    return content[:begin] + content[end:]


def _insert(draw: random.Random, content: bytes, _: bytes) -> bytes:
    start, size = draw.randint(0, len(content)), draw.choice((1, 4, 100, 5000))
    begin, end = _random_range(draw, content)
    inserted = draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size, content[begin:end]))
    return content[:start] + inserted + content[start:]


def _swap(draw: random.Random, content: bytes, _: bytes) -> bytes:
    a, b, c, d = sorted(draw.randint(0, len(content)) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _splice(draw: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: draw.randint(0, len(content))] + other[draw.randint(0, len(other)) :]


_MUTATIONS = (_flip, _flip, _overwrite, _overwrite, _truncate, _delete, _insert, _swap, _splice)


def _same_size(draw: random.Random, content: bytes, other: bytes) -> bytes:
    return corrupt_bytes(draw, content, other)[: len(content)].ljust(len(content), b"\0")
