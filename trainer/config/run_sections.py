"""Sections of the job file that define how a run is executed: checkpoints, cluster, metrics and tracking."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from crossfade.base.validation import described
from crossfade.kvstore.layout import DEFAULT_KEY_BYTES, MAX_KEY_BYTES
from crossfade.trainer.config.fields import AtLeastOne, Positive, Section


class CheckpointConfig(Section):
    """When checkpoints are written, where, and what a run starts from."""

    path: str | None = Field(
        None,
        description="folder or s3:// URI for checkpoints; default: RUN/checkpoints",
        examples=["s3://music/checkpoints/plays"],
    )
    interval_seconds: Positive | None = Field(
        300.0, description="seconds between checkpoints; null: only at the end and when the run is stopped"
    )
    interval_steps: AtLeastOne | None = Field(None, description="steps between checkpoints, in addition to the seconds")
    keep_latest: AtLeastOne = Field(3, description="number of newest checkpoints to keep")
    warm_start_from: str | None = Field(
        None,
        description="checkpoint, or folder of checkpoints, whose rows initialize a new run; rows that are not in it, "
        "are vacant in the data or belong to another ID now are initialized at random",
    )


class ClusterConfig(Section):
    """Processes of a distributed job. Without servers, one process trains and holds the tables."""

    servers: Annotated[int, Field(ge=0, le=1024, strict=True)] = Field(
        0, description="processes that hold the tables; 0: train in one process"
    )
    workers: Annotated[int, Field(ge=1, le=1024, strict=True)] = Field(
        1, description="processes that compute gradients"
    )
    host: str = Field("127.0.0.1", description="address that roles listen on and reach each other at")
    scheduler_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        0, description="port of the scheduler, if hosts are several; 0: any free port"
    )
    max_key_bytes: Annotated[int, Field(ge=1024, le=MAX_KEY_BYTES)] = Field(
        DEFAULT_KEY_BYTES, description="largest part of a table, in bytes, stored under one key"
    )
    hosts: AtLeastOne = Field(1, description="hosts that share the roles; the job starts when their agents have joined")
    one_role_per_host: bool = Field(
        False,
        description="place each server and worker on its own host, next to the coordinator's, as containers do; the "
        "number of hosts follows from that",
    )
    host_timeout_seconds: Positive | None = Field(
        None,
        description="seconds to wait for lost hosts, since the last host joined or left, before their roles move to "
        "the remaining ones; null: no limit",
    )
    standby_timeout_seconds: Positive | None = Field(
        60.0,
        description="seconds without a sign of life from the command that runs the job, as when its host is frozen, "
        "before a standby takes over; null: only once it has ended",
    )
    coordinator_address: str | None = Field(
        None,
        description="HOST:PORT at which agents on other hosts reach the coordinator; needs CROSSFADE_TOKEN",
        examples=["10.0.0.1:7070"],
    )
    shared_run_dir: bool = Field(
        True,
        description="whether the run folder is on a file system that all hosts share and that outlives them; false: "
        "hosts get the job from the coordinator, and the best embeddings stay with the checkpoints until the run ends",
    )
    slow_host_timeout_seconds: Positive | None = Field(
        1800.0,
        description="seconds for which a role may take more than twice as long as the others of its kind for the same "
        "work before its host is drained, if the other hosts suffice for the job; null: no limit",
    )
    max_restarts: Annotated[int, Field(ge=0, strict=True)] = Field(
        5, description="consecutive restarts without a new checkpoint after which the job fails"
    )
    stall_timeout_seconds: Positive = Field(
        600.0,
        description="seconds without a step, evaluation or checkpoint, startup included, before the job is restarted",
    )
    grace_period_seconds: Positive = Field(
        60.0, description="seconds a job that is asked to stop may take to write its checkpoint"
    )
    filter_ports: bool = Field(
        True,
        description="whether roles on several hosts drop packets from other addresses than those of the job's hosts; "
        "false: where addresses are translated on the way",
    )

    @model_validator(mode="after")
    def _check_servers(self) -> ClusterConfig:
        if self.workers > 1 and self.servers == 0:
            raise ValueError(f"{self.workers} workers need at least one server: set cluster.servers")
        return self

    @model_validator(mode="after")
    def _check_hosts(self) -> ClusterConfig:
        if self.one_role_per_host and self.hosts > 1:
            raise ValueError(
                f"hosts is {self.hosts}, but one_role_per_host determines the number of hosts: set only one of them"
            )
        return self

    @property
    def host_count(self) -> int:
        """Number of hosts of the complete job, the coordinator's included."""
        return 1 + self.servers + self.workers if self.one_role_per_host else self.hosts


class MetricsConfig(Section):
    """Where a run publishes its Prometheus metrics."""

    port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = Field(
        0,
        description="port of /metrics, /healthz and /targets; 0: any free port, as for every role that an agent "
        "starts; null: no endpoint",
    )
    host: str | None = Field(
        None, description="address the endpoint listens on; default: the role's own, which is cluster.host on one host"
    )
    pushgateway: (
        Annotated[
            str,
            Field(pattern=r"^https?://[^@\s]+$"),
            described("a URL such as http://10.0.0.5:9091, without user and password"),
        ]
        | None
    ) = Field(
        None,
        description="http:// or https:// URL of a Pushgateway that receives each process's final values",
        examples=["http://pushgateway:9091"],
    )


def _check_no_credentials(uri: str) -> str:
    if set(uri) & set("@?#"):
        raise ValueError(
            "expected an address without credentials and query, since job.yaml keeps it: set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return uri


def _check_tensorboard(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and value and "://" not in value):
        return value
    raise ValueError(f"expected true, false or a folder of this host's file systems, but found {value!r}")


class TrackingConfig(Section):
    """Where a run is recorded as an experiment, by the command that runs it: MLflow, TensorBoard or both."""

    mlflow: (
        Annotated[
            str,
            Field(pattern=r"^(https?://\S+|databricks(://[\w-]+)?)$"),
            AfterValidator(_check_no_credentials),
            described("a URL such as http://mlflow:5000, databricks or databricks://PROFILE"),
        ]
        | None
    ) = Field(
        None,
        description="tracking server of MLflow: an http:// or https:// URL, databricks or databricks://PROFILE; "
        "credentials are those of the environment; null: none",
        examples=["http://mlflow:5000"],
    )
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        "crossfade", description="experiment of the tracking server that the run belongs to"
    )
    upload_embeddings: bool = Field(
        False, description="whether the tracking server gets the embeddings of the finished run as an artifact"
    )
    tensorboard: Annotated[bool | str, BeforeValidator(_check_tensorboard)] = Field(
        False,
        description="whether to write event files for TensorBoard, to RUN/tensorboard; or a folder: FOLDER/NAME-ID",
    )
