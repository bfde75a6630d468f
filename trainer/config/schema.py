"""The job file: one YAML file that says everything about a run.

    job = load_job("jobs/lastfm.yaml", ["train.epochs=5", "cluster.workers=2"])

Each field has a type, a default and a line of help here and nowhere else: ``crossfade train --explain`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kvstore.layout import DEFAULT_KEY_BYTES, MAX_KEY_BYTES
from kvstore.optimizers import OptimizerKind, OptimizerSpec
from trainer.data.time_range import TimeRange

ScoreKind = Literal["dot", "cosine", "euclidean"]


LossKind = Literal["bpr", "logistic", "softmax", "hinge", "warp", "ccl"]


SplitName = Literal["train", "valid", "test"]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


AtLeastOne = Annotated[int, Field(ge=1, strict=True)]


Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


TimeValue = Annotated[
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)] | Annotated[str, Field(strict=True)],
    # YAML makes dates of what looks like one.
    BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DataConfig(_Section):
    """Where the interactions are and in what order they are read."""

    path: str = Field(description="folder or s3:// URI that 'crossfade prepare' wrote")
    query: Name | None = Field(None, description="entity on the query side; default: the one named in the manifest")
    item: Name | None = Field(None, description="entity on the item side; default: the one named in the manifest")
    partitions: AtLeastOne = Field(
        16, description="streams that row groups are dealt to; workers share them out, so at least one a worker"
    )
    shuffle_block_rows: AtLeastOne = Field(131_072, description="rows of a lane that are held and shuffled together")
    since: TimeValue | None = Field(
        None, description="only interactions from then on: integer in the unit of timestamps, or ISO date (UTC)"
    )
    until: TimeValue | None = Field(None, description="only interactions before then, the same way")
    reader_threads: Annotated[int, Field(ge=1, le=256, strict=True)] = Field(
        4, description="threads of a worker that fetch and decode row groups; more of them for small files on S3"
    )
    max_row_group_rows: AtLeastOne = Field(
        4_194_304, description="rows of the largest row group that is accepted; a worker holds two or more a lane"
    )

    @model_validator(mode="after")
    def _span_is_one(self) -> DataConfig:
        self.time_range()
        return self

    def time_range(self) -> TimeRange | None:
        """The time that interactions must be of; None: any."""
        return TimeRange.of(self.since, self.until)


class DenseConfig(_Section):
    """Dense layers that the vectors of a side pass before they are compared."""

    query: list[AtLeastOne] = Field(
        [], description="widths of the query side's layers, the last one model.dim, such as [128, 64]; default: none"
    )
    item: list[AtLeastOne] = Field([], description="widths of the item side's layers, the same way")
    activation: Literal["relu", "tanh"] = Field("relu", description="what follows each layer but the last")
    layer_norm: bool = Field(True, description="whether each layer but the last is normalised, row by row, before that")
    residual: bool = Field(
        True, description="whether what the layers make of a vector is added to it; false: takes its place"
    )
    learning_rate: Positive | None = Field(
        None, description="of the layers, which follow its schedule too; null: optimizer.learning_rate"
    )


class ModelConfig(_Section):
    """The embedding model: vectors of both sides, compared by a score."""

    dim: AtLeastOne = Field(64, description="columns of every embedding")
    score: ScoreKind = Field("cosine", description="dot, cosine, or euclidean (minus the squared distance)")
    temperature: Positive = Field(0.17, description="the score is divided by it in the loss")
    init_std: Positive = Field(0.1, description="standard deviation of a fresh row's values")
    query_features: list[Name] = Field(
        [], description="whose embeddings make a query's vector: data.query and its features; default: [data.query]"
    )
    item_features: list[Name] = Field(
        [],
        description="whose embeddings make an item's vector, such as [track, artist, tag]: data.item, which may be "
        "left out, and its features; default: [data.item]",
    )
    combine: Literal["sum", "mean"] = Field("sum", description="how the embeddings of a side are made one vector")
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of rows whose own embedding is left out of a step, if they have features: so that those can "
        "stand for a row that is new",
    )
    dense: DenseConfig = DenseConfig()

    @model_validator(mode="after")
    def _layers_end_in_dim(self) -> ModelConfig:
        for side, widths in (("query", self.dense.query), ("item", self.dense.item)):
            if widths and widths[-1] != self.dim:
                raise ValueError(f"dense.{side} is {widths}: its last layer must be as wide as dim, {self.dim}")
        return self


_ALL_ITEMS_AT_MOST = 2**15
"""So many items can all be negatives: more make a step dear, and it would cost what the table does."""


class NegativesConfig(_Section):
    """What each interaction is contrasted with."""

    kind: Literal["auto", "shared", "per_example", "in_batch", "mixed", "all"] = Field(
        "auto",
        description="shared: one pool for all examples of a step; per_example: draws of its own for every example; in_batch: "
        "the items of the other examples of the step and lane, about train.batch_size / data.partitions; mixed: a pool and "
        "those; all: every item, "
        "which costs what the table does, so for tables of few items; auto: of a softmax, all where items are 32,768 "
        "at most, and in_batch with log_q where they are more; of other losses, shared",
    )
    count: AtLeastOne = Field(4096, description="size of the pool, or draws an example; in_batch and all: not used")
    sampling: Literal["uniform", "popularity"] = Field("uniform", description="how items are drawn")
    power: Annotated[float, Field(ge=0, le=4)] = Field(
        0.75, description="popularity: an item is drawn in proportion to its count to this power"
    )
    logq_correction: bool = Field(
        False,
        description="softmax: scores of negatives are less by the log of how often their item is expected among "
        "them, so that they stand for all items",
    )
    num_hard: AtLeastOne | None = Field(
        None, description="how many of an example's negatives count, those that score highest; null: all"
    )
    weight: NotNegative = Field(1.0, description="ccl: what the negatives weigh together, beside the item's 1")

    def resolve(self, loss: LossKind, items: int) -> NegativesConfig:
        """The same of a table of so many ``items``: what ``auto`` is there."""
        if self.kind != "auto":
            return self
        if loss != "softmax" or self.num_hard is not None:
            return self.model_copy(update={"kind": "shared"})
        few = items <= _ALL_ITEMS_AT_MOST
        return self.model_copy(update={"kind": "all" if few else "in_batch", "logq_correction": not few})


class OptimizerConfig(_Section):
    """How active rows are updated."""

    kind: OptimizerKind = Field("adam", description="sgd, adagrad, rowwise_adagrad (4 bytes of state a row) or adam")
    learning_rate: Positive = Field(0.015, description="per step")
    weight_decay: NotNegative | None = Field(
        None,
        description="added to the gradient of active rows, times the weight; null: 4e-4 with cosine scores, where it "
        "keeps rows short enough to turn, 1e-5 with others, where it pulls the scores themselves to 0",
    )
    epsilon: Annotated[float, Field(ge=1e-30, le=1.0)] = Field(
        1e-8, description="added to the root of the second moment"
    )
    beta1: Annotated[float, Field(ge=0, le=0.999999)] = Field(0.9, description="Adam's decay of the first moment")
    beta2: Annotated[float, Field(ge=0, le=0.999999)] = Field(0.999, description="Adam's decay of the second moment")
    max_norm: Positive | None = Field(
        None, description="length that no row exceeds after an update; null: any. For euclidean scores, 1 as in CML"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the learning rate falls from the end of the warm-up to the run's last step"
    )
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = Field(
        0, description="steps in which the learning rate rises to its height"
    )
    min_lr_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the learning rate that linear and cosine end at"
    )


class TrainConfig(_Section):
    """The run itself."""

    batch_size: AtLeastOne = Field(16_384, description="interactions a step, over all workers together")
    epochs: AtLeastOne = Field(40, description="passes over the train split, at most")
    max_steps: AtLeastOne | None = Field(None, description="stop after so many steps, whatever the epochs say")
    eval_every_epochs: AtLeastOne = Field(1, description="epochs between evaluations on the valid split")
    patience: AtLeastOne | None = Field(
        None,
        description="evaluations without a new best before stopping; null: never, so that a falling schedule comes to "
        "its end",
    )
    query_frequency_power: Annotated[float, Field(ge=-1, le=0)] = Field(
        -0.5,
        description="weight of an interaction ∝ (its query's count in train)^power, 1 on average; 0: every "
        "interaction weighs the same, -1: every query",
    )
    item_frequency_power: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.15, description="the same by the count of the interaction's item; above 0, popular items weigh more"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = Field(
        1, description="every random number follows from it"
    )
    engine: Literal["cpu", "mxnet"] = Field("cpu", description="who computes gradients: numba and BLAS, or MXNet")
    device: Literal["cpu", "gpu"] = Field("cpu", description="where the mxnet engine computes")
    save_embeddings: Literal["best", "none"] = Field(
        "best", description="best: write those that did best on valid; none: leave them to 'crossfade export'"
    )

    @model_validator(mode="after")
    def _gpu_needs_mxnet(self) -> TrainConfig:
        if self.device == "gpu" and self.engine != "mxnet":
            raise ValueError(f"device 'gpu' needs engine 'mxnet', but the engine is '{self.engine}'")
        return self


class CheckpointConfig(_Section):
    """What of a run outlives its processes."""

    path: str | None = Field(None, description="folder or s3:// URI for checkpoints; default: checkpoints/ of the run")
    interval_seconds: Positive | None = Field(
        300.0, description="seconds from one checkpoint to the next; null: only at the end and when stopped"
    )
    interval_steps: AtLeastOne | None = Field(None, description="steps from one checkpoint to the next, besides")
    keep_latest: AtLeastOne = Field(3, description="checkpoints that are kept, the newest ones")
    warm_start_from: str | None = Field(
        None,
        description="checkpoint, or folder of them, that a fresh run takes rows from; rows that it lacks, that the "
        "data have forgotten or that another id has now start afresh",
    )


class EvaluateConfig(_Section):
    """How rankings are judged."""

    k: list[Annotated[int, Field(ge=1, le=1000, strict=True)]] = Field(
        [10, 20, 40], min_length=1, max_length=100, description="depths of recall@k, ndcg@k and the like, up to 1000"
    )
    exclude_splits: list[SplitName] = Field(
        ["train", "valid"], description="splits whose items leave a query's ranking, unless they are held out too"
    )
    best_metric: Annotated[str, Field(pattern=r"^(recall|ndcg|map|mrr|hit_rate)@[1-9][0-9]*$")] = Field(
        "ndcg@10",
        description="metric on the valid split that picks the best embeddings: recall, ndcg, map, mrr or hit_rate @ K",
    )

    @model_validator(mode="after")
    def _select_is_computed(self) -> EvaluateConfig:
        if int(self.best_metric.partition("@")[2]) not in self.k:
            raise ValueError(f"select '{self.best_metric}' needs its depth in evaluate.k, which is {self.k}")
        return self


class ClusterConfig(_Section):
    """Processes of a distributed job. With no servers, the run is one process that holds the tables itself."""

    servers: Annotated[int, Field(ge=0, le=1024, strict=True)] = Field(
        0, description="processes that hold the tables; 0: in process"
    )
    workers: Annotated[int, Field(ge=1, le=1024, strict=True)] = Field(
        1, description="processes that compute gradients"
    )
    host: str = Field("127.0.0.1", description="address that the roles listen on and reach each other at")
    scheduler_port: Annotated[int, Field(ge=0, le=65535)] = Field(0, description="the scheduler's port; 0: a free one")
    max_key_bytes: Annotated[int, Field(ge=1024, le=MAX_KEY_BYTES)] = Field(
        DEFAULT_KEY_BYTES, description="bytes of a table that make one key of the store, at most"
    )
    hosts: AtLeastOne = Field(1, description="hosts that share the roles; the job starts when their agents have joined")
    one_role_per_host: bool = Field(
        False,
        description="each server and worker has a host of its own, beside the coordinator's, as in containers; "
        "cluster.hosts is counted from that",
    )
    host_timeout_seconds: Positive | None = Field(
        None,
        description="how long hosts that are lost are waited for, from the last that came or went; then their roles go "
        "to those that are left; null: as long as it takes",
    )
    coordinator_address: str | None = Field(
        None, description="HOST:PORT at which agents of other hosts reach the coordinator; needs CROSSFADE_TOKEN"
    )
    shared_run_dir: bool = Field(
        True,
        description="whether the run folder is on a file system that all hosts share, and that outlives them; false: "
        "hosts get the job from the coordinator, and the best embeddings lie beside the checkpoints until the run ends",
    )
    max_restarts: Annotated[int, Field(ge=0, strict=True)] = Field(
        5, description="restarts in a row that bring no new checkpoint, after which the job fails"
    )
    stall_timeout_seconds: Positive = Field(
        600.0, description="without a step, evaluation or checkpoint for so long, start-up included, it is restarted"
    )
    grace_period_seconds: Positive = Field(
        60.0, description="how long a job that is asked to stop may take to write its checkpoint"
    )

    @model_validator(mode="after")
    def _workers_need_servers(self) -> ClusterConfig:
        if self.workers > 1 and self.servers == 0:
            raise ValueError(f"{self.workers} workers need at least one server: set cluster.servers or --servers")
        return self

    @model_validator(mode="after")
    def _hosts_are_counted_once(self) -> ClusterConfig:
        if self.one_role_per_host and self.hosts > 1:
            raise ValueError(f"hosts is {self.hosts}, but one_role_per_host counts them: leave one of the two out")
        return self

    @property
    def host_count(self) -> int:
        """The hosts of a whole job, that of the coordinator included."""
        return 1 + self.servers + self.workers if self.one_role_per_host else self.hosts


class MetricsConfig(_Section):
    """Where a run can be watched by Prometheus, and the like."""

    port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = Field(
        0,
        description="port of /metrics, /healthz and /targets; 0: a free one, as always of roles that an agent starts; "
        "null: none at all",
    )
    host: str | None = Field(
        None,
        description="address that they listen on; default: the one of the role, which is cluster.host on this host",
    )
    pushgateway: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = Field(
        None, description="http:// or https:// URL of a Pushgateway, which gets each process's final values"
    )


class JobConfig(_Section):
    """A whole job."""

    name: Name = Field(description="what the run folder is called by default: runs/NAME")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossKind = Field(
        "softmax",
        description="bpr, logistic, softmax over the sampled negatives, hinge, warp or ccl; an interaction of negative "
        "weight costs the loss of the opposite: that the query does not want the item",
    )
    margin: NotNegative = Field(
        0.5,
        description="hinge and warp: by how much an item is to be above its negatives; ccl: the cosine up to which a "
        "negative costs nothing",
    )
    negatives: NegativesConfig = NegativesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()

    def resolved_negatives(self, items: int) -> NegativesConfig:
        """The negatives, where the table has so many ``items``."""
        return self.negatives.resolve(self.loss, items)

    @property
    def optimizer_spec(self) -> OptimizerSpec:
        """The optimizer, as the store takes it: the schedule is the loop's affair."""
        values = self.optimizer.model_dump(exclude={"schedule", "warmup_steps", "min_lr_factor"})
        if values["weight_decay"] is None:
            values["weight_decay"] = 4e-4 if self.model.score == "cosine" else 1e-5
        return OptimizerSpec(**values)

    @property
    def no_shared_run_dir(self) -> bool:
        """Whether the processes of this job may be on hosts that share no folder."""
        return self.cluster.servers > 0 and not self.cluster.shared_run_dir

    @property
    def all_reduces_dense(self) -> bool:
        """Whether several workers train dense layers, whose gradients Horovod sums."""
        return self.cluster.workers > 1 and bool(self.model.dense.query or self.model.dense.item)

    @model_validator(mode="after")
    def _hosts_share_something(self) -> JobConfig:
        if (
            self.no_shared_run_dir
            and self.cluster.host_count > 1
            and not (self.checkpoint.path or "").startswith("s3://")
        ):
            raise ValueError(
                "cluster.shared_run_dir is false, so the hosts need another place to share: set checkpoint.path to one on "
                "S3, as in s3://BUCKET/PREFIX"
            )
        return self

    @model_validator(mode="after")
    def _each_worker_has_a_lane(self) -> JobConfig:
        if self.cluster.workers > self.data.partitions:
            raise ValueError(
                f"{self.cluster.workers} workers need as many lanes: set data.partitions, now {self.data.partitions}"
            )
        return self

    @model_validator(mode="after")
    def _loss_and_negatives_agree(self) -> JobConfig:
        if self.loss == "ccl" and self.model.score != "cosine":
            raise ValueError(f"loss 'ccl' is of cosine scores: set model.score to cosine, now {self.model.score}")
        if self.negatives.logq_correction and self.loss != "softmax":
            raise ValueError(f"negatives.logq_correction corrects the softmax alone, but the loss is '{self.loss}'")
        if self.negatives.logq_correction and self.negatives.kind == "all":
            raise ValueError("negatives.logq_correction corrects what is drawn, but negatives.kind 'all' draws nothing")
        if self.negatives.num_hard is not None and self.loss == "warp":
            raise ValueError("loss 'warp' counts the hardest negative alone: leave negatives.num_hard out")
        if self.negatives.num_hard is not None and self.negatives.logq_correction:
            raise ValueError(
                "negatives.logq_correction tells how negatives were drawn, which of hard ones is not known: leave one out"
            )
        return self

    def with_absolute_paths(self) -> JobConfig:
        """The same job, naming its folders by absolute paths, so that it means the same from anywhere."""
        checkpoint = {
            key: value and _anchored(value)
            for key, value in (("path", self.checkpoint.path), ("warm_start_from", self.checkpoint.warm_start_from))
        }
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"path": _anchored(self.data.path)}),
                "checkpoint": self.checkpoint.model_copy(update=checkpoint),
            }
        )

    def resume_conflicts(self, earlier: JobConfig) -> list[str]:
        """The keys in which a run of ``earlier`` cannot be taken up as this job, as ``key (theirs, not ours)``.

        How long to train, where the processes are and when to save may change from one start to the next.
        """
        ours, theirs = (dict(_flat(job.with_absolute_paths().model_dump(mode="json"))) for job in (self, earlier))
        return [
            f"{key} ({theirs[key]!r} then, {ours[key]!r} now)"
            for key in ours
            if ours[key] != theirs[key] and not key.startswith(_CHANGEABLE_ON_RESUME)
        ]

    def non_default_values(self) -> dict[str, Any]:
        """The keys that are not at their defaults, such as ``train.epochs``, with their values as JSON has them."""
        return dict(_flat(self.model_dump(mode="json", exclude_defaults=True)))

    def to_yaml(self) -> str:
        """The job as a YAML file that ``load_job`` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _anchored(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())


_CHANGEABLE_ON_RESUME = (
    *("cluster.", "checkpoint.", "metrics.", "data.reader_threads", "data.max_row_group_rows"),
    *("train.epochs", "train.max_steps", "train.patience", "train.device"),
)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
