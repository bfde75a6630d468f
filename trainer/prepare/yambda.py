"""Set the options that read Yambda, a public set of music listening: columns, kinds of events, and published split.

    options = PrepareOptions.of(format="yambda", train="yambda/flat/50m/listens.parquet", out="data/listens")
    options.timestamp, options.hold_out_test            # filled in by ``with_yambda_values``, unless they are given

Ploshkin et al.: Yambda-5B, a large-scale multi-modal dataset for ranking and retrieval (arXiv 2505.22238, 2025).

Times are seconds since the first event, in steps of 5. A listen of at least half of a track is a ``listen_plus``, as in
the published code, whose split this is: test is the last day, valid the day before, each after a gap of 30 minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from crossfade.base.errors import InputError, OptionError
from crossfade.trainer.prepare.source_columns import check_columns

YAMBDA = "yambda"
EVENT = "event_type"
"""The column with the kind of an event: files of one kind lack it, and their names have the kind."""
PLAYED = "played_ratio_pct"
LISTEN_PLUS, LISTEN_PLUS_PERCENT = "listen_plus", 50
_KINDS = {
    "listens": "listen",
    "likes": "like",
    "dislikes": "dislike",
    "unlikes": "unlike",
    "undislikes": "undislike",
}
"""The kind of the events of each file of one kind."""
_ALL_KINDS = "multi_event"
"""The file of all kinds."""
_WEIGHTS = {LISTEN_PLUS: 1, "listen": 0, "like": 1, "dislike": -1, "unlike": 0, "undislike": 0}
_COLUMNS = {"query": "customer=uid", "item": "track=item_id", "timestamp": "timestamp"}
_EVENTS = {"event": EVENT, "event_weights": _WEIGHTS}
_SPLIT = {"hold_out_test": "after:25913599", "hold_out_valid": "after:25825399", "hold_out_gap": "1800"}


def with_yambda_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``values`` of options with those of Yambda where there are none.

    The split is left to the user who names files of valid or test, another hold-out of test, or a base dataset.
    """
    given = {name for name, value in values.items() if value not in (None, (), [], {})}
    filled: dict[str, Any] = dict(_COLUMNS)
    if "weight" not in given:
        filled |= _EVENTS
    if not given & {"hold_out", "hold_out_test", "valid", "test", "base"}:
        filled |= _SPLIT
    return {**values, **{name: value for name, value in filled.items() if name not in given}}


def yambda_files(option: str, pattern: str) -> list[str]:
    """Return what the files of a local folder are, or else ``pattern`` itself.

    Of a folder, that is each file of one kind, or the file of all kinds, which has the same events.

    Raises:
        OptionError: the folder, a value of ``option``, has neither.
    """
    folder = Path(pattern)
    if not folder.is_dir():
        return [pattern]
    for names in (_KINDS, (_ALL_KINDS,)):
        found = [str(path) for path in (folder / f"{name}.parquet" for name in names) if path.is_file()]
        if found:
            return found
    raise OptionError(
        option,
        found=pattern,
        problem="is a folder without files of Yambda",
        expected=f"a folder with {_file_names(_KINDS)}, or {_ALL_KINDS}.parquet, such as flat/50m",
    )


def check_yambda_files(option: str, files: Collection[object]) -> None:
    """Check that the ``files`` of a split have each event once.

    Raises:
        OptionError: there are the file of all kinds and one of them.
    """
    names = {_stem(file): str(file) for file in files}
    if _ALL_KINDS in names and (twice := next((names[name] for name in _KINDS if name in names), None)):
        raise OptionError(
            option,
            found=twice,
            problem=f"has events that {names[_ALL_KINDS]} has, too",
            fix="leave out one of the two",
        )


def kind_sql(file: object, columns: Collection[str]) -> str:
    """Return SQL of the kind of each event of ``file``, which has ``columns``.

    Raises:
        InputError: the file has no column of kinds, and no name that stands for one; or no column of what was played.
    """
    kind = _KINDS.get(_stem(file))
    if EVENT not in columns and kind is None:
        raise InputError(
            f"{file}: has no column '{EVENT}', so its name must be that of a kind: {_file_names(_KINDS)}; its columns "
            f"are: {', '.join(columns)}"
        )
    value = f"CAST({EVENT} AS VARCHAR)" if EVENT in columns else f"'{kind}'"
    if EVENT not in columns and kind != "listen":
        return value
    check_columns(str(file), list(columns), [PLAYED])
    return f"CASE WHEN {value} = 'listen' AND {PLAYED} >= {LISTEN_PLUS_PERCENT} THEN '{LISTEN_PLUS}' ELSE {value} END"


def _stem(file: object) -> str:
    return PurePosixPath(str(file)).stem


def _file_names(names: Collection[str]) -> str:
    return ", ".join(f"{name}.parquet" for name in names)
