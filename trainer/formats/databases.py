"""Adapters of databases to ``push``, each on the client of the database's makers.

PostgreSQL with pgvector, Qdrant, and OpenSearch get a table, collection, or index with the date in its name. To publish
it, the name that searches use, a view or an alias, is switched to it. Amazon S3 Vectors has no such names: its vectors
are replaced by their keys, and then vectors of other exports are deleted. Credentials come from the environment, since
others can list the arguments of a process.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from crossfade.base.errors import MissingExtraError, Option, OptionError, command
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.config.sections import has_credentials
from crossfade.trainer.formats.options import FormatName
from crossfade.trainer.formats.push import Database, Problem, Row, VectorTable

_TIMEOUT_SECONDS = 60
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
MAX_INDEXED_COLUMNS = 2_000
"""What an index of pgvector's type vector can have."""
MARK = "crossfade-export"
"""Marks what an export wrote: the comment of a view, the tag of an index of S3 Vectors."""


def connect(to: FormatName, place: str) -> Database:
    """Open the database for the format ``to``; an empty ``place`` is the one that the environment names.

    Raises:
        MissingExtraError: its client is not installed.
        OptionError: ``place`` is invalid, has credentials, or rejects the connection.
    """
    return _DATABASES[to](place)


@contextmanager
def needed(package: str, extra: str, to: FormatName) -> Iterator[None]:
    """Raise MissingExtraError, which names ``extra``, where an import fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra=extra, purpose=command("export", to=to)) from error


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _url(place: str, variable: str, default: str) -> str:
    """Return the address of a server: ``place``, or else that in the environment, or else the usual one."""
    url = place or os.environ.get(variable) or default
    if ":" in url and has_credentials(url):
        fix = "leave them out, and set QDRANT_API_KEY, or OPENSEARCH_USER and OPENSEARCH_PASSWORD"
        raise OptionError("push", problem="the address has credentials or a query", fix=fix)
    # What is no URL is a folder of Qdrant's client, but hardly HOST:PORT.
    scheme, separator, _ = url.partition("://")
    problem = "" if scheme in {"http", "https"} or not (separator or re.search(r":\d+$", url)) else "is no address"
    try:
        _ = urlsplit(url).port
    except ValueError as error:
        problem = str(error)
    if problem:
        raise OptionError("push", found=url, problem=problem, expected="http://HOST:PORT")
    return url


class PgVector(Database):
    """PostgreSQL with pgvector, in one transaction; ``place`` is a URI, completed by libpq's environment."""

    max_columns, retries = 16_000, False

    def __init__(self, place: str) -> None:
        with needed("psycopg", "export", "pgvector"):
            import psycopg
            import psycopg.conninfo
        self._client = psycopg
        try:
            options = psycopg.conninfo.conninfo_to_dict(place)
        except psycopg.ProgrammingError as error:
            # The message of libpq may quote the URI, and with it a password.
            uri = "postgresql://USER@HOST:PORT/DATABASE"
            raise OptionError("push", problem="not a URI of PostgreSQL", expected=uri) from error
        if {"password", "sslpassword"} & options.keys():
            problem = "the URI has a password, which others can see in the list of processes"
            raise OptionError("push", problem=problem, fix="leave it out, and set PGPASSWORD or write it to ~/.pgpass")
        try:
            self._connection = psycopg.connect(place, application_name=MARK)
        except psycopg.OperationalError as error:
            problem = f"cannot connect to PostgreSQL: {_one_line(error)}"
            fix = "check the URI, or PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD"
            raise OptionError("push", problem=problem, fix=fix) from error
        info = self._connection.info
        self.place = f"{info.host}:{info.port}/{info.dbname}"

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        cursor = self._connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def create(self, table: VectorTable) -> None:
        """Create a table, unless another program's has the name."""
        self._execute("SET LOCAL client_min_messages = warning")
        self._execute("CREATE EXTENSION IF NOT EXISTS vector")
        of_name = "relname = %s AND relnamespace = quote_ident(current_schema())::regnamespace"
        found = self._execute(f"SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE {of_name}", table.name)  # noqa: S608
        if found not in ([], [(MARK,)]):
            problem = f"the table {table.name} is not one that {command('export')} wrote"
            raise OptionError("push", problem=problem, fix=("choose another ", Option("name")))
        id_type, name = "text" if table.has_text_ids else "bigint", "name text, " if table.has_names else ""
        columns = f"id {id_type} PRIMARY KEY, {name}vector vector({table.dim}) NOT NULL"
        self._execute(f"CREATE TABLE {table.version} ({columns})")

    def put(self, table: VectorTable, rows: Sequence[Row]) -> None:
        """Copy rows into the table."""
        with self._connection.cursor() as cursor, cursor.copy(f"COPY {table.version} FROM STDIN".encode()) as copy:
            for row in rows:
                name = (row.name,) if table.has_names else ()
                copy.write_row((row.id, *name, json.dumps(row.vector)))

    def publish(self, tables: Sequence[VectorTable]) -> None:
        """Index the tables, point the views at them, drop the earlier ones, and commit."""
        operators = {"cosine": "vector_cosine_ops", "dot": "vector_ip_ops", "euclidean": "vector_l2_ops"}
        for table in tables:
            if table.dim <= MAX_INDEXED_COLUMNS:
                self._execute(f"CREATE INDEX ON {table.version} USING hnsw (vector {operators[table.score]})")
            self._execute(f"ANALYZE {table.version}")
        for table in tables:
            self._execute(f"CREATE OR REPLACE VIEW {table.name} AS SELECT * FROM {table.version}")  # noqa: S608
            self._execute(f"COMMENT ON VIEW {table.name} IS '{MARK}'")
        for (name,) in self._execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"):
            if any(table.is_other_version(name) for table in tables):
                self._execute(f"DROP TABLE {name}")
        self._connection.commit()

    def problem(self, error: Exception) -> Problem | None:
        """Return what psycopg reports."""
        if not isinstance(error, self._client.Error):
            return None
        text = _one_line(error.diag.message_primary or error)
        return Problem(
            f"{text}; the earlier tables are unchanged", not isinstance(error, self._client.OperationalError)
        )

    def close(self) -> None:
        """Cancel what a signal interrupted, and end the session: without a commit, nothing has changed."""
        if self._connection.info.transaction_status == self._client.pq.TransactionStatus.ACTIVE:
            with suppress(self._client.Error):  # of a server that is lost
                self._connection.cancel()
        self._connection.close()


class Qdrant(Database):
    """Qdrant at a URL, or in a local folder; the payload of a point is the ID and the name of its row."""

    max_columns = 65_535

    def __init__(self, place: str) -> None:
        with needed("qdrant-client", "export", "qdrant"):
            from qdrant_client import QdrantClient, models
            from qdrant_client.common.client_exceptions import QdrantException
            from qdrant_client.http import exceptions
        self.place = _url(place, "QDRANT_URL", "http://localhost:6333")
        self._models, self._rejection = models, exceptions.UnexpectedResponse
        self._errors = exceptions.ApiException, QdrantException
        if "://" in self.place:
            key = os.environ.get("QDRANT_API_KEY")
            # It would check the version by a request that is not sent again.
            self._client = QdrantClient(self.place, api_key=key, timeout=_TIMEOUT_SECONDS, check_compatibility=False)
            return
        try:
            self._client = QdrantClient(path=self.place)
        except (OSError, RuntimeError) as error:  # RuntimeError: another process has the folder open
            raise OptionError("push", found=self.place, problem=_one_line(error)) from error

    def create(self, table: VectorTable) -> None:
        """Create a collection."""
        distances: dict[ScoreKind, str] = {"cosine": "COSINE", "dot": "DOT", "euclidean": "EUCLID"}
        vectors = self._models.VectorParams(size=table.dim, distance=self._models.Distance[distances[table.score]])
        self._client.delete_collection(table.version)
        self._client.create_collection(table.version, vectors_config=vectors)

    def put(self, table: VectorTable, rows: Sequence[Row]) -> None:
        """Add points."""
        points = [
            self._models.PointStruct(id=point_id(row.id), vector=row.vector, payload=_fields(row)) for row in rows
        ]
        self._client.upsert(table.version, points, wait=True)

    def publish(self, tables: Sequence[VectorTable]) -> None:
        """Switch the aliases in one request, and delete the earlier collections."""
        models, named = self._models, {each.alias_name for each in self._client.get_aliases().aliases}
        operations: list[Any] = []
        for table in tables:
            if table.name in named:
                operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=table.name)))
            alias = models.CreateAlias(collection_name=table.version, alias_name=table.name)
            operations.append(models.CreateAliasOperation(create_alias=alias))
        self._client.update_collection_aliases(operations)
        for collection in self._client.get_collections().collections:
            if any(table.is_other_version(collection.name) for table in tables):
                self._client.delete_collection(collection.name)

    def problem(self, error: Exception) -> Problem | None:
        """Return what the server or the network reports."""
        if isinstance(error, self._rejection):
            content = error.content.decode("utf-8", "replace")
            text = f"Qdrant answers {error.status_code}: {_one_line(content)[:500]}"
            return Problem(text, error.status_code not in _TRANSIENT_STATUS)
        is_known = isinstance(error, self._errors)
        return Problem(f"Qdrant does not answer: {_one_line(error)}", is_rejected=False) if is_known else None

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def point_id(row_id: int | str) -> int | str:
    """Return the ID of a point: an unsigned integer or a UUID, of version 5 of the text, so that exports agree."""
    if isinstance(row_id, int) and row_id >= 0:
        return row_id
    return str(uuid.uuid5(uuid.NAMESPACE_OID, str(row_id)))


def _fields(row: Row) -> dict[str, Any]:
    return {"id": row.id} if row.name is None else {"id": row.id, "name": row.name}


class OpenSearch(Database):
    """OpenSearch, from 2.13 on, whose engine Lucene has all three spaces; a document's ID is the row's."""

    max_columns = 16_000

    def __init__(self, place: str) -> None:
        with needed("opensearch-py", "export", "opensearch"):
            import opensearchpy
        self._errors: Any = opensearchpy.exceptions
        logging.getLogger("opensearch").setLevel(logging.ERROR)  # it logs each failed request with a traceback
        self.place = _url(place, "OPENSEARCH_URL", "http://localhost:9200")
        user = os.environ.get("OPENSEARCH_USER")
        login = (user, os.environ.get("OPENSEARCH_PASSWORD", "")) if user else None
        self._client: Any = opensearchpy.OpenSearch(
            self.place, http_auth=login, timeout=_TIMEOUT_SECONDS, max_retries=0
        )

    def create(self, table: VectorTable) -> None:
        """Create an index with its mapping."""
        spaces: dict[ScoreKind, str] = {"cosine": "cosinesimil", "dot": "innerproduct", "euclidean": "l2"}
        method = {"name": "hnsw", "engine": "lucene", "space_type": spaces[table.score]}
        properties = {
            "id": {"type": "keyword" if table.has_text_ids else "long"},
            "name": {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}},
            "vector": {"type": "knn_vector", "dimension": table.dim, "method": method},
        }
        self._client.indices.delete(index=table.version, ignore_unavailable=True)
        body = {"settings": {"index": {"knn": True}}, "mappings": {"properties": properties}}
        self._client.indices.create(index=table.version, body=body)

    def put(self, table: VectorTable, rows: Sequence[Row]) -> None:
        """Add documents by one bulk request."""
        body: list[dict[str, Any]] = []
        for row in rows:
            body += [{"index": {"_id": str(row.id)}}, _fields(row) | {"vector": row.vector}]
        answer = self._client.bulk(index=table.version, body=body)
        for item in answer["items"]:
            if (error := item["index"].get("error")) is not None:
                raise self._errors.TransportError(item["index"]["status"], _one_line(error), error)

    def publish(self, tables: Sequence[VectorTable]) -> None:
        """Switch the aliases in one request, and delete the earlier indexes."""
        actions: list[dict[str, Any]] = []
        for table in tables:
            self._client.indices.refresh(index=table.version)
            actions.append({"remove": {"index": f"{table.name}_*", "alias": table.name, "must_exist": False}})
            actions.append({"add": {"index": table.version, "alias": table.name}})
        self._client.indices.update_aliases(body={"actions": actions})
        for table in tables:
            for name in self._client.indices.get(index=f"{table.name}_*"):
                if table.is_other_version(name):
                    self._client.indices.delete(index=name)

    def problem(self, error: Exception) -> Problem | None:
        """Return what the server or the network reports."""
        if isinstance(error, self._errors.ConnectionError):
            return Problem(f"OpenSearch does not answer: {_one_line(error)}", is_rejected=False)
        if isinstance(error, self._errors.TransportError):
            text = f"OpenSearch answers {error.status_code}: {_one_line(error.error)[:500]}"
            return Problem(text, error.status_code not in _TRANSIENT_STATUS)
        return None

    def close(self) -> None:
        """Close the client."""
        self._client.close()


class S3Vectors(Database):
    """Indexes in a vector bucket of Amazon S3; a vector's key is the ID, its metadata the name and ``export``, a date.

    Limits: https://docs.aws.amazon.com/AmazonS3/latest/userguide/s3-vectors-limitations.html
    """

    max_columns, separator = 4_096, "-"
    _transient = ("InternalServer", "RequestTimeout", "ServiceUnavailable", "Throttling", "TooManyRequests")

    def __init__(self, place: str) -> None:
        with needed("boto3", "aws", "s3-vectors"):
            import boto3
            from botocore import exceptions
            from botocore.config import Config
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", place):
            expected = "the name of a vector bucket: 3 to 63 lower-case letters, digits, and hyphens"
            raise OptionError("push", found=place, expected=expected)
        self.place, self._exceptions = place, exceptions
        config = Config(read_timeout=_TIMEOUT_SECONDS, retries={"total_max_attempts": 1}, user_agent_extra="crossfade")
        try:
            session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
            self._client: Any = session.client("s3vectors", config=config)
        except exceptions.BotoCoreError as error:
            fix = "set AWS_REGION and AWS_PROFILE, or log in with 'aws sso login'"
            raise OptionError("push", problem=_one_line(error).rstrip("."), fix=fix) from error

    def _index(self, table: VectorTable) -> dict[str, str]:
        return {"vectorBucketName": self.place, "indexName": table.name}

    def create(self, table: VectorTable) -> None:
        """Create the index if it is missing, and the bucket."""
        if table.score == "dot":
            problem = "S3 Vectors compares by cosine and euclidean only, but model.score is dot"
            raise OptionError("push", found=self.place, problem=problem, fix="export to another format")
        missing, index = self._client.exceptions.NotFoundException, self._index(table)
        try:
            found = self._client.get_index(**index)["index"]
        except missing:
            form = {"dataType": "float32", "dimension": table.dim, "distanceMetric": table.score}
            # Metadata that searches can filter by may have 2 KB, which a name may exceed.
            form |= {"metadataConfiguration": {"nonFilterableMetadataKeys": ["name"]}, "tags": {MARK: "true"}}
            try:
                self._client.create_index(**index, **form)
            except missing:
                self._client.create_vector_bucket(vectorBucketName=self.place)
                self._client.create_index(**index, **form)
            return
        tags = self._client.list_tags_for_resource(resourceArn=found["indexArn"])["tags"]
        if MARK not in tags or (found["dimension"], found["distanceMetric"]) != (table.dim, table.score):
            problem = f"the index {table.name} has another form, or {command('export')} did not create it"
            fix = ("delete it, or choose another ", Option("name"))
            raise OptionError("push", found=self.place, problem=problem, fix=fix)

    def put(self, table: VectorTable, rows: Sequence[Row]) -> None:
        """Put vectors, which replace the vectors of the same keys."""
        vectors = [
            {
                "key": str(row.id),
                "data": {"float32": row.vector},
                "metadata": {"export": table.version, **({} if row.name is None else {"name": row.name})},
            }
            for row in rows
        ]
        self._client.put_vectors(**self._index(table), vectors=vectors)

    def publish(self, tables: Sequence[VectorTable]) -> None:
        """Delete the vectors that this export has not put."""
        for table in tables:
            index = self._index(table)
            pages = self._client.get_paginator("list_vectors").paginate(**index, maxResults=500, returnMetadata=True)
            for page in pages:
                old = [each["key"] for each in page["vectors"] if each["metadata"].get("export") != table.version]
                if old:
                    self._client.delete_vectors(**index, keys=old)

    def problem(self, error: Exception) -> Problem | None:
        """Return what AWS or the network reports."""
        if isinstance(error, self._exceptions.ClientError):
            found = error.response["Error"]
            text = f"AWS rejects {error.operation_name}: {_one_line(found.get('Message', ''))} ({found['Code']})"
            return Problem(text, is_rejected=not found["Code"].startswith(self._transient))
        if isinstance(error, self._exceptions.ConnectionError | self._exceptions.HTTPClientError):
            return Problem(f"AWS does not answer: {_one_line(error)}", is_rejected=False)
        is_known = isinstance(error, self._exceptions.BotoCoreError)
        return Problem(_one_line(error), is_rejected=True) if is_known else None

    def close(self) -> None:
        """Close the client."""
        self._client.close()


_DATABASES: dict[str, Callable[[str], Database]] = {
    "pgvector": PgVector,
    "qdrant": Qdrant,
    "opensearch": OpenSearch,
    "s3-vectors": S3Vectors,
}
