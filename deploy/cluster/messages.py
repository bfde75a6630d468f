"""What agents and the coordinator say to each other: an agent reports, and the answer is its order.

Orders say what a host should be running, not what to do next, so that a lost or repeated message does no harm.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from deploy.topology import AcceptedRoles
from trainer.runs.events import Event, parse_event, to_json

MAX_MESSAGE = 8192
MAX_EVENTS = 200
"""In one report; what is left follows in the next."""

Action = Literal["wait", "run", "stop", "leave"]
RoleState = Literal["running", "done"]


def _read_event(value: Any) -> Event:
    if isinstance(value, Event):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected an event, but found {type(value).__name__}")
    return parse_event(value)


EventField = Annotated[Event, PlainValidator(_read_event), PlainSerializer(to_json)]
"""An event, which is a JSON object in the message."""


class _Message(BaseModel):
    # A loss may be infinite, and JSON as Python writes it can say so.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="constants")


class Failure(_Message):
    """Why a role, or a host, has failed."""

    message: str = Field(max_length=MAX_MESSAGE)
    details: str = Field("", max_length=MAX_MESSAGE, description="where to read more")
    exit_code: int = 1
    restart: bool = Field(True, description="whether another generation may do better")
    checkpoint: str | None = Field(None, description="one that turned out damaged: not to be loaded again")

    def explain(self) -> str:
        """The message with its details."""
        return f"{self.message} ({self.details})" if self.details else self.message


class NumberedEvent(_Message):
    """An event of a role, numbered by its agent so that it counts once however often it is sent."""

    number: int
    generation: int
    role: str
    event: EventField


class Heartbeat(_Message):
    """What an agent says. ``number`` grows from report to report: one that comes late is known by it."""

    agent: str
    host: str
    address: str
    accepted_roles: AcceptedRoles = Field("all", description="the kinds of roles that it takes")
    number: int
    coordinator: str | None = Field(None, description="the one that the agent has heard of last")
    generation: int | None = Field(None, description="the one whose roles it runs")
    ended: int = Field(0, description="the newest generation whose roles it has ended")
    roles: dict[str, RoleState] = {}
    events: list[NumberedEvent] = Field([], max_length=MAX_EVENTS)
    failure: Failure | None = None
    metrics: str | None = Field(None, description="where the agent's own metrics can be scraped, HOST:PORT")
    leaving: bool = Field(False, description="its roles have ended, and no report of it will follow")
    notice: str | None = Field(None, max_length=MAX_MESSAGE, description="why its host will soon be gone")
    checkpoints_requested: int = Field(0, description="how often it has wanted a checkpoint: its host may soon be gone")


class Endpoint(_Message):
    """Where the scheduler of a generation listens."""

    host: str
    port: int


class DesiredState(_Message):
    """What an agent is to do.

    wait: have no roles. run: have those of ``generation``. stop: ask its workers to stop. leave: have no roles and end.
    """

    coordinator: str
    do: Action
    acknowledged: int = Field(0, description="the newest event that the coordinator has")
    generation: int = 0
    roles: list[str] = []
    scheduler: Endpoint | None = None
    rendezvous: str | None = Field(None, description="HOST:PORT/SECRET where workers meet for Horovod, if they do")
    servers: int = 0
    workers: int = 0
    checkpoint: str | None = None
    files: dict[str, str] = Field({}, description="of the run folder, for who joins and does not share it")
    job: str = Field("", description="SHA-256 of the job file that the roles must find")
    checkpoints_requested: int = Field(0, description="how often a checkpoint has been asked for out of turn")
    exit_code: int = 0
    message: str = ""
