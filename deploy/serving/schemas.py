"""Requests and responses as JSON, with the limits of what a request may ask for.

The options of rankings are made of the options' classes (``trainer/recommend/options.py``), whose names, defaults,
limits, and descriptions they have; here are only their types in JSON, and further limits. In a body, numbers are no
text: bodies are validated with ``strict=True``, and addresses without.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NotRequired, Self

from annotated_types import Ge, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    create_model,
    model_validator,
    with_config,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from crossfade.base.validation import described
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.split_names import ALL_SPLITS, SplitName
from crossfade.trainer.recommend.options import OnUnknown, RankingOptions, RecommendOptions, SimilarOptions

MAX_K, MAX_QUERIES, MAX_LIST, MAX_TEXT, MAX_DAMPING = 1000, 100, 1000, 1000, 100
MAX_FILTERS, MAX_VALUES = 8, 100
MAX_COMPARISONS = 2_000_000
"""Places times candidates of a request with diversity. With 64 columns each costs up to 50 ns, so that all take the
ranking thread, for which other requests wait, about a tenth of a second."""
MAX_INTEGER = 2**53 - 1
"""Larger integers are not exact in JSON; IDs may be text instead."""
_MAX_KEYS = 16
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


Integer = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[int, Field(strict=True, ge=-MAX_INTEGER, le=MAX_INTEGER), BeforeValidator(_whole)] | Text
"""An ID or, for an entity with names, a name."""


def _splits(value: object) -> object:
    """Return no split for the empty text that an address has for none: ``exclude=``."""
    return [] if value in ("", [""]) else value


Splits = Annotated[list[SplitName], Field(max_length=len(ALL_SPLITS), fail_fast=True), BeforeValidator(_splits)]
"""All splits, or none: a version has the histories of all together."""


def _few_keys(value: object) -> object:
    """Reject an object with more keys than a request has, before each unknown key is reported."""
    if isinstance(value, dict) and len(value) > _MAX_KEYS:
        raise PydanticCustomError("too_long", "Objects should have at most {most} keys", {"most": _MAX_KEYS})
    return value


_FilterText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=_PATTERN),
    described("one line of text, without control characters"),
]
"""Text of a filter. It is shorter, since the filters that were used last are kept."""
_Value = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-(2**127), lt=2**127)]  # exact, as IDs of 64 bits need it
    | Annotated[float, Field(strict=True, allow_inf_nan=False)]
    | _FilterText
)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    _check_keys = model_validator(mode="before")(_few_keys)


class GroupLimit(_Request):
    """A limit of the rows with the same value of a column, such as an artist."""

    column: Text
    count: Integer = Field(ge=1, le=MAX_K)


class _Filter(_Request):
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


_WHERE: Any = Field(
    default_factory=list, max_length=MAX_FILTERS, description="keep only rows that meet all of these filters"
)
_LISTS: dict[str, Any] = {"allow": list[Id], "deny": list[Id], "max_per": GroupLimit | None}
_TYPES: dict[str, Any] = {
    "k": Integer,
    "entity": Text | None,
    "exclude": Splits,
    "popularity_damping": Finite,
    "diversity": Finite,
}
_IN_ADDRESS = {name: _TYPES[name] for name in ("k", "entity", "exclude")}
"""What an address may choose: only look-ups, since any site in a browser may lead to it."""
_LIMITS: dict[str, dict[str, Any]] = {
    "k": {"le": MAX_K},
    "allow": {"max_length": MAX_LIST, "fail_fast": True},
    "deny": {"max_length": MAX_LIST, "fail_fast": True},
    "popularity_damping": {"le": MAX_DAMPING},
}
"""Limits of requests, besides the limits of the options."""
_NOTES = {"diversity": f"; above 0, the number of lists times k times candidates is at most {MAX_COMPARISONS:,}"}


class _Ranking(_Request):
    """What requests for rankings share: the options that their fields are made of."""

    @cached_property
    def options(self) -> Any:
        """The options of the ranking; they were validated with the request."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name in (*_TYPES, *_LISTS)}
        if limit := values.get("max_per"):
            values["max_per"] = limit.column, limit.count
        values |= {name: tuple(map(str, values[name])) for name in ("allow", "deny", "exclude") if name in values}
        kind = RecommendOptions if "exclude" in values else SimilarOptions
        return kind.model_construct(**values)


def _ranking(options: type[RankingOptions], types: dict[str, Any]) -> Any:
    """Return a request with the fields of ``options`` that have ``types``."""
    fields: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        if name in types:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            limits: dict[str, Any] = {}
            for bound in field.metadata:
                if isinstance(bound, Ge):
                    limits["ge"] = bound.ge
                elif isinstance(bound, Le):
                    limits["le"] = bound.le
            limits |= _LIMITS.get(name, {})
            description = f"{field.description}{_NOTES.get(name, '')}"
            fields[name] = types[name], Field(default, description=description, **limits)
    return create_model(f"_{options.__name__}", __base__=_Ranking, **fields)


_Similar, _SimilarInAddress = (_ranking(SimilarOptions, types) for types in (_TYPES | _LISTS, _IN_ADDRESS))
_Recommend, _RecommendInAddress = (_ranking(RecommendOptions, types) for types in (_TYPES | _LISTS, _IN_ADDRESS))
_ON_UNKNOWN: Any = Field("popular", description=RecommendOptions.model_fields["on_unknown"].description)


@with_config(ConfigDict(extra="forbid"))
class HistoryItem(TypedDict):
    """An item of a history. Negative weights are of items that were disliked: they are left out, not learned from."""

    id: Id
    weight: NotRequired[
        Annotated[float, Field(strict=True, ge=-1e6, le=1e6, allow_inf_nan=False, description="by default 1")]
    ]


History = Annotated[
    list[Annotated[HistoryItem, BeforeValidator(_few_keys)]],
    Field(min_length=1, max_length=MAX_LIST, fail_fast=True),
]


class _RecommendToMany(_Recommend):  # type: ignore[valid-type, misc]
    """What requests for several lists share: filters, and a bound of the time that diversity takes."""

    where: list[Filter] = _WHERE

    @model_validator(mode="after")
    def _check_comparisons(self) -> Self:
        options = self.options
        lists = self.histories if isinstance(self, NewRequest) else self.ids
        comparisons = len(lists) * options.k * options.depth(options.k)
        if options.diversity and comparisons > MAX_COMPARISONS:
            raise PydanticCustomError(
                "too_many_comparisons",
                "With diversity, the number of lists times k times candidates should be at most {most}, which is "
                "{found} here: ask for fewer lists at once, or for shorter ones",
                {"most": f"{MAX_COMPARISONS:,}", "found": f"{comparisons:,}"},
            )
        return self


class KnownRequest(_RecommendToMany):
    """Recommendations for queries that were in training, such as customers, by ID."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": [2, 3], "k": 5}]})

    ids: list[Id] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="who to recommend to")
    on_unknown: OnUnknown = _ON_UNKNOWN


class NewRequest(_RecommendToMany):
    """Recommendations for queries that were not in training, or have interacted since, by their histories."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"histories": [[{"id": "Radiohead"}, {"id": "Björk", "weight": 3}]], "k": 5}]}
    )

    histories: list[History] = Field(
        min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="what each of them likes"
    )


class SimilarRequest(_Similar):  # type: ignore[valid-type, misc]
    """The nearest neighbors, by cosine, of rows of an entity."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["Radiohead"], "k": 5}]})

    where: list[Filter] = _WHERE
    ids: list[Id] = Field(min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="whose neighbors to return")


class _OfOne(BaseModel):
    id: Text = Field(description="an ID or, for an entity with names, a name")

    @property
    def ids(self) -> list[str]:
        """The only ID."""
        return [self.id]

    @property
    def where(self) -> list[Filter]:
        """No filters: an address has none."""
        return []


class RecommendQuery(_RecommendInAddress, _OfOne):  # type: ignore[valid-type, misc]
    """Parameters of a request for the recommendations of one query."""

    on_unknown: Literal["error", "popular"] = _ON_UNKNOWN


class SimilarQuery(_SimilarInAddress, _OfOne):  # type: ignore[valid-type, misc]
    """Parameters of a request for the neighbors of one row."""


RecommendRequest = KnownRequest | NewRequest | RecommendQuery
Neighbors = SimilarRequest | SimilarQuery


class RowQuery(_Request):
    """Parameters of a request for rows by ID or name."""

    id: list[Text] = Field(
        min_length=1, max_length=MAX_QUERIES, fail_fast=True, description="IDs or names; repeat it for several"
    )
    entity: Text | None = Field(None, description=SimilarOptions.model_fields["entity"].description)


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


class FieldProblem(BaseModel):
    """What is wrong with a field: where it is, and why."""

    type: str
    loc: list[int | str]
    msg: str


class Problem(BaseModel):
    """Why a request was rejected: in a sentence, or by the first fields that are wrong."""

    detail: str | list[FieldProblem]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "The request is invalid, or something that it names is unknown."},
    503: {"model": Problem, "description": "Too many requests are waiting."},
}
