"""The folder of an export: the list of its files, and the check that nothing else is replaced.

check_free(out, overwrite=True)
write_listing(staging, "numpy")

OUT/README.md           the model card
OUT/export.json         format and files, unless the format is Parquet
OUT/embeddings.json     files and checksums (listing.py), if it is
OUT/ENTITY/...          the files of the format
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from crossfade.base.io.regular_files import read_regular
from crossfade.base.io.replacing import check_replaceable
from crossfade.base.json_text import parse_json
from crossfade.trainer.embeddings.listing import LISTING_FILE as EMBEDDINGS_LISTING
from crossfade.trainer.embeddings.listing import is_listing
from crossfade.trainer.embeddings.model_card import CARD_FILE, is_model_card

LISTING_FILE = "export.json"
_KIND = "crossfade-export"
_EMBEDDINGS_FILE = re.compile(r"[^/]+/rows-\d{12,}\.parquet")


def check_free(out: Path, overwrite: bool) -> None:
    """Reject an existing ``out``, unless ``overwrite`` is given and it holds nothing but embeddings or an export.

    Raises:
        InputError: it may not be replaced.
    """
    check_replaceable(
        out,
        overwrite,
        exists=f"{out}: already exists; choose another --out, or replace embeddings with --overwrite",
        no_folder=f"{out}: is not a folder of embeddings, so --overwrite does not replace it; choose another --out",
        find_foreign=lambda: _find_foreign(out),
    )


def _find_foreign(out: Path) -> str | None:
    """Return a message on a file in ``out`` that is not one of embeddings or an export; None if all are."""
    listed = _listed_files(out)
    for path in _files(out):
        relative = path.relative_to(out).as_posix()
        is_card = relative == CARD_FILE and is_model_card(path)
        is_card |= relative == EMBEDDINGS_LISTING and is_listing(read_regular(path))
        if not (is_card or relative in listed or _EMBEDDINGS_FILE.fullmatch(relative)):
            return f"{path}: --overwrite would delete this file, which is not one of embeddings; move it"
    return None


def write_listing(folder: Path, to: str) -> None:
    """Write the list of the files in ``folder``, which are in the format ``to``."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
    # An edited card is recognized by its content, or kept.
    sizes.pop(CARD_FILE, None)
    listing = {"format": _KIND, "version": 1, "to": to, "files": sizes}
    (folder / LISTING_FILE).write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


def _files(folder: Path) -> Iterator[Path]:
    """Yield everything below ``folder`` but folders, sorted; a link to a folder is not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _listed_files(out: Path) -> set[str]:
    """Return the files of the export in ``out`` with its list; none if there is no list of an export."""
    try:
        listing = parse_json(read_regular(out / LISTING_FILE))
    except (OSError, ValueError):
        return set()
    files = listing.get("files") if isinstance(listing, dict) and listing.get("format") == _KIND else None
    return {LISTING_FILE, *files} if isinstance(files, dict) else set()
