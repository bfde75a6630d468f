"""Exports to a real PostgreSQL with pgvector, by load.sh and by --push: values, search, replacement, and rejections."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psycopg
import pytest
from builders import ITEM, QUERY
from command_here import crossfade_here
from error_table import documented
from object_store import free_ports
from postgres_server import PASSWORD, PostgresServer, binaries, running_postgres
from running_command import RunningCommand, started, succeeded
from waiting import wait_until
from written_runs import (
    CUSTOMER_IDS,
    TRACK_IDS,
    TRACK_NAMES,
    TRAINED,
    UNTRAINED,
    WrittenRun,
    save_checkpoint,
    write_run,
    write_vectors,
)

from crossfade.base.arrays import FloatArray
from crossfade.base.io.folder import Folder
from crossfade.trainer.data.manifest import data_fingerprint, read_manifest
from crossfade.trainer.formats import exported_model, pgvector

pytestmark = pytest.mark.slow

OPERATORS = {"cosine": "vector_cosine_ops", "dot": "vector_ip_ops", "euclidean": "vector_l2_ops"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator["psycopg.Connection[Any]"]:
    """Connect to an empty database, which commands connect to by their environment."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    with server.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        yield connection


@pytest.fixture
def run(tmp_path: Path) -> WrittenRun:
    return write_run(tmp_path)


def push(run: WrittenRun, *options: object) -> None:
    succeeded(crossfade_here("export", run.path, "--to", "pgvector", "--push", *options))


def load(run: WrittenRun, *options: object) -> "subprocess.CompletedProcess[str]":
    """Export files, and load them with psql."""
    out = run.path.parent / "pgvector-out"
    succeeded(crossfade_here("export", run.path, "--to", "pgvector", "--out", out, "--overwrite", *options))
    variables = {**os.environ, "PATH": f"{binaries()}:{os.environ['PATH']}"}
    return subprocess.run(
        [out / "load.sh"], env=variables, cwd="/", capture_output=True, text=True, timeout=240, check=False
    )


def load_successfully(run: WrittenRun, *options: object) -> None:
    result = load(run, *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def vectors_of(connection: "psycopg.Connection[Any]", table: str) -> tuple[list[Any], FloatArray]:
    """Return the IDs of ``table``, sorted, and their vectors."""
    rows = connection.execute(f'SELECT id, vector::float4[] FROM {table} ORDER BY id::text COLLATE "C"')
    ids, vectors = zip(*rows.fetchall(), strict=True)
    return list(ids), np.array(vectors, np.float32)


def relations(connection: "psycopg.Connection[Any]") -> list[str]:
    """Return the names of all tables and indexes."""
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i') "
        "ORDER BY relname"
    )
    return [name for (name,) in rows]


def assert_holds(connection: "psycopg.Connection[Any]", run: WrittenRun, prefix: str = "planted") -> None:
    """Assert that the tables hold the vectors and names of ``run``."""
    for entity in (QUERY, ITEM):
        expected = run.trained_ids(entity)
        order = sorted(range(len(expected)), key=lambda place: str(expected[place]).encode())
        ids, vectors_ND = vectors_of(connection, f"{prefix}_{entity}")
        assert ids == [expected[place] for place in order]
        np.testing.assert_array_equal(vectors_ND, run.trained_vectors(entity)[order])
    names = connection.execute(f"SELECT name FROM {prefix}_track ORDER BY id").fetchall()
    assert [name for (name,) in names] == [TRACK_NAMES[row] for row in TRAINED]


ALL_RELATIONS = [f"planted_{entity}{suffix}" for entity in (QUERY, ITEM) for suffix in ("", "_pkey", "_vector_idx")]


@pytest.mark.parametrize(("way", "score"), [(push, "cosine"), (load_successfully, "dot"), (push, "euclidean")])
def test_tables_hold_the_vectors_and_search_by_the_score(
    database: "psycopg.Connection[Any]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any, score: str
) -> None:
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    run = write_run(tmp_path, score=score)
    way(run)
    assert_holds(database, run)
    assert relations(database) == ALL_RELATIONS
    definition = database.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'planted_track_vector_idx'")
    assert f"USING hnsw (vector {OPERATORS[score]})" in str(definition.fetchone())
    # The example of the model card.
    succeeded(crossfade_here("export", run.path, "--to", "pgvector", "--out", tmp_path / "card"))
    [query] = re.findall(r"```sql\n(.*?)```", (tmp_path / "card" / "README.md").read_text("utf-8"), re.DOTALL)
    found = [row_id for row_id, _, _ in database.execute(query)]
    query_D, vectors_ND = run.vectors[QUERY][0].astype(float), run.trained_vectors(ITEM).astype(float)
    score_N = {
        "cosine": vectors_ND @ query_D / np.linalg.norm(vectors_ND, axis=1),
        "dot": vectors_ND @ query_D,
        "euclidean": -np.linalg.norm(vectors_ND - query_D, axis=1),
    }[score]
    assert found == [run.trained_ids(ITEM)[place] for place in np.argsort(-score_N)]


@pytest.mark.parametrize("way", [push, load_successfully])
def test_changes_since_an_earlier_model_give_the_tables_of_the_later_one(
    database: "psycopg.Connection[Any]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    """Track 5 is trained since, track 6 no more; the vectors of a customer and a track are others."""
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)
    before, later = write_run(tmp_path / "before"), write_run(tmp_path / "later", untrained=[3, 6])
    manifest = read_manifest(Folder(later.data))
    lineage = [data_fingerprint(Folder(before.data))]
    manifest.model_copy(update={"lineage": lineage}).write(Folder(later.data))
    later.vectors[QUERY][2] += 1
    later.vectors[ITEM][0] -= 1
    shutil.rmtree(later.path / "embeddings")
    write_vectors(later.path / "embeddings", later.data, later.vectors)
    way(before)
    writers = "SELECT id, xmin::text FROM planted_customer UNION ALL SELECT id::text, xmin::text FROM planted_track"
    written = dict(database.execute(writers).fetchall())
    way(later, "--since", before.path)
    ids = {str(TRACK_IDS[row]) for row in range(10)}
    now = dict(database.execute(writers).fetchall())
    assert {id for id in now if now[id] != written.get(id)} == {CUSTOMER_IDS[2], str(TRACK_IDS[0]), str(TRACK_IDS[5])}
    assert ids - now.keys() == {str(TRACK_IDS[3]), str(TRACK_IDS[6])}
    push(later, "--name", "complete")
    for entity in (QUERY, ITEM):
        columns = "*" if entity == ITEM else "id, vector"
        tables = [f"SELECT {columns} FROM {prefix}_{entity}" for prefix in ("planted", "complete")]
        for some, others in (tables, tables[::-1]):
            assert database.execute(f"({some}) EXCEPT ({others})").fetchall() == []
    assert set(ALL_RELATIONS) < set(relations(database))
    assert not [name for name in relations(database) if "_new" in name]
    options = ("--to", "pgvector", "--push", "--since", before.path)
    rejected("--since of what a table does not hold", "export", later.path, *options)
    other = write_run(tmp_path / "other", untrained=[3])
    rejected("--since of another dataset", "export", other.path, *options)
    rejected("--since with another format", "export", later.path, "--to", "numpy", "--out", "x", "--since", "1")


@pytest.mark.parametrize("way", [push, load_successfully])
def test_later_export_replaces_tables_and_keeps_privileges(
    database: "psycopg.Connection[Any]", run: WrittenRun, tmp_path: Path, way: Any
) -> None:
    way(run)
    database.execute("DROP ROLE IF EXISTS reader")
    database.execute("CREATE ROLE reader")
    database.execute("GRANT SELECT ON planted_track TO reader")
    database.execute("GRANT SELECT ON planted_customer TO PUBLIC")
    later = write_run(tmp_path / "later", seed=5)
    way(later)
    assert_holds(database, later)
    assert relations(database) == ALL_RELATIONS
    privileges = database.execute(
        "SELECT has_table_privilege('reader', 'planted_track', 'SELECT'), "
        "has_table_privilege('reader', 'planted_track', 'UPDATE'), "
        "has_table_privilege('reader', 'planted_customer', 'SELECT')"
    )
    assert privileges.fetchone() == (True, False, True)
    database.execute("DROP OWNED BY reader")
    database.execute("DROP ROLE reader")
    comment = database.execute("SELECT obj_description('planted_track'::regclass)").fetchone()
    assert re.match(r"crossfade export: embeddings of job planted, score cosine, dataset fingerprint ", str(comment[0]))  # type: ignore[index]


def test_readers_find_all_previous_rows_or_all_new_ones(
    database: "psycopg.Connection[Any]", server: PostgresServer, run: WrittenRun, tmp_path: Path
) -> None:
    push(run)
    seen: list[bytes] = []
    runs = [run, *(write_run(tmp_path / str(number), seed=10 * number + 5) for number in range(3))]

    def read() -> None:
        with server.connect() as connection:
            while not done:
                seen.append(vectors_of(connection, "planted_track")[1].tobytes())

    done: list[bool] = []
    reader = Thread(target=read)
    reader.start()
    try:
        for later in runs[1:]:
            push(later)
    finally:
        done.append(True)
        reader.join()
    assert seen
    assert set(seen) <= {version.trained_vectors(ITEM).tobytes() for version in runs}


def test_failed_push_changes_nothing(database: "psycopg.Connection[Any]", run: WrittenRun) -> None:
    push(run)
    save_checkpoint(run, 7)
    step = run.path / "checkpoints" / "step-000000007"
    [file] = (step / ITEM).glob("weights.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    result = crossfade_here("export", step, "--to", "pgvector", "--push")
    assert result.returncode == 2
    assert f"{file}: its CRC-32 does not match its content" in result.stderr
    assert_holds(database, run)
    assert relations(database) == ALL_RELATIONS


def rejected(cause: str, *arguments: object) -> str:
    result = crossfade_here(*arguments)
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert "secret" not in result.stderr
    return documented(cause, line.removeprefix("crossfade: error: "), result.returncode)


def test_table_of_another_origin_is_kept(database: "psycopg.Connection[Any]", run: WrittenRun) -> None:
    database.execute("CREATE TABLE planted_track (note text)")
    rejected("--push over a table that no export wrote", "export", run.path, "--to", "pgvector", "--push")
    result = load(run)
    assert result.returncode != 0
    assert "the table planted_track is not one that crossfade export wrote" in result.stderr
    assert relations(database) == ["planted_track"]
    assert database.execute("SELECT * FROM planted_track").fetchall() == []


def test_table_that_a_view_uses_is_kept(database: "psycopg.Connection[Any]", run: WrittenRun) -> None:
    push(run)
    database.execute("CREATE VIEW popular AS SELECT id FROM planted_track")
    result = crossfade_here("export", run.path, "--to", "pgvector", "--push")
    assert result.returncode == 2
    assert "cannot drop table planted_track because other objects depend on it; the previous tables" in result.stderr
    assert_holds(database, run)


def test_name_and_entities_are_chosen(database: "psycopg.Connection[Any]", run: WrittenRun) -> None:
    result = crossfade_here("export", run.path, "--to", "pgvector", "--push", "--name", "music", "--entity", ITEM)
    assert re.fullmatch(
        rf"track +8 x 4 +127\.0\.0\.1:\d+/postgres/music_track, {len(UNTRAINED)} untrained\n", succeeded(result).stdout
    )
    assert relations(database) == ["music_track", "music_track_pkey", "music_track_vector_idx"]


def test_wide_vectors_are_not_indexed(database: "psycopg.Connection[Any]", tmp_path: Path) -> None:
    run = write_run(tmp_path, dim=pgvector.MAX_INDEXED_COLUMNS + 1)
    for way in (push, load_successfully):
        way(run)
        assert_holds(database, run)
        assert relations(database) == [name for name in ALL_RELATIONS if not name.endswith("_vector_idx")]


def test_uri_is_used_without_a_password_on_the_command_line(
    database: "psycopg.Connection[Any]", server: PostgresServer, run: WrittenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name)
    push(run, server.uri)
    assert_holds(database, run)
    command = ("export", run.path, "--to", "pgvector", "--push")
    rejected("--push with a password in the URI", *command, server.uri.replace("@", f":{PASSWORD}@"))
    rejected("--push with a password in the URI", *command, f"{server.uri}?password={PASSWORD}")
    rejected("--push with an invalid URI", *command, f"postgresql://me:{PASSWORD}@[::1/music")
    free = free_ports(1)[0]
    rejected("--push to a server that rejects the connection", *command, f"postgresql://me@127.0.0.1:{free}/music")
    monkeypatch.setenv("PGPASSWORD", "another-secret")
    rejected("--push to a server that rejects the connection", *command, server.uri)


SESSIONS = "FROM pg_stat_activity WHERE application_name = 'crossfade export'"


@contextmanager
def waiting_push(
    database: "psycopg.Connection[Any]", server: PostgresServer, run: WrittenRun
) -> Iterator[RunningCommand]:
    """Push ``run`` while a reader holds a lock on the table, so that the push waits to replace it."""
    with server.connect() as reader, reader.transaction():
        reader.execute("SELECT FROM planted_track")
        with started("export", run.path, "--to", "pgvector", "--push", cwd=run.path) as command:
            waits = [("Lock",)]
            wait_until(
                lambda: database.execute(f"SELECT wait_event_type {SESSIONS}").fetchall() == waits, "a waiting push"
            )
            yield command
        wait_until(lambda: database.execute(f"SELECT {SESSIONS}").fetchall() == [], "the end of its session")


def test_interrupted_push_ends_its_session_and_changes_nothing(
    database: "psycopg.Connection[Any]", server: PostgresServer, run: WrittenRun, tmp_path: Path
) -> None:
    push(run)
    with waiting_push(database, server, write_run(tmp_path / "later", seed=5)) as command:
        command.process.send_signal(signal.SIGTERM)
        result = command.finish()
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "Traceback" not in result.stderr
    assert "rollback" not in result.stderr
    assert_holds(database, run)
    assert relations(database) == ALL_RELATIONS


def test_lost_session_fails_the_push(
    database: "psycopg.Connection[Any]", server: PostgresServer, run: WrittenRun, tmp_path: Path
) -> None:
    push(run)
    with waiting_push(database, server, write_run(tmp_path / "later", seed=5)) as command:
        database.execute(f"SELECT pg_terminate_backend(pid) {SESSIONS}")
        result = command.finish()
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if "error" in line]
    assert "--push: terminating connection due to administrator command; tables are replaced completely or not" in line
    assert_holds(database, run)
