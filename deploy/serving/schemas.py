"""Bodies of requests and responses, with the limits of what a request may ask for.

Options of rankings have the names, defaults, and descriptions of ``trainer/recommend/options.py``. Their types are
those of JSON, and bounded.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired, Self

from annotated_types import Ge, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from crossfade.base.validation import described
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.evaluation.options import RerankingOptions
from crossfade.trainer.recommend.options import OnUnknown, RankingOptions, RecommendOptions, SimilarOptions

MAX_K, MAX_QUERIES, MAX_LIST, MAX_TEXT, MAX_DAMPING = 1000, 100, 1000, 1000, 100
MAX_FILTERS, MAX_VALUES = 8, 100
MAX_COMPARISONS = 2_000_000
"""Places times candidates of a request with diversity. With 64 columns each costs up to 50 ns, so that all take the
ranking thread, for which other requests wait, about a tenth of a second."""
MAX_INTEGER = 2**53 - 1
"""Larger integers are not exact in JSON; IDs may be text instead."""
_PATTERN = r"^[^\x00-\x1f\x7f]+$"

Text = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_TEXT, pattern=_PATTERN),
    described("one line of text, without control characters"),
]
"""One line of text."""


def _whole(value: object) -> object:
    """Return 3 for 3.0, which JSON does not distinguish."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Id = Annotated[int, Field(strict=True, ge=-MAX_INTEGER, le=MAX_INTEGER), BeforeValidator(_whole)] | Text
"""An ID or, for an entity with names, a name."""
Count = Annotated[int, Field(strict=True, ge=1, le=MAX_K), BeforeValidator(_whole)]
"""A number of rows in a body; in JSON, neither text nor true is a number."""


def _splits(value: object) -> object:
    """Return no split for the empty text that an address has for none: ``exclude=``."""
    return [] if value in ("", [""]) else value


Splits = Annotated[list[SplitName], Field(max_length=len(ALL_SPLITS), fail_fast=True), BeforeValidator(_splits)]
"""All splits, or none: a version has the histories of all together."""


def _declared(options: type[RankingOptions], name: str, *, note: str = "", **limits: Any) -> Any:
    """Return the field ``name`` of ``options`` as one of a request, with further ``limits`` and a ``note`` about it."""
    field = options.model_fields[name]
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    bounds: dict[str, Any] = {}
    for entry in field.metadata:
        if isinstance(entry, Ge):
            bounds["ge"] = entry.ge
        if isinstance(entry, Le):
            bounds["le"] = entry.le
    return Field(default, description=f"{field.description}{note}", **bounds, **limits)


_DAMPING = _declared(RecommendOptions, "popularity_damping", le=MAX_DAMPING, allow_inf_nan=False)
_DIVERSITY = _declared(
    RecommendOptions,
    "diversity",
    note=f"; above 0, the number of lists times k times candidates is at most {MAX_COMPARISONS:,}",
    allow_inf_nan=False,
)
_EXPLORATION = _declared(RecommendOptions, "exploration", allow_inf_nan=False)
_SEED = _declared(RecommendOptions, "seed", le=MAX_INTEGER)
_ON_UNKNOWN: Any = Field("popular", description=RecommendOptions.model_fields["on_unknown"].description)
Fraction = Annotated[float, Field(strict=True)]
"""A number in a body."""


_FilterText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=_PATTERN),
    described("one line of text, without control characters"),
]
"""Text of a filter. It is shorter, since the filters that were used last are kept."""
_Value = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-MAX_INTEGER, le=MAX_INTEGER)]
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | _FilterText
)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupLimit(_Body):
    """A limit of the rows with the same value of a column, such as an artist."""

    column: Text
    count: Count


class _Filter(_Body):
    column: _FilterText


class ValueFilter(_Filter):
    """A comparison of a column with a value, such as of "year" with "ge" and 1990.

    A column with lists, such as of tags, meets it if one of its values does, and "ne" if none is equal.
    """

    op: Literal["eq", "ne", "lt", "le", "gt", "ge"]
    value: _Value


class ListFilter(_Filter):
    """A comparison of a column with several values: it has one of them."""

    op: Literal["in"]
    value: list[_Value] = Field(min_length=1, max_length=MAX_VALUES, fail_fast=True)


Filter = Annotated[ValueFilter | ListFilter, Field(discriminator="op")]


class _Ranking(_Body):
    k: Count = _declared(RankingOptions, "k")
    where: list[Filter] = Field(
        default_factory=list, max_length=MAX_FILTERS, description="keep only rows that meet all of these filters"
    )
    allow: list[Id] = _declared(RankingOptions, "allow", max_length=MAX_LIST, fail_fast=True)
    deny: list[Id] = _declared(RankingOptions, "deny", max_length=MAX_LIST, fail_fast=True)
    max_per: GroupLimit | None = _declared(RankingOptions, "max_per")

    def _values(self) -> dict[str, Any]:
        """Return the options that all rankings have; they were validated with the request."""
        return {
            "k": self.k,
            "allow": tuple(map(str, self.allow)),
            "deny": tuple(map(str, self.deny)),
            "max_per": None if self.max_per is None else (self.max_per.column, self.max_per.count),
        }


class _Recommendations(_Ranking):
    exclude: Splits = _declared(RecommendOptions, "exclude")
    popularity_damping: Fraction = _DAMPING
    diversity: Fraction = _DIVERSITY
    exploration: Fraction = _EXPLORATION
    seed: Annotated[int, Field(strict=True), BeforeValidator(_whole)] = _SEED

    @cached_property
    def options(self) -> RecommendOptions:
        """The options of the ranking."""
        own: dict[str, Any] = {name: getattr(self, name) for name in RerankingOptions.model_fields}
        return RecommendOptions.model_construct(**self._values(), exclude=tuple(self.exclude), **own)


@with_config(ConfigDict(extra="forbid"))
class HistoryItem(TypedDict):
    """An item of a history. Negative weights are of items that were disliked: they are left out, not learned from."""

    id: Id
    weight: NotRequired[
        Annotated[float, Field(strict=True, ge=-1e6, le=1e6, allow_inf_nan=False, description="by default 1")]
    ]


def _check_comparisons(request: _Recommendations, queries: int) -> None:
    """Check that diversity takes no more than a bounded time.

    Raises:
        PydanticCustomError: it does.
    """
    if not request.diversity:
        return
    comparisons = queries * request.k * request.options.depth(request.k)
    if comparisons > MAX_COMPARISONS:
        raise PydanticCustomError(
            "too_many_comparisons",
            "With diversity, the number of lists times k times candidates should be at most {most}, which is {found} "
            "here: ask for fewer lists at once, or for shorter ones",
            {"most": f"{MAX_COMPARISONS:,}", "found": f"{comparisons:,}"},
        )


class KnownRequest(_Recommendations):
    """Recommendations for queries that were in training, such as customers, by ID."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [2, 3], "k": 5}]})

    ids: list[Id] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="who to recommend to")
    on_unknown: OnUnknown = _ON_UNKNOWN

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_comparisons(self, len(self.ids))
        return self


class NewRequest(_Recommendations):
    """Recommendations for queries that were not in training, or have interacted since, by their histories."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"histories": [[{"id": "Radiohead"}, {"id": "Björk", "weight": 3}]], "k": 5}]}
    )

    histories: list[Annotated[list[HistoryItem], Field(min_length=1, max_length=MAX_LIST, fail_fast=True)]] = Field(
        min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="what each of them likes"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_comparisons(self, len(self.histories))
        return self


RecommendRequest = KnownRequest | NewRequest


class SimilarRequest(_Ranking):
    """The nearest neighbors, by cosine, of rows of an entity."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["Radiohead"], "k": 5}]})

    ids: list[Id] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="whose neighbors to return")
    entity: Text | None = _declared(SimilarOptions, "entity")

    @cached_property
    def options(self) -> SimilarOptions:
        """The options of the ranking."""
        return SimilarOptions.model_construct(**self._values(), entity=self.entity)


class RankingQuery(_Body):
    """Parameters of a request for one ID."""

    id: Text = Field(description="an ID or, for an entity with names, a name")
    k: int = _declared(RankingOptions, "k", le=MAX_K)


class RecommendQuery(RankingQuery):
    """Parameters of a request for the recommendations of one query."""

    exclude: Splits = _declared(RecommendOptions, "exclude")
    popularity_damping: float = _DAMPING
    diversity: float = _DIVERSITY
    exploration: float = _EXPLORATION
    seed: int = _SEED
    on_unknown: Literal["error", "popular"] = _ON_UNKNOWN


class SimilarQuery(RankingQuery):
    """Parameters of a request for the neighbors of one row."""

    entity: Text | None = _declared(SimilarOptions, "entity")


class RowQuery(_Body):
    """Parameters of a request for rows by ID or name."""

    id: list[Text] = Field(
        min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="IDs or names; repeat it for several"
    )
    entity: Text | None = _declared(SimilarOptions, "entity")


class SearchQuery(_Body):
    """Parameters of a search for names or, for rows without one, IDs."""

    text: Text = Field(description="the first letters of words of the name or ID")
    k: int = Field(10, ge=1, le=MAX_QUERIES, description="rows to return")
    entity: Text | None = _declared(SimilarOptions, "entity")


class Row(BaseModel):
    """A row of an entity; ``id`` is null if it was deleted from the dataset."""

    id: int | str | None
    name: str | None = None


class ScoredRow(Row):
    """A row with its score: the model's, its count in train if it is popular, or the cosine with a similar row."""

    score: float


class Result(BaseModel):
    """The answer for one ID or history, or why there is none.

    ``is_fallback``: the ID is unknown or has no trained vector, and the items are the most popular.
    """

    id: int | str | None = None
    name: str | None = None
    items: list[ScoredRow] = Field(default_factory=list)
    error: str | None = None
    is_fallback: bool = False


class OneResult(BaseModel):
    """The answer for one ID, and the version of the model that gave it."""

    version: int
    result: Result


class Results(BaseModel):
    """The answers for several IDs or histories, in their order, and the version of the model that gave them."""

    version: int
    results: list[Result]


class Vector(Row):
    """The vector of a row."""

    vector: list[float]


class Vectors(BaseModel):
    """Vectors of rows, and the score that the model compares them by."""

    version: int
    entity: str
    score: ScoreKind
    vectors: list[Vector]


class FoundRows(BaseModel):
    """The rows that a search has found."""

    version: int
    entity: str
    rows: list[Row]


class EntityDescription(BaseModel):
    """An entity with vectors."""

    rows: int
    dim: int
    has_names: bool


class ModelDescription(BaseModel):
    """The model that is served."""

    version: int
    job: str
    model: str
    date: str
    score: ScoreKind
    query: str
    item: str
    entities: dict[str, EntityDescription]
    columns: list[str]
    indexes: list[ScoreKind]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok"] = "ok"
    version: int


class Problem(BaseModel):
    """Why a request was rejected."""

    detail: str


class FieldProblem(BaseModel):
    """What is wrong with a field: where it is, and why."""

    type: str
    loc: list[int | str]
    msg: str


class FieldProblems(BaseModel):
    """The first fields that are wrong."""

    detail: list[FieldProblem]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A filter or column is invalid."},
    403: {"model": Problem, "description": "A page of another site sent the request, or may have sent it."},
    404: {"model": Problem, "description": "There is no such row or entity, or none of a list or history."},
    422: {
        "model": FieldProblems,
        "description": "The request is not JSON, or a field is missing, unknown, or invalid.",
    },
    503: {"model": Problem, "description": "Too many requests are waiting, or no model is loaded yet."},
}
BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    413: {"model": Problem, "description": "The body is too large."},
    415: {"model": Problem, "description": "The body is not of the type application/json."},
}
