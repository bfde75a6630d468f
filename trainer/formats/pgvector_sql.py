"""SQL that replaces a table of vectors in PostgreSQL with pgvector, for scripts and for ``crossfade export --push``.

    for statement in (*prepare(), *table.create(), ..., *table.complete(), *table.replace()):
        connection.execute(statement)

All statements belong to one transaction. Rows are loaded into a second table, which takes the name of the first at the
end, so that readers find the previous rows until the transaction commits, and the new ones from then on. The second
table gets the privileges of the first. A comment marks tables that an export wrote; others are never replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crossfade.trainer.config.sections import ScoreKind

MAX_COLUMNS = 16_000
"""What the type vector can have."""
MAX_INDEXED_COLUMNS = 2_000
"""What an index of the type vector can have."""
_MARK = "crossfade export: "
_OPERATOR_CLASSES: dict[ScoreKind, str] = {
    "cosine": "vector_cosine_ops",
    "dot": "vector_ip_ops",
    "euclidean": "vector_l2_ops",
}
OPERATORS: dict[ScoreKind, str] = {"cosine": "<=>", "dot": "<#>", "euclidean": "<->"}
"""The distances by which the indexes search: 1 - cosine, minus the dot product, and the Euclidean distance."""


def prepare() -> list[str]:
    """Return the statements that come before all tables."""
    return ["SET LOCAL client_min_messages = warning;", "CREATE EXTENSION IF NOT EXISTS vector;"]


@dataclass(frozen=True)
class VectorTable:
    """A table in PostgreSQL.

    Attributes:
        name: its name, of letters a-z, digits, and _ only.
        id_type: the type of its IDs.
        has_names: whether it has the column ``name``.
        dim: columns of its vectors.
        score: what its index searches by.
        comment: what it holds, in one line.
    """

    name: str
    id_type: Literal["bigint", "text"]
    has_names: bool
    dim: int
    score: ScoreKind
    comment: str

    @property
    def staging(self) -> str:
        """The table that rows are loaded into."""
        return f"{self.name}_new"

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return ["id", *(["name"] if self.has_names else []), "vector"]

    def create(self) -> list[str]:
        """Return the statements that create the table for the rows, after waiting for other exports of this table."""
        types = {"id": f"{self.id_type} NOT NULL", "name": "text", "vector": f"vector({self.dim}) NOT NULL"}
        columns = ",\n".join(f"    {column} {types[column]}" for column in self.columns)
        check = f"""\
DO $check$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('{_MARK}{self.name}'));
{self._check()}
END $check$;"""
        return [check, f"CREATE TABLE {self.staging} (\n{columns}\n);"]

    def complete(self) -> list[str]:
        """Return the statements that follow the rows: keys, the index, and statistics."""
        index = (
            f"CREATE INDEX {self.staging}_vector_idx ON {self.staging} USING hnsw "
            f"(vector {_OPERATOR_CLASSES[self.score]});"
        )
        comment = f"{_MARK}{self.comment}".replace("'", "''")
        return [
            f"ALTER TABLE {self.staging} ADD CONSTRAINT {self.staging}_pkey PRIMARY KEY (id);",
            *([index] if self._is_indexed else []),
            f"COMMENT ON TABLE {self.staging} IS '{comment}';",
            f"ANALYZE {self.staging};",
        ]

    def replace(self) -> list[str]:
        """Return the statements that replace the previous table. Readers wait from here on until the commit."""
        swap = f"""\
DO $replace$
DECLARE
    privilege record;
BEGIN
{self._check()}
    FOR privilege IN
        SELECT acl.privilege_type AS kind, coalesce(quote_ident(role.rolname), 'PUBLIC') AS grantee,
               CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS suffix
        FROM pg_class previous CROSS JOIN aclexplode(previous.relacl) acl
             LEFT JOIN pg_roles role ON role.oid = acl.grantee
        WHERE previous.relname = '{self.name}' AND previous.relnamespace = quote_ident(current_schema())::regnamespace
    LOOP
        EXECUTE format('GRANT %s ON {self.staging} TO %s%s', privilege.kind, privilege.grantee, privilege.suffix);
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS %I.{self.name}', current_schema());
END $replace$;"""  # noqa: S608 - the name is of letters, digits, and _
        return [
            swap,
            f"ALTER TABLE {self.staging} RENAME TO {self.name};",
            f"ALTER INDEX {self.staging}_pkey RENAME TO {self.name}_pkey;",
            *([f"ALTER INDEX {self.staging}_vector_idx RENAME TO {self.name}_vector_idx;"] if self._is_indexed else []),
        ]

    @property
    def _is_indexed(self) -> bool:
        return self.dim <= MAX_INDEXED_COLUMNS

    def _check(self) -> str:
        """Return PL/pgSQL that raises if another table has the name."""
        return f"""\
    IF EXISTS (
        SELECT FROM pg_class previous
        WHERE previous.relname = '{self.name}' AND previous.relnamespace = quote_ident(current_schema())::regnamespace
              AND coalesce(obj_description(previous.oid, 'pg_class'), '') NOT LIKE '{_MARK}%'
    ) THEN
        RAISE EXCEPTION 'the table {self.name} is not one that crossfade export wrote; choose another --name';
    END IF;"""
