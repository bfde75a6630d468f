# ruff: noqa: S608  (what is put into SQL is quoted by `literal`, or is a number of this program)
"""The sample to try Crossfade on: Last.fm HetRec 2011, or synthetic listening if it is not available.

    folder = locate_lastfm(Path("data"))
    manifest = prepare_lastfm(folder, Path("data/lastfm"))

The files are looked for in ``$CROSSFADE_DATA/lastfm_hetrec2011``, then in ``../shared/data/lastfm_hetrec2011`` next to
the repository, then downloaded from GroupLens. The license of the data is non-commercial, so they are not included.

Cantador, Brusilovsky, Kuflik: 2nd Workshop on Information Heterogeneity and Fusion in Recommender Systems (2011).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PurePosixPath

import duckdb

from crossfade.base.errors import CrossfadeError, InputError
from crossfade.base.io.folder import Folder
from crossfade.base.io.output import staged_file
from crossfade.base.io.temporary_folder import temporary_folder
from crossfade.trainer.data.manifest import DatasetManifest
from crossfade.trainer.data.reporter import ProgressReporter
from crossfade.trainer.prepare.database import first_line, literal
from crossfade.trainer.prepare.option_values import FeatureFile, NamesFile
from crossfade.trainer.prepare.options import PrepareOptions, SyntheticSpec
from crossfade.trainer.prepare.pipeline import prepare
from crossfade.trainer.prepare.staging import check_free, read_complete
from crossfade.trainer.prepare.summary import is_synthetic
from crossfade.trainer.prepare.synthetic import synthetic_source, write_synthetic

_logger = logging.getLogger(__name__)

URL = "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip"
SHA256 = "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c"
MAX_BYTES = 64 << 20
TIMEOUT_SECONDS = 20.0
FOLDER = "lastfm_hetrec2011"
FILES = ("user_artists.dat", "artists.dat")
TAG_FILES = ("user_taggedartists.dat", "tags.dat")
"""The tags that listeners gave artists: a feature, if these files exist."""
MIN_TAG_LISTENERS = 10
"""Tags that fewer listeners use are left out, since rare tags could identify the listener who gave them."""

FALLBACK_SPEC = SyntheticSpec(queries=2_000, items=4_000, interactions=100_000, item="artist")
"""The synthetic dataset that replaces the sample if it is not available."""
_HOLD_OUT = "random:0.1"


def locate_lastfm(out_dir: Path, log: Callable[[str], None], url: str = URL, sha256: str = SHA256) -> Path | None:
    """Return the folder with ``user_artists.dat`` and ``artists.dat``, or None after logging one line with the reason.

    A download is verified and unpacked into ``out_dir / ".cache"``, where the next call finds it.
    """
    cache = out_dir / ".cache" / FOLDER
    data = os.environ.get("CROSSFADE_DATA")
    checkout = Path(__file__).resolve().parents[2]
    folders = [checkout.parent / "shared" / "data" / FOLDER, cache]
    for folder in [Path(data) / FOLDER, *folders] if data else folders:
        if all((folder / name).is_file() for name in FILES):
            return folder
    try:
        _unpack(_download(url, sha256), cache)
    except (CrossfadeError, OSError, HTTPException, ValueError, zipfile.BadZipFile) as error:
        log(
            f"Last.fm HetRec 2011 is neither in $CROSSFADE_DATA nor in {folders[0].parent}, and {url} cannot be "
            f"downloaded ({error}); using synthetic listening instead"
        )
        return None
    return cache


def prepare_sample(options: PrepareOptions, progress: ProgressReporter) -> DatasetManifest | None:
    """Prepare the sample as ``options`` state; None if it is there already, and may be skipped.

    Raises:
        InputError: as ``prepare_lastfm``.
    """
    out = Folder(options.out)
    if options.skip_existing:
        manifest = read_complete(out)
        if manifest is not None and is_lastfm_sample(manifest, options.seed):
            return None
    check_free(out, options.overwrite)
    folder = locate_lastfm(Path("data") if out.path is None else out.path.parent, _logger.info)
    return prepare_lastfm(folder, options.out, options.seed, options.overwrite, progress)


def prepare_lastfm(
    folder: Path | None,
    out: str | Path,
    seed: int = 1,
    overwrite: bool = False,
    progress: ProgressReporter | None = None,
) -> DatasetManifest:
    """Prepare the sample in ``folder``, or synthetic data of about its size if that is None, as ``out``.

    Every pair has weight 1: plays are so skewed (1 to 352,698) that a few listeners' favorites would dominate. A tenth
    of the pairs becomes test, and a tenth of the others valid. The tags of an artist are those that any listener gave
    it, each once, if at least ``MIN_TAG_LISTENERS`` listeners use them.

    Raises:
        InputError: a file in ``folder`` is corrupt, or ``out`` exists and may not be replaced.
    """
    if folder is None:
        return write_synthetic(out, FALLBACK_SPEC, seed, overwrite, progress)
    names, features = {"artist": NamesFile(folder / FILES[1], "id", "name")}, []
    with temporary_folder("sample") as work:
        if all((folder / name).is_file() for name in TAG_FILES):
            common = work / "common_tags.parquet"
            _write_common_tags(folder / TAG_FILES[0], common)
            names["tag"] = NamesFile(folder / TAG_FILES[1], "tagID", "tagValue")
            features.append(FeatureFile("artist", common, "artistID", {"tag": "tagID"}))
        options = PrepareOptions.of(
            out=out,
            train=[folder / FILES[0]],
            query="customer=userID",
            item="artist=artistID",
            names=names,
            features=features,
            hold_out=_HOLD_OUT,
            seed=seed,
            overwrite=overwrite,
        )
        return prepare(options, progress)


def _write_common_tags(tagged: Path, target: Path) -> None:
    """Write the artists and tags of ``tagged`` to ``target``, without rare tags."""
    with duckdb.connect() as connection:
        try:
            connection.execute("CREATE TABLE given AS FROM read_csv(?, delim = '\t', header = true)", [str(tagged)])
            connection.execute(
                "COPY (SELECT artistID, tagID FROM given WHERE tagID IN (SELECT tagID FROM given GROUP BY tagID "
                f"HAVING count(DISTINCT userID) >= {MIN_TAG_LISTENERS})) TO {literal(str(target))}"
            )
        except duckdb.Error as error:
            found = first_line(error)
            raise InputError(f"{tagged}: is not a file of Last.fm HetRec 2011: {found}; delete it") from error


def is_lastfm_sample(manifest: DatasetManifest, seed: int) -> bool:
    """Return whether ``prepare_lastfm`` has prepared the dataset of ``manifest`` with ``seed``, also if synthetic."""
    source = manifest.source
    if is_synthetic(manifest):
        return source == synthetic_source(FALLBACK_SPEC, seed)
    train = source.get("train")
    is_lastfm = isinstance(train, list) and [Path(file).name for file in train] == [FILES[0]]
    return is_lastfm and (source.get("hold_out"), source.get("seed")) == (_HOLD_OUT, seed)


def _download(url: str, sha256: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310  (the URL is a constant)
        content: bytes = response.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CrossfadeError(f"the download is larger than {MAX_BYTES >> 20} MiB")
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CrossfadeError(f"the checksum of the download is {found}; expected {sha256}")
    return content


def _unpack(content: bytes, cache: Path) -> None:
    """Unpack the files that are needed by their base names, so that paths in the archive cannot lead elsewhere."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {PurePosixPath(info.filename).name: info for info in archive.infolist() if not info.is_dir()}
        cache.mkdir(parents=True, exist_ok=True)
        for name in (*TAG_FILES, *FILES):
            if name not in members:
                if name in TAG_FILES:
                    continue
                raise CrossfadeError(f"the archive has no {name}")
            if members[name].file_size > MAX_BYTES:
                raise CrossfadeError(f"{name} in the archive is larger than {MAX_BYTES >> 20} MiB")
            with staged_file(cache / name) as partial:
                partial.write_bytes(archive.read(members[name]))
