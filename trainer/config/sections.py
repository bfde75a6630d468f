"""Sections of the job file, and the types of their fields.

Model, negatives, and optimizer define what is learned; checkpoints, cluster, metrics, and tracking how a run is
executed.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from crossfade.base.errors import command
from crossfade.base.validation import described
from crossfade.kvstore.mxnet.server_protocol import DEFAULT_KEY_BYTES, MAX_KEY_BYTES
from crossfade.kvstore.optimizer_spec import OptimizerKind
from crossfade.trainer.config.score import ScoreKind
from crossfade.trainer.data.time_values import TimeSpan

Auto = Literal["auto"]
"""A value that follows from others or from the size of the dataset; see ``resolve`` in ``auto_values.py``."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"),
    described("a letter, then letters, digits, '_' and '-'"),
]
TimeValue = Annotated[
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | Annotated[str, Field(strict=True)],
    # YAML turns text that looks like a date into one.
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),
]


def _check_span(value: object) -> object:
    try:
        TimeSpan.parse(value)
    except ValueError:
        raise ValueError(
            f"expected days or hours, such as 30d or 36h, or an integer from 1, but found {value!r:.100}"
        ) from None
    return value


Span = Annotated[int | str, BeforeValidator(_check_span)]


_Factor = Annotated[float, Field(strict=True, ge=-100, le=100)]


def _off_if_false(value: object) -> object:
    return "off" if value is False else value  # YAML reads a plain off as false


Value = TypeVar("Value")


def resolved(value: Value | Auto) -> Value:
    """Return a value of a job that ``resolve`` in ``auto_values.py`` has returned, where none is ``auto``."""
    if value == "auto":
        raise AssertionError("a value of the job is still auto")
    return value


class Section(BaseModel):
    """A section of the job file: immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|gpu|gpu:(0|[1-9][0-9]?))$"),
    described("auto, cpu, gpu, or a GPU by number such as gpu:1"),
]
EngineName = Literal["auto", "cpu", "mxnet", "torch"]


HISTORY = "history"
"""The name in ``model.query_features`` of the mean of the items that a query has interacted with."""
LossKind = Literal["bpr", "logistic", "softmax", "warp"]


class DenseConfig(Section):
    """Dense layers that each side's vectors pass through before they are scored: normalized, ReLU, and residual."""

    query: list[AtLeastOne] = Field(
        [], description="widths of the query side's layers, such as [128, 64]; the last equals model.dim; default: none"
    )
    item: list[AtLeastOne] = Field([], description="widths of the item side's layers, in the same form")
    learning_rate: Auto | Positive = Field(
        "auto",
        description="learning rate of the layers, on the optimizer's schedule; auto: optimizer.learning_rate if that "
        "is given, 0.015 otherwise",
    )


class HistoryConfig(Section):
    """The history of a query, where ``model.query_features`` names it: items that it has interacted with."""

    length: AtLeastOne = Field(
        20,
        description="items of a history at most: the last ones before the interaction or, in a dataset without "
        "timestamps, other items of the same query",
    )
    half_life: Positive | None = Field(
        None,
        description="number of newer items after which an item counts for half as much; needs timestamps; null: all "
        "items count alike",
    )


class ModelConfig(Section):
    """The two-tower embedding model: a vector per query and per item, compared by a score."""

    dim: AtLeastOne = Field(64, description="columns of every embedding")
    score: ScoreKind = Field("cosine", description="score function: dot, cosine, or euclidean (-squared distance)")
    temperature: Auto | Positive = Field(
        "auto",
        description="divisor of the score in the loss; auto: with cosine scores 0.588 * lift^-0.45 * (items per "
        f"query)^-0.25, within 0.05 to 0.4, with the lift of co-occurrence that {command('prepare')} measures (if it "
        "did not: 1.67 * items^-0.155 * interactions^-0.075, at most 0.2); with others 0.17",
    )
    popularity: Annotated[Auto | Literal["off"] | _Factor, BeforeValidator(_off_if_false)] = Field(
        "auto",
        description="factor of log(1 + plays of an item) in the scores of a trained model, of either sign, whose "
        "other part is score / temperature; auto: the factor, and the latest share of train to count plays in, that "
        "rank best on valid, if that gains more than chance would; off: none, as with euclidean scores",
    )
    init_std: Positive = Field(0.1, description="standard deviation of the random initial values of a row")
    initialization: Literal["auto", "random", "spectral"] = Field(
        "auto",
        description="what rows begin with. random: random values; spectral: the directions of the leading singular "
        "vectors of the interactions, for which the first process holds all interactions in memory, and which a warm "
        "start does not use; auto: spectral for IDs alone with cosine scores, the softmax loss, and adam, up to 100 "
        "million interactions, 2 million items, and a lift of 4, and random otherwise",
    )
    query_features: list[Name] = Field(
        [],
        description="tables whose embeddings make up a query's vector, such as [customer, hour]: data.query, its "
        "features, context of events, and history, the mean of items that it has interacted with; default: "
        "[data.query]",
    )
    history: HistoryConfig = HistoryConfig()
    item_features: list[Name] = Field(
        [],
        description="tables whose embeddings make up an item's vector, such as [track, artist, tag]: data.item, which "
        "may be left out, and its features; default: [data.item]",
    )
    query_content: list[Name] = Field(
        [],
        description=f"content columns of data.query, numbers and vectors that {command('prepare', content=True)} "
        "added: a linear layer maps them to model.dim, as one more part of a query's vector",
    )
    item_content: list[Name] = Field([], description="content columns of data.item, such as [tempo, audio], likewise")
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="fraction of rows whose ID embedding is dropped in a step, among rows that have features, so that "
        "features learn to represent new rows (DropoutNet)",
    )
    dense: DenseConfig = DenseConfig()

    @property
    def has_dense_layers(self) -> bool:
        """Whether a side has dense layers, or a content layer."""
        return any((self.dense.query, self.dense.item, self.query_content, self.item_content))

    @property
    def has_towers(self) -> bool:
        """Whether a side names parts of its vectors, or has layers, so that vectors may be more than rows of tables."""
        return bool(self.query_features or self.item_features) or self.has_dense_layers

    @model_validator(mode="after")
    def _check_popularity(self) -> ModelConfig:
        if self.score == "euclidean" and isinstance(self.popularity, float):
            raise ValueError(
                f"popularity is {self.popularity:g}, which is a part of cosine and dot scores only: set "
                "model.popularity to off, or model.score to cosine"
            )
        return self

    @model_validator(mode="after")
    def _check_initialization(self) -> ModelConfig:
        if self.initialization == "spectral" and (self.score != "cosine" or self.has_towers):
            raise ValueError(
                "initialization is spectral, which is for IDs that are compared by their cosine: set it to random, or "
                "leave out other scores, features, content, and layers"
            )
        return self

    @model_validator(mode="after")
    def _check_last_width(self) -> ModelConfig:
        for side, widths in (("query", self.dense.query), ("item", self.dense.item)):
            if widths and widths[-1] != self.dim:
                raise ValueError(f"dense.{side} is {widths}: its last width must equal dim, which is {self.dim}")
        return self


class NegativesConfig(Section):
    """The negatives that each interaction is contrasted with."""

    kind: Literal["auto", "shared", "per_example", "in_batch", "mixed", "all"] = Field(
        "auto",
        description="source of negatives. shared: one sampled pool for all examples of a step; per_example: samples "
        "for each example; in_batch: items of the other examples of the same step and partition, about "
        "train.batch_size / data.partitions; mixed: a pool and in_batch; all: every item, at the cost of the item "
        "table; auto: for softmax, all up to 32,768 items (131,072 in a grouped dataset, if its queries times items "
        "are at most 8,192 times its interactions) and in_batch with logq_correction above, or with histories, since "
        "each example is then scored by itself; for other losses, shared",
    )
    count: AtLeastOne = Field(4096, description="samples in the pool, or per example; not used by in_batch and all")
    sampling: Literal["uniform", "popularity"] = Field(
        "uniform", description="distribution that items are sampled from"
    )
    power: Annotated[float, Field(ge=0, le=4)] = Field(
        0.75, description="exponent of popularity sampling: an item is drawn with probability ∝ count^power"
    )
    logq_correction: bool = Field(
        False,
        description="subtract the log of an item's expected number of draws from its score as a negative, so that the "
        "sampled softmax estimates the one over all items",
    )


class OptimizerConfig(Section):
    """The row-sparse optimizer and its learning rate schedule."""

    kind: OptimizerKind = Field(
        "adam", description="update rule: sgd, adagrad, rowwise_adagrad (4 bytes of state per row) or adam"
    )
    learning_rate: Auto | Positive = Field(
        "auto",
        description="peak learning rate, per step; auto: 0.2 with cosine scores, whose rows are at most 1 long, and "
        "0.015 with others, or half of that with checkpoint.warm_start_from or a spectral initialization",
    )
    weight_decay: Auto | NonNegative = Field(
        "auto",
        description="L2 coefficient: this times the weight is added to the gradient of active rows; auto: 0 with "
        "cosine scores, where max_norm keeps rows short, and 1e-5 with others, where it pulls scores to 0",
    )
    epsilon: Annotated[float, Field(ge=1e-30, le=1.0)] = Field(
        1e-8, description="constant added to the root of the second moment"
    )
    beta1: Auto | Annotated[float, Field(ge=0, le=0.999999)] = Field(
        "auto",
        description="Adam's decay of the first moment; auto: 0.7 with a spectral initialization, and 0.9 with others",
    )
    beta2: Annotated[float, Field(ge=0, le=0.999999)] = Field(0.999, description="Adam's decay of the second moment")
    max_norm: Auto | Positive | None = Field(
        "auto",
        description="upper bound of a row's length after an update; null: none; auto: 1 with cosine scores, so that "
        "directions can still change, and none with others; 1 with euclidean scores is CML",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="learning rate schedule from the end of the warm-up to the last step"
    )
    warmup_steps: Auto | Annotated[int, Field(ge=0, strict=True)] = Field(
        "auto",
        description="steps in which the learning rate rises from 0 to its peak; auto: 20 with a spectral "
        "initialization, and 0 with others",
    )
    min_lr_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="fraction of the peak learning rate at which the linear and cosine schedules end"
    )


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
        "are vacant in the data or belong to another ID now are new: they begin near the rows that they occur with, or "
        "at random",
    )


StoreKind = Literal["auto", "mxnet", "sharded"]
"""What holds the tables of a distributed job: MXNet's servers, or the workers."""


class ClusterConfig(Section):
    """Processes of a distributed job. One worker without servers trains in one process, which holds the tables."""

    store: StoreKind = Field(
        "auto",
        description="what holds the tables of a job of several processes; mxnet: servers, of MXNet's key-value store; "
        "sharded: the workers, each a part, so that there are no servers; auto: mxnet if there are servers and MXNet "
        "is installed, else sharded",
    )
    servers: Annotated[int, Field(ge=0, le=1024, strict=True)] = Field(
        0, description="processes that hold the tables; 0: the workers hold them"
    )
    workers: Annotated[int, Field(ge=1, le=1024, strict=True)] = Field(
        1, description="processes that compute gradients; 1 without servers: train in one process"
    )
    host: str = Field("127.0.0.1", description="address that roles listen on and reach each other at")
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
    def _check_sizes(self) -> ClusterConfig:
        if self.store == "mxnet" and self.workers > 1 and self.servers == 0:
            raise ValueError(f"{self.workers} workers need at least one server: set cluster.servers")
        if self.store == "sharded" and self.servers:
            raise ValueError(
                f"store is 'sharded', so the workers hold the tables, but servers is {self.servers}: set "
                "cluster.servers to 0"
            )
        if self.one_role_per_host and self.hosts > 1:
            raise ValueError(
                f"hosts is {self.hosts}, but one_role_per_host determines the number of hosts: set only one of them"
            )
        return self

    @property
    def is_distributed(self) -> bool:
        """Whether roles run in processes of their own: servers, or more than one worker."""
        return self.servers > 0 or self.workers > 1

    @property
    def workers_hold_tables(self) -> bool:
        """Whether several workers hold the tables, the store ``sharded``."""
        return self.servers == 0 and self.workers > 1

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


def has_credentials(uri: str) -> bool:
    """Return whether the address may have credentials: a user, a query, or a fragment."""
    return not set(uri).isdisjoint("@?#")


def _check_no_credentials(uri: str) -> str:
    if has_credentials(uri):
        raise ValueError(
            "expected an address without credentials and query, since job.yaml keeps it: set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return uri


class TrackingConfig(Section):
    """Where a run is recorded as an experiment, by the command that runs it."""

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
