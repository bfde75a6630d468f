"""The Last.fm sample: where it is looked for, its download, its fallback, and ``--skip-existing``."""

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import LASTFM
from preparing import (
    entries,
    interactions,
    prepare_files,
    vocabulary,
    write_text,
)

from crossfade.cli.main import main
from crossfade.trainer.prepare import lastfm

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("nested/user_artists.dat", "userID\tartistID\tweight\n1\t7\t10\n1\t8\t5\n2\t7\t1\n2\t9\t1\n")
        file.writestr("../artists.dat", 'id\tname\turl\n7\t"Seven"\tx\n8\tEight\ty\n9\tNine\tz\n')
        file.writestr("tags.dat", "tagID\ttagValue\n1\tmetal\n2\tgoth\n")
        file.writestr("user_taggedartists.dat", "userID\tartistID\ttagID\tday\n1\t7\t1\t3\n2\t7\t2\t4\n2\t7\t1\t5\n")
        file.writestr("user_friends.dat", "not wanted")
    return content.getvalue()


@pytest.fixture
def served(archive: bytes) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/sample.zip"
        server.shutdown()
        thread.join()


@pytest.fixture
def no_local_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSFADE_DATA", raising=False)
    monkeypatch.setattr(lastfm, "__file__", str(tmp_path / "repository/trainer/prepare/lastfm.py"))


@pytest.mark.usefixtures("no_local_sample")
def test_sample_is_downloaded_verified_and_cached(tmp_path: Path, served: str, archive: bytes) -> None:
    logged: list[str] = []
    checksum = hashlib.sha256(archive).hexdigest()
    folder = lastfm.locate_lastfm(tmp_path / "data", log=logged.append, url=served, sha256=checksum)
    assert folder is not None
    assert logged == []
    files = ["artists.dat", "tags.dat", "user_artists.dat", "user_taggedartists.dat"]
    assert sorted(path.name for path in folder.iterdir()) == files
    assert entries(tmp_path) == [
        "data",
        *(
            f"data/.cache{rest}"
            for rest in ("", "/lastfm_hetrec2011", *(f"/lastfm_hetrec2011/{name}" for name in files))
        ),
    ]
    # The second call uses the cache.
    assert lastfm.locate_lastfm(tmp_path / "data", log=logged.append, url="http://127.0.0.1:1/") == folder


@pytest.mark.usefixtures("no_local_sample")
def test_download_that_is_too_large_or_has_another_checksum_is_rejected(
    tmp_path: Path, served: str, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    assert lastfm.locate_lastfm(tmp_path, log=logged.append, url=served) is None
    assert "checksum" in logged[0]
    assert "synthetic" in logged[0]
    monkeypatch.setattr(lastfm, "MAX_BYTES", 100)
    checksum = hashlib.sha256(archive).hexdigest()
    assert lastfm.locate_lastfm(tmp_path, log=logged.append, url=served, sha256=checksum) is None
    assert "larger" in logged[1]
    assert entries(tmp_path) == []


@pytest.mark.usefixtures("no_local_sample")
def test_missing_sample_falls_back_to_synthetic_artists(tmp_path: Path) -> None:
    logged: list[str] = []
    assert lastfm.locate_lastfm(tmp_path, log=logged.append, url="http://127.0.0.1:1/x.zip") is None
    assert len(logged) == 1
    assert "\n" not in logged[0]
    manifest = lastfm.prepare_lastfm(None, tmp_path / "out")
    assert (manifest.query, manifest.item) == ("customer", "artist")
    assert (manifest.entities["customer"].rows, manifest.entities["artist"].rows) == (2000, 4000)
    assert sum(split.rows for split in manifest.splits.values()) == 100_000


@pytest.mark.parametrize(
    "command",
    [["prepare", "--sample=lastfm"], ["synthesize", "--queries=50", "--items=40", "--interactions=1500"]],
    ids=["sample", "synthetic"],
)
@pytest.mark.usefixtures("no_local_sample")
def test_skip_existing_keeps_complete_dataset_of_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setattr(lastfm, "_download", lambda *_: pytest.fail("asked for data that are here"))
    monkeypatch.setenv("CROSSFADE_DATA", str(tmp_path))
    (tmp_path / lastfm.FOLDER).mkdir()
    plays = [f"{user}\t{artist}\t1" for user in range(9) for artist in range(9)]
    write_text(tmp_path / lastfm.FOLDER / "user_artists.dat", "\n".join(["userID\tartistID\tweight", *plays]))
    write_text(tmp_path / lastfm.FOLDER / "artists.dat", "\n".join(["id\tname", *(f"{n}\tA{n}" for n in range(9))]))
    words = [*command, "--out", str(tmp_path / "out"), "--skip-existing"]
    assert main(words) == 0
    before = (tmp_path / "out/manifest.json").stat()
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("out: exists already; nothing to do\n")
    after = (tmp_path / "out/manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert main([*words, "--seed", "3"]) == 2
    assert "out: already exists" in capsys.readouterr().err
    with next((tmp_path / "out/train").iterdir()).open("ab") as file:
        file.write(b"more")
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 0
    assert main(words) == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason=LASTFM)
@pytest.mark.slow
def test_real_lastfm_is_read_without_loss(tmp_path: Path) -> None:
    folder = SHARED / "lastfm_hetrec2011"
    manifest = lastfm.prepare_lastfm(folder, tmp_path / "out")
    pairs = [line.split("\t")[:2] for line in (folder / "user_artists.dat").read_text().splitlines()[1:]]
    prepared_pairs = [row[:2] for split in manifest.splits for row in interactions(tmp_path / "out", split)]
    assert Counter(prepared_pairs) == Counter((int(user), int(artist)) for user, artist in pairs)
    lines = (folder / "artists.dat").read_bytes().decode("utf-8").split("\n")[1:]
    names = {int(fields[0]): fields[1] for fields in (line.split("\t") for line in lines if line)}
    assert {row["id"]: row["name"] for row in vocabulary(tmp_path / "out", "artist")} == names
    tagged = [line.split("\t")[:3] for line in (folder / "user_taggedartists.dat").read_text().splitlines()[1:]]
    users = Counter(tag for _, tag in {(user, int(tag)) for user, _, tag in tagged})
    common = {(int(artist), int(tag)) for _, artist, tag in tagged if users[int(tag)] >= 10 and int(artist) in names}
    assert manifest.features["artist"]["tag"].pairs == len(common)
    assert {row["id"] for row in vocabulary(tmp_path / "out", "tag")} == {tag for _, tag in common}
    split = SHARED / "lastfm_lightgcnpp"
    published = prepare_files(
        tmp_path / "split",
        split / "train.txt",
        valid=[split / "valid.txt"],
        test=[split / "test.txt"],
        format="lightgcn",
    )
    assert (published.entities["customer"].rows, published.entities["item"].rows) == (1885, 17_388)
    assert [published.splits[name].rows for name in ("train", "valid", "test")] == [64_315, 9_143, 18_321]
    assert json.loads((tmp_path / "split/manifest.json").read_text())["version"] == 4
