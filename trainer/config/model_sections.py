"""Sections of the job file that define what is learned: model, negatives and optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from crossfade.kvstore.optimizer_spec import OptimizerKind
from crossfade.trainer.config.fields import AtLeastOne, Auto, Name, NonNegative, Positive, Section

HISTORY = "history"
"""The name in ``model.query_features`` of the mean of the items that a query has interacted with."""
ScoreKind = Literal["dot", "cosine", "euclidean"]
LossKind = Literal["bpr", "logistic", "softmax", "hinge", "warp", "ccl"]


class DenseConfig(Section):
    """Dense layers that each side's vectors pass through before they are scored."""

    query: list[AtLeastOne] = Field(
        [], description="widths of the query side's layers, such as [128, 64]; the last equals model.dim; default: none"
    )
    item: list[AtLeastOne] = Field([], description="widths of the item side's layers, in the same form")
    activation: Literal["relu", "tanh"] = Field("relu", description="activation after each layer but the last")
    layer_norm: bool = Field(
        True, description="apply layer normalization, row by row, before each activation (each layer but the last)"
    )
    residual: bool = Field(
        True, description="add the layers' output to their input; false: the output replaces the input"
    )
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
    table: Literal["shared", "own"] = Field(
        "shared", description="embeddings of the items of a history: shared with data.item, or another table, history"
    )


class ModelConfig(Section):
    """The two-tower embedding model: a vector per query and per item, compared by a score."""

    dim: AtLeastOne = Field(64, description="columns of every embedding")
    score: ScoreKind = Field("cosine", description="score function: dot, cosine, or euclidean (-squared distance)")
    temperature: Auto | Positive = Field(
        "auto",
        description="divisor of the score in the loss; auto: 1.67 * items^-0.155 * interactions^-0.075 with cosine "
        "scores, within 0.05 to 0.2, and 0.17 with others",
    )
    init_std: Positive = Field(0.1, description="standard deviation of the initial values of a row")
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
        description="content columns of data.query, numbers and vectors that 'crossfade prepare --content' added: a "
        "linear layer maps them to model.dim, as one more part of a query's vector",
    )
    item_content: list[Name] = Field([], description="content columns of data.item, such as [tempo, audio], likewise")
    combine: Literal["sum", "mean"] = Field("sum", description="how a side's embeddings are combined into one vector")
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="fraction of rows whose ID embedding is dropped in a step, among rows that have features, so that "
        "features learn to represent new rows (DropoutNet)",
    )
    dense: DenseConfig = DenseConfig()
    start: dict[Name, Annotated[str, Field(min_length=1)]] = Field(
        {},
        description="vectors that tables begin with, by table: a Parquet file with the columns id and vector, or a "
        "folder of them (a path or s3:// URI), such as RUN/embeddings/track; rows without one are drawn",
        examples=[{"track": "vectors.parquet"}],
    )
    frozen: list[Name] = Field(
        [], description="tables that training leaves as they begin, such as [track]: their rows are never updated"
    )

    @property
    def has_dense_layers(self) -> bool:
        """Whether a side has dense layers, or a content layer."""
        return any((self.dense.query, self.dense.item, self.query_content, self.item_content))

    @property
    def has_towers(self) -> bool:
        """Whether a side names parts of its vectors, or has layers, so that vectors may be more than rows of tables."""
        return bool(self.query_features or self.item_features) or self.has_dense_layers

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
    num_hard: AtLeastOne | None = Field(
        None, description="negatives of an example that count, those with the highest scores; null: all"
    )
    weight: NonNegative = Field(1.0, description="total weight of an example's negatives under ccl; its item has 1")


class OptimizerConfig(Section):
    """The row-sparse optimizer and its learning rate schedule."""

    kind: OptimizerKind = Field(
        "adam", description="update rule: sgd, adagrad, rowwise_adagrad (4 bytes of state per row) or adam"
    )
    learning_rate: Auto | Positive = Field(
        "auto",
        description="peak learning rate, per step; auto: 0.2 with cosine scores, whose rows are at most 1 long, and "
        "0.015 with others",
    )
    weight_decay: Auto | NonNegative = Field(
        "auto",
        description="L2 coefficient: this times the weight is added to the gradient of active rows; auto: 0 with "
        "cosine scores, where max_norm keeps rows short, and 1e-5 with others, where it pulls scores to 0",
    )
    epsilon: Annotated[float, Field(ge=1e-30, le=1.0)] = Field(
        1e-8, description="constant added to the root of the second moment"
    )
    beta1: Annotated[float, Field(ge=0, le=0.999999)] = Field(0.9, description="Adam's decay of the first moment")
    beta2: Annotated[float, Field(ge=0, le=0.999999)] = Field(0.999, description="Adam's decay of the second moment")
    max_norm: Auto | Positive | None = Field(
        "auto",
        description="upper bound of a row's length after an update; null: none; auto: 1 with cosine scores, so that "
        "directions can still change, and none with others; 1 with euclidean scores is CML",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="learning rate schedule from the end of the warm-up to the last step"
    )
    warmup_steps: Annotated[int, Field(ge=0, strict=True)] = Field(
        0, description="steps in which the learning rate rises from 0 to its peak"
    )
    min_lr_factor: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="fraction of the peak learning rate at which the linear and cosine schedules end"
    )
