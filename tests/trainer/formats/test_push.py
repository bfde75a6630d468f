"""Pushes to databases: what searches find before, during, and after them, and what is rejected.

PostgreSQL with pgvector is real, Qdrant is its client's local mode, S3 Vectors is moto's, and OpenSearch a double.
"""

import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from aws_server import AwsServer, running_aws
from builders import ITEM, QUERY
from command_here import crossfade_here
from object_store import free_ports
from opensearch_double import OpenSearchDouble, running_opensearch
from postgres_server import PASSWORD, PostgresServer, running_postgres
from qdrant_client import QdrantClient
from running_command import RunningCommand, started, succeeded
from waiting import wait_until
from written_runs import CUSTOMER_IDS, TRACK_IDS, TRACK_NAMES, WrittenRun, save_checkpoint, write_run, write_vectors

from crossfade.base.errors import CheckpointError, CrossfadeError, InputError, OptionError
from crossfade.trainer.data.reporter import NullReporter
from crossfade.trainer.formats import databases, exported_model
from crossfade.trainer.formats import push as loop
from crossfade.trainer.formats.export import ExportResult, export
from crossfade.trainer.formats.options import ExportOptions

pytestmark = pytest.mark.slow

BUCKET = "music-vectors"
PUT = "POST /PutVectors"
Held = dict[str, tuple[str | None, list[float]]]
"""The name and the vector of each ID."""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsServer]:
    with running_aws() as server:
        yield server


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MAX_ROWS", 2)
    monkeypatch.setattr(loop, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(exported_model, "GROUP_ROWS", 3)


# Databases as their users see them: what they push to, what searches of a name find, and how many tables there are.


class SearchedPgVector:
    to, place = "pgvector", ""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self._connection = connection

    def held(self, name: str) -> Held:
        columns = "id::text, name, vector::float4[]" if name.endswith(ITEM) else "id, NULL, vector::float4[]"
        return {
            row_id: (name, vector) for row_id, name, vector in self._connection.execute(f"SELECT {columns} FROM {name}")
        }

    def tables(self) -> int:
        return len(self._connection.execute("SELECT FROM pg_tables WHERE schemaname = 'public'").fetchall())


class SearchedQdrant:
    to = "qdrant"

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)

    def held(self, name: str) -> Held:
        with closing(QdrantClient(path=self.place)) as client:
            points, _ = client.scroll(name, limit=1000, with_vectors=True)
        for point in points:
            row_id = point.payload["id"]
            assert point.id == (row_id if name.endswith(ITEM) else str(uuid.uuid5(uuid.NAMESPACE_OID, row_id)))
        return {str(point.payload["id"]): (point.payload.get("name"), point.vector) for point in points}

    def tables(self) -> int:
        with closing(QdrantClient(path=self.place)) as client:
            return len(client.get_collections().collections)


class SearchedOpenSearch:
    to = "opensearch"

    def __init__(self, double: OpenSearchDouble) -> None:
        self.place, self.double = double.url, double

    def held(self, name: str) -> Held:
        documents = self.double.documents[self.double.aliases[name]]
        assert all(str(document["id"]) == row_id for row_id, document in documents.items())
        return {row_id: (document.get("name"), document["vector"]) for row_id, document in documents.items()}

    def tables(self) -> int:
        return len(self.double.indexes)


class SearchedS3Vectors:
    to, place = "s3-vectors", BUCKET

    def __init__(self, server: AwsServer) -> None:
        self.client = server.client("s3vectors")

    def held(self, name: str) -> Held:
        index = {"vectorBucketName": BUCKET, "indexName": name.replace("_", "-")}
        vectors = self.client.list_vectors(**index, returnData=True, returnMetadata=True)["vectors"]
        return {each["key"]: (each["metadata"].get("name"), each["data"]["float32"]) for each in vectors}

    def tables(self) -> int:
        return len(self.client.list_indexes(vectorBucketName=BUCKET)["indexes"])


@pytest.fixture
def connection(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator["psycopg.Connection[Any]"]:
    """Connect to an empty database, which pushes connect to by their environment."""
    for name, value in postgres.variables.items():
        monkeypatch.setenv(name, value)
    with postgres.connect() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        yield connection


@pytest.fixture
def bucket(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> SearchedS3Vectors:
    aws.reset()
    for name, value in aws.variables.items():
        monkeypatch.setenv(name, value)
    return SearchedS3Vectors(aws)


@pytest.fixture
def opensearch() -> Iterator[SearchedOpenSearch]:
    with running_opensearch() as double:
        yield SearchedOpenSearch(double)


@pytest.fixture
def pgvector(connection: "psycopg.Connection[Any]") -> SearchedPgVector:
    return SearchedPgVector(connection)


@pytest.fixture
def qdrant(tmp_path: Path) -> SearchedQdrant:
    return SearchedQdrant(tmp_path / "qdrant")


Searched = SearchedPgVector | SearchedQdrant | SearchedOpenSearch | SearchedS3Vectors


@pytest.fixture(params=["pgvector", "qdrant", "opensearch", "bucket"])
def database(request: pytest.FixtureRequest) -> Searched:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def push(source: WrittenRun | Path, to: str, place: str = "", **options: Any) -> ExportResult:
    path = source.path if isinstance(source, WrittenRun) else source
    return export(ExportOptions.of(source=str(path), to=to, push=place, **options), print, NullReporter())


def assert_holds(database: Searched, run: WrittenRun, untrained: list[int]) -> None:
    """Assert that searches find the trained rows of ``run``, and nothing else."""
    for entity, ids, names in ((QUERY, CUSTOMER_IDS, None), (ITEM, TRACK_IDS, TRACK_NAMES)):
        rows = [row for row in range(len(ids)) if entity == QUERY or row not in untrained]
        held = database.held(f"planted_{entity}")
        assert {row_id: name for row_id, (name, _) in held.items()} == {
            str(ids[row]): None if names is None else names[row] for row in rows
        }
        for row in rows:
            np.testing.assert_array_equal(np.float32(held[str(ids[row])][1]), run.vectors[entity][row])
    assert database.tables() == 2


def test_searches_find_the_model_and_then_a_later_one(database: Searched, tmp_path: Path) -> None:
    run = write_run(tmp_path / "before", score="euclidean")
    pushed = push(run, database.to, database.place)
    assert [(table.name, table.rows, table.untrained) for table in pushed.tables] == [(QUERY, 11, 0), (ITEM, 8, 2)]
    assert_holds(database, run, [3, 5])
    later = write_run(tmp_path / "later", score="euclidean", seed=5, untrained=[3, 6])
    push(later, database.to, database.place)
    assert_holds(database, later, [3, 6])


def test_failed_push_changes_nothing(database: Searched, tmp_path: Path) -> None:
    """In S3 Vectors, searches find vectors of both; the next push replaces them."""
    run = write_run(tmp_path / "before", score="euclidean")
    push(run, database.to, database.place)
    save_checkpoint(run, 7)
    [file] = (run.path / "checkpoints" / "step-000000007" / ITEM).glob("weights.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC-32"):
        push(file.parents[1], database.to, database.place)
    if database.to != "s3-vectors":
        held = database.held(f"planted_{ITEM}")
        np.testing.assert_array_equal(np.float32(held[str(TRACK_IDS[0])][1]), run.vectors[ITEM][0])
    push(run, database.to, database.place)
    assert_holds(database, run, [3, 5])


def test_what_no_export_wrote_is_kept(
    connection: "psycopg.Connection[Any]", bucket: SearchedS3Vectors, tmp_path: Path
) -> None:
    run = write_run(tmp_path)
    connection.execute("CREATE TABLE planted_track (note text)")
    with pytest.raises(OptionError, match="planted_track is not one that 'crossfade export' wrote"):
        push(run, "pgvector")
    assert connection.execute("SELECT * FROM planted_track").fetchall() == []
    bucket.client.create_vector_bucket(vectorBucketName=BUCKET)
    index = {"vectorBucketName": BUCKET, "indexName": "planted-track"}
    bucket.client.create_index(**index, dataType="float32", dimension=4, distanceMetric="cosine")
    bucket.client.put_vectors(**index, vectors=[{"key": "a", "data": {"float32": [1, 2, 3, 4]}}])
    with pytest.raises(OptionError, match="the index planted-track has another form, or"):
        push(run, "s3-vectors", BUCKET)
    assert bucket.held("planted_track").keys() == {"a"}


@pytest.mark.parametrize(
    ("score", "operators", "distance", "space"),
    [
        ("cosine", "vector_cosine_ops", "Cosine", "cosinesimil"),
        ("dot", "vector_ip_ops", "Dot", "innerproduct"),
        ("euclidean", "vector_l2_ops", "Euclid", "l2"),
    ],
)
def test_index_compares_by_the_score(
    connection: "psycopg.Connection[Any]",
    opensearch: SearchedOpenSearch,
    tmp_path: Path,
    score: str,
    operators: str,
    distance: str,
    space: str,
) -> None:
    run = write_run(tmp_path, score=score)
    push(run, "pgvector")
    indexes = [definition for (definition,) in connection.execute("SELECT indexdef FROM pg_indexes")]
    assert len([each for each in indexes if f"USING hnsw (vector {operators})" in each]) == 2
    push(run, "qdrant", str(tmp_path / "qdrant"))
    with closing(QdrantClient(path=str(tmp_path / "qdrant"))) as client:
        assert client.get_collection("planted_track").config.params.vectors.distance == distance  # type: ignore[union-attr]
    push(run, "opensearch", opensearch.place)
    index = opensearch.double.indexes[opensearch.double.aliases["planted_track"]]
    vector = index["mappings"]["properties"]["vector"]
    assert (vector["dimension"], vector["method"]["space_type"]) == (4, space)


def test_command_prints_tables_and_keeps_privileges(
    connection: "psycopg.Connection[Any]", postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name)
    run = write_run(tmp_path, dim=databases.MAX_INDEXED_COLUMNS + 1)
    command = ("export", run.path, "--to", "pgvector", "--push", postgres.uri, "--name", "music", "--entity", ITEM)
    printed = succeeded(crossfade_here(*command)).stdout
    assert re.fullmatch(r"track +8 x 2001 +127\.0\.0\.1:\d+/postgres/music_track, 2 untrained\n", printed)
    indexes = connection.execute("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")
    assert indexes.fetchall() == [], "wide vectors are not indexed"
    connection.execute("DROP ROLE IF EXISTS reader")
    connection.execute("CREATE ROLE reader")
    connection.execute("GRANT SELECT ON music_track TO reader")
    succeeded(crossfade_here(*command))
    assert connection.execute("SELECT has_table_privilege('reader', 'music_track', 'SELECT')").fetchone() == (True,)
    connection.execute("DROP OWNED BY reader")
    connection.execute("DROP ROLE reader")


SESSIONS = f"FROM pg_stat_activity WHERE application_name = '{databases.MARK}'"


@contextmanager
def waiting_push(
    connection: "psycopg.Connection[Any]", server: PostgresServer, tmp_path: Path
) -> Iterator[RunningCommand]:
    """Push a model, and then another one while a reader holds a lock, so that the push waits to replace the first."""
    run, later = write_run(tmp_path / "before"), write_run(tmp_path / "later", seed=5)
    push(run, "pgvector")
    with server.connect() as reader, reader.transaction():
        reader.execute("SELECT FROM planted_track")
        with started("export", later.path, "--to", "pgvector", "--push", cwd=tmp_path) as command:
            waits = [("Lock",)]
            wait_until(
                lambda: connection.execute(f"SELECT wait_event_type {SESSIONS}").fetchall() == waits, "a waiting push"
            )
            yield command
        wait_until(lambda: connection.execute(f"SELECT {SESSIONS}").fetchall() == [], "the end of its session")
    assert_holds(SearchedPgVector(connection), run, [3, 5])


def test_interrupted_push_ends_its_session_and_changes_nothing(
    connection: "psycopg.Connection[Any]", postgres: PostgresServer, tmp_path: Path
) -> None:
    with waiting_push(connection, postgres, tmp_path) as command:
        command.process.send_signal(signal.SIGTERM)
        result = command.finish()
        assert result.returncode == 128 + signal.SIGTERM, result.stderr
        assert "Traceback" not in result.stderr


def test_failed_requests_are_sent_again_and_at_last_reported(
    bucket: SearchedS3Vectors, aws: AwsServer, opensearch: SearchedOpenSearch, tmp_path: Path
) -> None:
    run = write_run(tmp_path, score="euclidean")
    aws.fail(PUT, "TooManyRequestsException", "slow down", times=2, status=429)
    push(run, "s3-vectors", BUCKET)
    assert_holds(bucket, run, [3, 5])
    opensearch.double.failures += [429, 503]
    push(run, "opensearch", opensearch.place)
    assert_holds(opensearch, run, [3, 5])
    aws.fail(PUT, "TooManyRequestsException", "slow down", times=0, status=429)
    opensearch.double.failures += [429] * 3
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    for to, place in (
        ("s3-vectors", BUCKET),
        ("opensearch", opensearch.place),
        ("opensearch", nowhere),
        ("qdrant", nowhere),
    ):
        with pytest.raises(CrossfadeError, match="repeat the command when it answers") as failed:
            push(run, to, place)
        assert failed.value.exit_code == 1
    push(run, "opensearch", opensearch.place)
    assert_holds(opensearch, run, [3, 5])


def test_rejected_requests_are_not_sent_again(
    bucket: SearchedS3Vectors, aws: AwsServer, opensearch: SearchedOpenSearch, tmp_path: Path
) -> None:
    run = write_run(tmp_path)
    aws.fail(PUT, "AccessDeniedException", "no more")
    opensearch.double.failures.append(403)
    for to, place in (("s3-vectors", BUCKET), ("opensearch", opensearch.place), ("qdrant", opensearch.place)):
        with pytest.raises(OptionError) as rejected:
            push(run, to, place)
        assert (rejected.value.field, rejected.value.found) == (("push",), place)
    assert opensearch.double.aliases == {}
    with pytest.raises(OptionError, match="cosine and euclidean only"):
        push(write_run(tmp_path / "dot", score="dot"), "s3-vectors", BUCKET)


def test_zero_vectors_are_left_out_of_cosines(
    bucket: SearchedS3Vectors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path)
    run.vectors[ITEM][1] = 0
    shutil.rmtree(run.path / "embeddings")
    write_vectors(run.path / "embeddings", run.data, run.vectors)
    push(run, "s3-vectors", BUCKET)
    assert_holds(bucket, run, [1, 3, 5])
    assert "planted-track: left out 1 rows with a zero vector" in capsys.readouterr().out


def test_credentials_come_from_the_environment_only(
    opensearch: SearchedOpenSearch, postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSEARCH_USER", "me")
    monkeypatch.setenv("OPENSEARCH_PASSWORD", 'p"a\\s:s')
    monkeypatch.setenv("OPENSEARCH_URL", opensearch.place)
    push(write_run(tmp_path), "opensearch")
    assert opensearch.double.logins == {"Basic bWU6cCJhXHM6cw=="}
    monkeypatch.setenv("PGPASSWORD", "another-secret")
    with_password = postgres.uri.replace("@", f":{PASSWORD}@")
    for to, place, problem in (
        ("pgvector", with_password, "the URI has a password"),
        ("pgvector", f"{postgres.uri}?password={PASSWORD}", "the URI has a password"),
        ("pgvector", f"postgresql://me:{PASSWORD}@[::1/music", "not a URI of PostgreSQL"),
        ("pgvector", postgres.uri, "cannot connect to PostgreSQL"),
        ("opensearch", f"http://me:{PASSWORD}@127.0.0.1:9", "the address has credentials"),
        ("qdrant", f"http://127.0.0.1:9?api-key={PASSWORD}", "the address has credentials"),
        ("qdrant", f"me:{PASSWORD}@127.0.0.1:9", "the address has credentials"),
        ("qdrant", "127.0.0.1:9", "is no address; expected http://HOST:PORT"),
        ("opensearch", "ftp://127.0.0.1", "is no address; expected http://HOST:PORT"),
        ("s3-vectors", "s3://music", "expected the name of a vector bucket"),
        ("opensearch", "http://127.0.0.1:port", "expected http://HOST:PORT"),
        ("qdrant", f"{tmp_path / 'run' / 'job.yaml'}", "job.yaml"),
    ):
        with pytest.raises(OptionError, match=problem) as rejected:
            push(tmp_path / "run", to, place)
        assert PASSWORD not in str(rejected.value)
        assert rejected.value.field == ("push",)


def test_limits_are_checked(opensearch: SearchedOpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path)
    with pytest.raises(InputError, match="41 characters, of 40 at most"):
        push(run, "opensearch", opensearch.place, name="a" * 32)
    monkeypatch.setattr(databases.OpenSearch, "max_columns", 3)
    with pytest.raises(InputError, match=r"vectors have 4 columns, but http.* allows 3"):
        push(run, "opensearch", opensearch.place)
    monkeypatch.undo()
    untrained = write_run(tmp_path / "untrained", untrained=range(len(TRACK_NAMES)))
    with pytest.raises(InputError, match="no row of 'track' has a trained vector"):
        push(untrained, "opensearch", opensearch.place)
    assert opensearch.double.aliases == {}
