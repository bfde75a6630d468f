"""The schema of a job file: one YAML file that defines a run completely.

    job = load_job(Path("jobs/lastfm.yaml"), ["train.epochs=5", "cluster.workers=2"])     # trainer/config/loading.py
    job.train.epochs, job.optimizer_spec, job.to_yaml()

Each field has a type, a default and a description here and nowhere else, which ``crossfade train`` explains.

Where the job has ``auto``, ``auto_values.py`` derives the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from crossfade.base.errors import command
from crossfade.base.validation import described
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.trainer.config.sections import (
    AtLeastOne,
    Auto,
    CheckpointConfig,
    ClusterConfig,
    Device,
    EngineName,
    LossKind,
    MetricsConfig,
    ModelConfig,
    Name,
    NegativesConfig,
    NonNegative,
    OptimizerConfig,
    Positive,
    Section,
    Span,
    TimeValue,
    TrackingConfig,
    resolved,
)
from crossfade.trainer.data.split_names import SplitName
from crossfade.trainer.data.time_range import TimeRange

EvaluationTask = Literal["new", "repeat"]

_CHANGEABLE_ON_RESUME = (
    *("cluster.", "checkpoint.", "metrics.", "tracking.", "data.reader_threads"),
    *("train.epochs", "train.max_steps", "train.patience", "evaluate.final"),
    *("train.engine", "train.device", "train.tables"),
    *("optimizer.learning_rate", "model.dense.learning_rate", "model.popularity"),
)
"""Prefixes of keys that may change between the starts of one run."""


class DataConfig(Section):
    """Where the interactions are, and the order in which they are read."""

    path: str = Field(
        description="folder or s3:// URI of the dataset that 'crossfade prepare' wrote",
        examples=["data/plays", "s3://music/plays"],
    )
    query: Name | None = Field(None, description="entity on the query side; default: the manifest's")
    item: Name | None = Field(None, description="entity on the item side; default: the manifest's")
    partitions: AtLeastOne = Field(
        16, description="streams that row groups are assigned to and workers divide among themselves; at least one each"
    )
    shuffle_block_rows: AtLeastOne = Field(
        131_072, description="rows of a partition that are held in memory and shuffled together"
    )
    group: Literal["auto", "all"] | AtLeastOne = Field(
        "auto",
        description="interactions of a query in a shuffle block that are read one after the other, at most; 1: rows in "
        "random order; all: every one, so that a softmax over all items scores a query about once an epoch "
        f"({command('prepare')} puts them into the same block); auto: all where every "
        "item is a negative and the dataset is grouped, and 1 otherwise",
    )
    since: TimeValue | None = Field(
        None,
        description="first timestamp to train on: an integer in the unit of the timestamps, or an ISO date (UTC)",
        examples=["2026-01-31"],
    )
    until: TimeValue | None = Field(None, description="timestamp before which interactions are used, in the same form")
    reader_threads: Annotated[int, Field(ge=1, le=256, strict=True)] = Field(
        4, description="threads per worker that fetch and decode row groups; raise it for small files on S3"
    )

    @model_validator(mode="after")
    def _check_time_range(self) -> DataConfig:
        self.time_range()
        return self

    @property
    def group_rows(self) -> int | None:
        """``group`` as the batch schedule takes it; None: all interactions of a query."""
        assert self.group != "auto", "the job is not resolved"
        return None if self.group == "all" else self.group

    def time_range(self) -> TimeRange | None:
        """Return the time range to train on; None: all interactions."""
        return TimeRange.of(self.since, self.until)


class TrainConfig(Section):
    """The training loop."""

    batch_size: AtLeastOne = Field(16_384, description="interactions per step, over all workers")
    epochs: Auto | AtLeastOne = Field(
        "auto",
        description="maximum number of passes over the train split; auto: 40, or 16 with a spectral initialization, "
        "and more if those are fewer than 80 steps",
    )
    max_steps: AtLeastOne | None = Field(None, description="steps after which to stop, whatever the epochs; null: none")
    eval_every_epochs: AtLeastOne = Field(1, description="epochs between evaluations on the valid split")
    patience: AtLeastOne | None = Field(
        None,
        description="evaluations without a gain beyond its standard error before the run stops early; null: never",
    )
    query_frequency_power: Annotated[float, Field(ge=-1, le=0)] = Field(
        -0.25,
        description="exponent of the query's count in train in the weight of an interaction, scaled to 1 on average; "
        "0: every interaction weighs the same, -1: every query does",
    )
    item_frequency_power: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.15, description="exponent of the item's count in train in that weight; above 0, popular items weigh more"
    )
    weight_scale: Literal["linear", "log"] = Field(
        "linear",
        description="how the weight w of an interaction counts. linear: as it is, for event weights; log: as "
        "log2(1 + |w|), with its sign, for numbers of plays, which would otherwise leave little to the others",
    )
    half_life: Span | None = Field(
        None,
        description="age after which the weight of an interaction halves, scaled to 1 on average: 30d, 36h, or an "
        "integer in the unit of the timestamps; null: all ages weigh the same",
        examples=["30d"],
    )
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = Field(
        1, description="seed that determines every random number of the run"
    )
    engine: EngineName = Field(
        "auto",
        description="gradient engine: cpu (closed form in numba and BLAS), mxnet, or torch (PyTorch); auto: one that "
        "drives the GPU, and cpu without a GPU",
    )
    device: Device = Field(
        "auto",
        description="what a worker computes on: cpu, gpu, or a GPU by number such as gpu:1; auto: a GPU if there is "
        "one that an installed engine can drive",
    )
    tables: Literal["auto", "host", "device"] = Field(
        "auto",
        description="memory that holds the tables of a run in one process: the host's or, with engine torch, the "
        "device's; auto: device on a GPU where they fit",
    )
    save_embeddings: Literal["best", "none"] = Field(
        "best", description="embeddings to write: best on the valid split, or none and leave it to 'crossfade export'"
    )

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is requested by name."""
        return self.device.startswith("gpu")

    @model_validator(mode="after")
    def _check_device(self) -> TrainConfig:
        if self.on_gpu and self.engine == "cpu":
            raise ValueError(f"device '{self.device}' needs engine torch or mxnet, but the engine is 'cpu'")
        if self.tables == "device" and self.engine != "torch":
            raise ValueError(f"tables 'device' needs engine torch, but the engine is '{self.engine}'")
        return self


QueryLimit = Literal["auto", "all"] | AtLeastOne
"""How many queries are evaluated, at most."""


class EvaluateConfig(Section):
    """How rankings are evaluated."""

    k: list[Annotated[int, Field(ge=1, le=1000, strict=True)]] = Field(
        [10, 20, 40], min_length=1, max_length=100, description="cutoffs of recall@k, ndcg@k and so on, at most 1000"
    )
    task: EvaluationTask = Field(
        "new",
        description="new: items that a query has in an excluded split are neither ranked nor counted as held out; "
        "repeat: nothing is excluded, and everything held out counts",
    )
    by: Literal["query", "moment"] = Field(
        "query",
        description="query: all held-out items of a query are judged together; moment: those of each timestamp by "
        "themselves, with the history before it, as in next-item prediction",
    )
    exclude_splits: list[SplitName] = Field(
        ["train", "valid"], description="splits whose items leave a query's ranking with task new"
    )
    best_metric: Annotated[
        str,
        Field(pattern=r"^(recall|ndcg|map|mrr|hit_rate)@[1-9][0-9]*$"),
        described("recall, ndcg, map, mrr or hit_rate, and a cutoff, such as ndcg@10"),
    ] = Field(
        "ndcg@10",
        description="metric on valid that selects the best embeddings: recall, ndcg, map, mrr or hit_rate @ k",
    )
    max_queries: QueryLimit = Field(
        "auto",
        description="queries of valid that are evaluated during training, at most: a number, of a sample that is the "
        "same for every run on the dataset, or all; auto: 2,000, and more where that takes at most about a tenth of an "
        "epoch on CPUs, by the interactions of train and the items",
    )
    final: QueryLimit = Field(
        "auto",
        description="the same for test at the end of a run, and for every split in 'crossfade evaluate'; auto: ten "
        "times as many as auto is during training, and no fewer than max_queries",
    )
    at_start: bool = Field(
        False,
        description="evaluate valid before the first step as well: how well the model that a warm start continues "
        "ranks what is new; the report has it as valid_at_start",
    )

    def excluded_from(self, split: SplitName) -> list[SplitName]:
        """Return the splits whose items a query's ranking on ``split`` leaves out."""
        return [name for name in self.exclude_splits if name != split] if self.task == "new" else []

    def queries_of(self, split: SplitName, *, in_training: bool = False) -> int | None:
        """Return how many queries of ``split`` are evaluated, at most; None: all.

        ``in_training``: valid is evaluated during training, by ``max_queries``; otherwise by ``final``, as test is.
        """
        limit = self.max_queries if in_training and split == "valid" else self.final
        assert limit != "auto", "the job is not resolved"
        return None if limit == "all" else limit

    @model_validator(mode="after")
    def _check_best_metric(self) -> EvaluateConfig:
        if int(self.best_metric.partition("@")[2]) not in self.k:
            raise ValueError(f"best_metric is '{self.best_metric}', so add its cutoff to evaluate.k, now {self.k}")
        return self


class JobConfig(Section):
    """A complete job."""

    name: Name = Field(description="name of the job; the run folder is runs/NAME by default", examples=["plays"])
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossKind = Field(
        "softmax",
        description="loss function: bpr, logistic, softmax (over the negatives), or warp; an interaction of negative "
        "weight is negative feedback and is penalized by the reversed loss",
    )
    margin: NonNegative = Field(0.5, description="margin of warp between the item's score and its negatives'")
    top_k: AtLeastOne | None = Field(
        None,
        description="K of softmax at the top of the list: an interaction whose item scores above the K-th highest of "
        "all items weighs up to twice as much, and one far below it little, so that training minds what can be among "
        "the first K; null: all count alike",
    )
    top_k_temperature: Positive = Field(
        0.6,
        description="difference of scores over which the weight of top_k changes, before the division by "
        "model.temperature: lower is sharper, and less is learned of items far down the list",
    )
    negatives: NegativesConfig = NegativesConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def optimizer_spec(self) -> OptimizerSpec:
        """The optimizer as the store takes it; the loop applies the schedule."""
        values = self.optimizer.model_dump(exclude={"schedule", "warmup_steps", "min_lr_factor"})
        return OptimizerSpec(**{key: resolved(value) for key, value in values.items()})

    @property
    def no_shared_run_dir(self) -> bool:
        """Whether the processes of this job may run on hosts that share no folder."""
        return self.cluster.is_distributed and not self.cluster.shared_run_dir

    @property
    def all_reduces_dense(self) -> bool:
        """Whether several workers train dense layers, whose gradients are summed over them."""
        return self.cluster.workers > 1 and self.model.has_dense_layers

    @property
    def needs_horovod(self) -> bool:
        """Whether Horovod sums the gradients of dense layers; without servers, the workers' own store does."""
        return self.all_reduces_dense and not self.cluster.workers_hold_tables

    @model_validator(mode="after")
    def _check_cluster(self) -> JobConfig:
        on_s3 = (self.checkpoint.path or "").startswith("s3://")
        if self.no_shared_run_dir and self.cluster.host_count > 1 and not on_s3:
            raise ValueError(
                "cluster.shared_run_dir is false, so the hosts need other shared storage: set checkpoint.path to a URI "
                "such as s3://BUCKET/PREFIX"
            )
        self._check_holders()
        if self.cluster.workers > self.data.partitions:
            raise ValueError(
                f"{self.cluster.workers} workers need at least as many partitions: raise data.partitions, now "
                f"{self.data.partitions}"
            )
        return self

    def _check_holders(self) -> None:
        """Check that tables are not to be on a device where servers or several workers hold them."""
        cluster, train = self.cluster, self.train
        if train.tables == "device" and cluster.servers:
            raise ValueError(
                f"train.tables is 'device', but cluster.servers is {cluster.servers}, which hold the tables: set one "
                "of them to auto or 0"
            )
        if train.tables == "device" and cluster.workers_hold_tables:
            raise ValueError(
                f"train.tables is 'device', but {cluster.workers} workers hold parts of the tables in the memory of "
                "their hosts: set train.tables to auto, or cluster.workers to 1"
            )

    @model_validator(mode="after")
    def _check_loss_and_negatives(self) -> JobConfig:
        negatives = self.negatives
        if negatives.logq_correction and self.loss != "softmax":
            raise ValueError(f"negatives.logq_correction needs loss 'softmax', but the loss is '{self.loss}'")
        if negatives.logq_correction and negatives.kind == "all":
            raise ValueError(
                "negatives.logq_correction corrects for sampling, but negatives.kind 'all' does not sample"
            )
        if self.top_k is not None and self.loss != "softmax":
            raise ValueError(f"top_k needs loss 'softmax', but the loss is '{self.loss}': leave one of them out")
        if self.top_k is not None and negatives.kind not in {"auto", "all"}:
            raise ValueError(
                f"top_k compares with the K-th highest score of all items, but negatives.kind is "
                f"'{negatives.kind}': set it to all, or leave out top_k"
            )
        return self

    def starting_points(self) -> dict[str, str]:
        """Return the paths and URIs that a new run reads its rows from, by key."""
        warm = self.checkpoint.warm_start_from
        return {} if warm is None else {"checkpoint.warm_start_from": warm}

    def with_absolute_paths(self) -> JobConfig:
        """Return the same job with absolute paths, so that it does not depend on the working directory."""
        checkpoint = {
            key: value and absolute(value)
            for key, value in (("path", self.checkpoint.path), ("warm_start_from", self.checkpoint.warm_start_from))
        }
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"path": absolute(self.data.path)}),
                "checkpoint": self.checkpoint.model_copy(update=checkpoint),
            }
        )

    def resume_conflicts(self, earlier: JobConfig) -> list[str]:
        """List why a run of ``earlier`` cannot resume as this job, each as ``KEY was X and is now Y``.

        The length of training, the placement of processes and the checkpoint schedule may change between starts. So may
        the learning rates: a run that has diverged continues with a lower one.
        """
        now, before = (job.with_absolute_paths().values() for job in (self, earlier))
        return [
            f"{key} was {before[key]!r} and is now {now[key]!r}"
            for key in now
            if now[key] != before[key] and not key.startswith(_CHANGEABLE_ON_RESUME)
        ]

    def non_default_values(self) -> dict[str, Any]:
        """Return the values that differ from their defaults as JSON values by dotted key, such as ``train.epochs``."""
        return dict(flattened(self.model_dump(mode="json", exclude_defaults=True)))

    def values(self) -> dict[str, Any]:
        """Return all values, defaults included, as JSON values by dotted key, such as ``train.epochs``."""
        return dict(flattened(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """Return the job as YAML, which ``load_job`` reads back to an equal job."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def absolute(location: str) -> str:
    """Return ``location`` for processes with another working directory."""
    return location if "://" in location else str(Path(location).absolute())


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their keys, joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
