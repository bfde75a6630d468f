"""The messages between agents and the coordinator: heartbeats, and the desired state that answers them.

A desired state describes what a host should be running, not what to do next, so lost or repeated messages are
harmless.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from crossfade.base.text import MAX_ERROR
from crossfade.deploy.topology import AcceptedRoles
from crossfade.trainer.runs.events import Event, parse_event, to_json

MAX_MESSAGE = 8192
MAX_EVENTS = 200
"""Maximum number of events in one heartbeat; the others follow in the next."""

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
    # A loss may be infinite: Python writes and reads that in JSON, although the standard has no such number.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, ser_json_inf_nan="constants")


class Failure(_Message):
    """Why a role, or a host, failed."""

    message: str = Field(max_length=MAX_MESSAGE)
    details: str = Field("", max_length=MAX_MESSAGE, description="where to read more")
    exit_code: int = 1
    restart: bool = Field(True, description="whether another generation may succeed")
    checkpoint: str | None = Field(None, description="a corrupt checkpoint, which must not be loaded again")
    role: str | None = Field(None, max_length=64, description="the role that failed, if it is known")
    host: str | None = Field(None, description="the host that was lost")
    cause: str | None = Field(None, max_length=MAX_ERROR, description="how the role ended; None: as ``message`` says")
    error: str | None = Field(None, max_length=MAX_ERROR, description="last line of the role's error")
    log: str | None = Field(None, max_length=MAX_MESSAGE, description="path of the role's log")

    def explain(self) -> str:
        """Return the message with its details."""
        return f"{self.message} ({self.details})" if self.details else self.message


class NumberedEvent(_Message):
    """An event of a role, numbered by its agent so that it counts once however often it is sent."""

    number: int
    generation: int
    role: str
    event: EventField


class Heartbeat(_Message):
    """What an agent reports. ``number`` grows from one heartbeat to the next, so that a late one can be ignored."""

    agent: str
    host: str
    address: str
    accepted_roles: AcceptedRoles = Field("all", description="the kinds of roles that the host accepts")
    number: int
    coordinator: str | None = Field(None, description="the coordinator that answered last")
    generation: int | None = Field(None, description="the generation whose roles it runs")
    ended_generation: int = Field(0, description="the newest generation whose roles it has ended")
    roles: dict[str, RoleState] = {}
    events: list[NumberedEvent] = Field([], max_length=MAX_EVENTS)
    failure: Failure | None = None
    metrics_address: str | None = Field(None, description="where the agent's own metrics can be scraped, HOST:PORT")
    leaving: bool = Field(False, description="whether its roles have ended and this is its last heartbeat")
    interruption_notice: str | None = Field(
        None, max_length=MAX_MESSAGE, description="why its host is about to be reclaimed"
    )


class Endpoint(_Message):
    """Where the scheduler of a generation listens."""

    host: str
    port: int


class DesiredState(_Message):
    """What an agent should be running.

    wait: no roles. run: the roles of ``generation``. stop: the same, but its workers are to stop. leave: no roles, and
    the agent ends.
    """

    coordinator: str
    action: Action
    acknowledged_event: int = Field(0, description="the newest event that the coordinator has received")
    generation: int = 0
    roles: list[str] = []
    scheduler: Endpoint | None = Field(None, description="None: the workers hold the tables, and need none")
    rendezvous: str | None = Field(
        None, repr=False, description="HOST:PORT/SECRET where workers meet, if they connect to each other"
    )
    servers: int = 0
    workers: int = 0
    checkpoint: str | None = None
    files: dict[str, str] = Field({}, description="files of the run folder by name, for hosts that do not share it")
    job_digest: str = Field("", description="SHA-256 of the job file that the roles must find")
    secret: str = Field("", repr=False, description="what workers of the generation sign commands with")
    hosts: list[str] = Field([], description="addresses from which the roles of the generation connect")
    exit_code: int = 0
    message: str = ""
