"""Play three days of a service that keeps a model fresh (``crossfade demo --fresh``), on synthetic events.

FOLDER/  fresh.yaml  events/2020-01-03.parquet  events/2020-01-04.parquet  …  services/fresh/  data/fresh-events/

Shapes: N events.
"""

from __future__ import annotations

import glob
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.base.command_line import command_line
from crossfade.base.text import counted
from crossfade.terminal import print_line, print_lines

if TYPE_CHECKING:
    import pyarrow as pa

_SERVICE, _RAW, _FOLDER = "fresh.yaml", "data/fresh-events", "services/fresh"
_SERVICE_TEXT = """\
name: fresh
folder: {folder}
events: [{events}]
settle_seconds: 0  # files have these names once they are complete
prepare:
  query: customer
  item: track
  timestamp: timestamp
  event: event
  event_weights: play=1,like=3,library_add=5,skip=-1
  names: {names}
job: {{model: {{dim: 32}}, train: {{epochs: 5}}}}
increment_job: {{train: {{epochs: 3}}}}
"""
_SIZE = ("--queries", "3000", "--items", "2000", "--interactions", "150000")
_DAYS, _FIRST_DAYS = 5, 3
"""Days of all events, and those of the first file."""
_DAY_SECONDS = 86_400


def play_days(folder: Path, call: Callable[..., int]) -> int:
    """Let the events of each day arrive in ``folder``, and refresh the service; ``call`` prints and runs a command."""
    raw, events, service = folder / _RAW, folder / "events", folder / _SERVICE
    if not raw.exists() and (code := call("synthesize", *_SIZE, "--raw-events", "--out", raw)):
        return code
    if not service.exists():
        service.write_text(_service_text(folder.absolute()), encoding="utf-8")
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)
    days = dict(_cut(raw / "events"))
    events.mkdir(parents=True, exist_ok=True)
    for name in days:
        (events / name).unlink(missing_ok=True)
    for name, table in days.items():
        _write(table, events / name)
        print_line()
        print_line(f"{events / name} arrives: {counted(table.num_rows, 'event')}")
        if code := call("refresh", service):
            return code
    code = call("refresh", service, "--status")
    print_line()
    print_lines(_next_steps(folder, table["customer"][0].as_py()))
    return code


def _service_text(folder: Path) -> str:
    """Return the file of the service in ``folder``, whose paths are absolute, so that it works from everywhere."""
    names = f"track={folder / _RAW}/names/track.parquet:id:name"
    paths = {"folder": str(folder / _FOLDER), "events": f"{glob.escape(str(folder))}/events/*.parquet", "names": names}
    return _SERVICE_TEXT.format(**{key: json.dumps(path, ensure_ascii=False) for key, path in paths.items()})


def _cut(raw: Path) -> Iterator[tuple[str, pa.Table]]:
    """Yield the events of the first days and of each later one, with the name of their file.

    Synthetic events span a year, which is played as ``_DAYS`` days, so that a day has enough of them.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from crossfade.trainer.prepare.synthetic_draws import SPAN_SECONDS, START_SECONDS
    from crossfade.trainer.prepare.synthetic_events import TIMESTAMP

    table = pq.read_table(raw)
    column = table.column_names.index(TIMESTAMP)
    since_N = table[TIMESTAMP].to_numpy().astype("datetime64[ms]").astype(np.int64) - START_SECONDS * 1000
    since_N = since_N * _DAYS * _DAY_SECONDS // SPAN_SECONDS
    at = pa.array(since_N + START_SECONDS * 1000).cast(table.schema.field(column).type)
    table = table.set_column(column, TIMESTAMP, at)
    day_N = np.maximum(since_N // (_DAY_SECONDS * 1000), _FIRST_DAYS - 1)
    for day in range(_FIRST_DAYS - 1, _DAYS):
        date = datetime.fromtimestamp(START_SECONDS + day * _DAY_SECONDS, UTC)
        yield f"{date:%Y-%m-%d}.parquet", table.filter(pa.array(day_N == day))


def _write(table: pa.Table, path: Path) -> None:
    """Write an event file as services should: under another name until it is complete."""
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, partial)
    partial.replace(path)


def _next_steps(folder: Path, customer: str) -> list[str]:
    service, ids = folder / _FOLDER, folder / "ids.txt"
    forget = f"echo {shlex.quote(customer)} > {shlex.quote(str(ids))} && {command_line('forget', service, ids=ids)}"
    steps = {
        command_line("serve", service): "answer with the last version, and follow later ones",
        command_line("refresh", folder / _SERVICE): "take files that you have added to events",
        command_line("rollback", folder / _SERVICE): "return to the version before",
        forget: "delete a customer; the next refresh makes a version without them",
    }
    return ["next:", *(line for command, purpose in steps.items() for line in (f"  # {purpose}", f"  {command}"))]
