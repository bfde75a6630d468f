"""The sample that a fresh machine trains on: Last.fm HetRec 2011, and planted genres where it is not to be had.

Looks in ``$CROSSFADE_DATA/lastfm_hetrec2011``, then in ``../shared/data/lastfm_hetrec2011`` beside the repository, then
asks GroupLens. The licence of the data is non-commercial: it is fetched, never shipped.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from kvstore.errors import CrossfadeError, InputError
from trainer.data.manifest import DatasetManifest
from trainer.data.reporter import NullReporter, ProgressReporter
from trainer.prepare.features import FeatureFile
from trainer.prepare.pipeline import PrepareOptions, prepare
from trainer.prepare.synthetic import SyntheticSpec, synthetic_source, write_synthetic
from trainer.prepare.vocabulary_tables import NamesFile

URL = "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip"
SHA256 = "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"
BYTES_MAX = 64 << 20
TIMEOUT_SECONDS = 20.0
FOLDER = "lastfm_hetrec2011"
FILES = ("user_artists.dat", "artists.dat")
TAG_FILES = ("user_taggedartists.dat", "tags.dat")
"""What listeners have called artists: a feature, where these files are there too."""
TAG_LISTENERS_MIN = 10
"""Tags that fewer listeners use are left out: one that is a single listener's own would say who that is, and whoever
listens to an artist that nobody else does could be told from its tags."""

FALLBACK_SPEC = SyntheticSpec(queries=2_000, items=4_000, interactions=100_000, item="artist")
"""What is made where there are no data."""
_HOLD_OUT = "random:0.1"

_READ_BYTES = 1 << 16


def locate_lastfm(
    out_dir: Path,
    progress: ProgressReporter | None = None,
    log: Callable[[str], None] | None = None,
    url: str = URL,
    sha256: str = SHA256,
) -> Path | None:
    """The folder with ``user_artists.dat`` and ``artists.dat``, or None after ``say`` was told why in one line.

    A download is checked and unpacked into ``out_dir / ".cache"``, where the next call finds it. ``say`` writes to
    standard error unless given.
    """
    log = log or _log
    cache = out_dir / ".cache" / FOLDER
    data = os.environ.get("CROSSFADE_DATA")
    repository = Path(__file__).resolve().parents[2]
    places = [repository.parent / "shared" / "data" / FOLDER, cache]
    for place in [Path(data) / FOLDER, *places] if data else places:
        if all((place / name).is_file() for name in FILES):
            return place
    try:
        _unpack(_download(url, sha256, progress or NullReporter()), cache)
    except (CrossfadeError, OSError, HTTPException, ValueError, zipfile.BadZipFile) as error:
        log(
            f"Last.fm HetRec 2011 is neither in $CROSSFADE_DATA nor in {places[0].parent}, and {url} cannot be had "
            f"({error}); synthetic listening stands in for it"
        )
        return None
    return cache


def prepare_lastfm(
    folder: Path | None, out: Path, seed: int = 1, overwrite: bool = False, progress: ProgressReporter | None = None
) -> DatasetManifest:
    """Prepare the sample in ``folder``, or synthetic data of about its size where that is None, as ``out``.

    Each pair weighs 1: the plays are so unequal (1 to 352,698) that a few listeners' favourites would be all that
    counts. A tenth of the pairs is test, and a tenth of the others valid. The tags of an artist are those that any
    listener gave it, each once, of those that ``TAG_LISTENERS_MIN`` listeners use.

    Raises:
        InputError: a file in ``folder`` is damaged, or ``out`` exists and may not be replaced.
    """
    if folder is None:
        return write_synthetic(out, FALLBACK_SPEC, seed, overwrite, progress)
    names, features = {"artist": NamesFile(folder / FILES[1], "id", "name")}, []
    with tempfile.TemporaryDirectory(prefix="crossfade-sample-") as work:
        if all((folder / name).is_file() for name in TAG_FILES):
            common = Path(work) / "common_tags.parquet"
            _write_common_tags(folder / TAG_FILES[0], common)
            names["tag"] = NamesFile(folder / TAG_FILES[1], "tagID", "tagValue")
            features.append(FeatureFile("artist", common, "artistID", {"tag": "tagID"}))
        options = PrepareOptions(
            out=out,
            train=[folder / FILES[0]],
            query="customer",
            query_column="userID",
            item="artist",
            item_column="artistID",
            names=names,
            features=features,
            hold_out=_HOLD_OUT,
            seed=seed,
            overwrite=overwrite,
        )
        return prepare(options, progress)


def _write_common_tags(tagged: Path, target: Path) -> None:
    """Write the artists and tags of ``tagged`` to ``target``, without tags that few listeners use."""
    try:
        given = csv.read_csv(tagged, parse_options=csv.ParseOptions(delimiter="\t"))
        users = given.group_by("tagID").aggregate([("userID", "count_distinct")])
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{tagged}: is not the file that Last.fm HetRec 2011 has: {error}; delete it") from error
    common = users.filter(pc.greater_equal(users.column("userID_count_distinct"), TAG_LISTENERS_MIN)).column("tagID")
    kept = given.filter(pc.is_in(given.column("tagID"), value_set=common.combine_chunks()))
    pq.write_table(kept.select(["artistID", "tagID"]), target)


def is_lastfm_sample(manifest: DatasetManifest, seed: int) -> bool:
    """Whether ``prepare_lastfm`` made the data of ``manifest`` with ``seed``, of Last.fm or what stands in for it."""
    source = manifest.source
    if source == synthetic_source(FALLBACK_SPEC, seed):
        return True
    train = source.get("train")
    made = isinstance(train, list) and [Path(file).name for file in train] == [FILES[0]]
    return made and (source.get("hold_out"), source.get("seed")) == (_HOLD_OUT, seed)


def _log(line: str) -> None:
    print(line, file=sys.stderr)


def _download(url: str, sha256: str, progress: ProgressReporter) -> bytes:
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - the address is this program's
        length = answer.headers.get("Content-Length")
        progress.phase("download", int(length) if length else None, "B")
        while piece := answer.read(_READ_BYTES):
            content += piece
            if len(content) > BYTES_MAX:
                raise CrossfadeError(f"it is larger than {BYTES_MAX >> 20} MiB")
            progress.advance(len(piece))
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CrossfadeError(f"its checksum is {found}, expected {sha256}")
    return bytes(content)


def _unpack(content: bytes, cache: Path) -> None:
    """Only the files that are read, by their base names: whatever paths the archive has, it decides none here."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {PurePosixPath(info.filename).name: info for info in archive.infolist() if not info.is_dir()}
        cache.mkdir(parents=True, exist_ok=True)
        for name in (*TAG_FILES, *FILES):
            if name not in members:
                if name in TAG_FILES:
                    continue
                raise CrossfadeError(f"the archive has no {name}")
            if members[name].file_size > BYTES_MAX:
                raise CrossfadeError(f"{name} in it is larger than {BYTES_MAX >> 20} MiB")
            partial = cache / f".{name}.partial-{os.getpid()}"
            partial.write_bytes(archive.read(members[name]))
            partial.replace(cache / name)
