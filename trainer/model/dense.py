"""Dense layers behind the embeddings of a tower: forward, backward in closed form, and their own optimizer.

    layers = DenseLayers.of(job, model)
    vectors = layers.forward(block)               # by entity, float32 (A, D); the rows of a step
    gradients = layers.backward(by_vectors)       # by what went in; those by the layers are kept
    layers.update(rate_factor)
    vectors_AD = layers.apply("track", rows_AD)   # to evaluate or to write

As in the two-tower models of Huang et al. (DSSM, CIKM 2013) and Yi et al. (YouTube, RecSys 2019), each side is a
feed-forward network, whose output is scored. With x the vector of a tower, of every layer but the last

    a = W x,   μ = mean(a),   σ = √(mean((a − μ)²) + 1e-5)
    h = f(gain ⊙ (a − μ)/σ + bias)      with layer normalisation (Ba, Kiros and Hinton, 2016, equations 3 and 4)
    h = f(a + bias)                     without

and of the last W x + bias; what it gives is added to the tower's vector (He et al., CVPR 2016) unless the job says that
it takes its place. f is max(0, ·) or tanh. Means are over the units of one row: no row depends on another, so
that a vector is the same in any batch, on any worker and when it is written. With z the argument of f, n = (a − μ)/σ
and g = ∂loss/∂h ⊙ f′(z), the sums going over rows,

    ∂bias = Σ g,  ∂gain = Σ g ⊙ n,  ∂n = g ⊙ gain,  ∂a = (∂n − mean(∂n) − n mean(∂n ⊙ n))/σ,  ∂W = Σ ∂a xᵀ,  ∂x = Wᵀ ∂a

W is drawn uniformly with standard deviation √(2/(inputs + outputs)) (Glorot and Bengio, 2010) from the counter-based
generator; biases are 0 and gains 1. The optimizer is the job's, and takes each unit for a row that is always active;
weight decay is of W alone, and no norm is bounded. Rows come in tiles of a fixed size, whose gradients are added in
order: no bit depends on how many threads there are.

Several workers have the same layers each. Their gradients, of the mean loss over the whole batch, are summed over
workers before they are applied (``dense_reduction.py``), so that all make the same of them.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numba import get_num_threads

from kvstore.arrays import FloatArray
from kvstore.checkpoint.reader import Checkpoint
from kvstore.errors import CheckpointError, DivergedError, InputError
from kvstore.optimizers import LazyOptimizer, OptimizerSpec, make_optimizer
from kvstore.philox import init_rows
from trainer.config.schema import JobConfig
from trainer.model.allreduce import AllReduce
from trainer.model.spec import LayerSpec, ModelSpec

DENSE_FILE = "dense.npz"
_TILE_ROWS = 256
"""So few that each array of a tile is some 100 KiB: it stays in the cache, and the allocator keeps its pages."""
_SMALLEST_VARIANCE = 1e-5

Parameters = Mapping[str, FloatArray]


@dataclass(frozen=True)
class LayerActivations:
    """What is kept of rows that have passed a layer, for the way back: ``normal_AD`` is n, ``inverse_A1`` is 1/σ."""

    inputs_AD: FloatArray
    outputs_AD: FloatArray
    normal_AD: FloatArray | None = None
    inverse_A1: FloatArray | None = None


def forward_layers(spec: LayerSpec, parameters: Parameters, rows_AD: FloatArray) -> list[LayerActivations]:
    """Take rows, float32 or float64, through the layers: of each what it gave, the last of which is the result."""
    passed: list[LayerActivations] = []
    for number in range(len(spec.widths) - 1):
        layer = f"{spec.entity}/{number}"
        inputs_AD = passed[-1].outputs_AD if passed else rows_AD
        raw_AD: FloatArray = inputs_AD @ parameters[f"{layer}/weights"].T
        normal_AD = inverse_A1 = None
        if f"{layer}/gain" in parameters:
            raw_AD -= raw_AD.mean(axis=1, keepdims=True)
            variance_A1 = np.square(raw_AD).mean(axis=1, keepdims=True)
            inverse_A1 = 1 / np.sqrt(variance_A1 + raw_AD.dtype.type(_SMALLEST_VARIANCE))
            normal_AD = raw_AD * inverse_A1
            raw_AD = normal_AD * parameters[f"{layer}/gain"]
        raw_AD += parameters[f"{layer}/bias"]
        if number < len(spec.widths) - 2:
            raw_AD = np.maximum(raw_AD, 0) if spec.activation == "relu" else np.tanh(raw_AD)
        elif spec.residual:
            raw_AD += rows_AD
        passed.append(LayerActivations(inputs_AD, raw_AD, normal_AD, inverse_A1))
    return passed


def backward_layers(
    spec: LayerSpec, parameters: Parameters, passed: Sequence[LayerActivations], gradient_AD: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Take the gradient by what ``pass_layers`` gave back: that by what went in, and those by the parameters."""
    gradients: dict[str, FloatArray] = {}
    around_AD = gradient_AD
    for number, here in reversed(list(enumerate(passed))):
        layer = f"{spec.entity}/{number}"
        if number < len(passed) - 1:
            outputs_AD = here.outputs_AD
            gradient_AD = gradient_AD * (outputs_AD > 0 if spec.activation == "relu" else 1 - np.square(outputs_AD))
        gradients[f"{layer}/bias"] = gradient_AD.sum(axis=0, keepdims=True)
        if here.normal_AD is not None:
            normal_AD = here.normal_AD
            gradients[f"{layer}/gain"] = (gradient_AD * normal_AD).sum(axis=0, keepdims=True)
            gradient_AD = gradient_AD * parameters[f"{layer}/gain"]
            along_A1 = (gradient_AD * normal_AD).mean(axis=1, keepdims=True)
            gradient_AD = gradient_AD - gradient_AD.mean(axis=1, keepdims=True) - normal_AD * along_A1
            gradient_AD *= here.inverse_A1
        gradients[f"{layer}/weights"] = gradient_AD.T @ here.inputs_AD
        gradient_AD = gradient_AD @ parameters[f"{layer}/weights"]
    return gradient_AD + around_AD if spec.residual else gradient_AD, gradients


class DenseLayers:
    """The layers of all towers of a model, and the state of their optimizer; none, most likely."""

    def __init__(self, specs: Sequence[LayerSpec], optimizer: OptimizerSpec, seed: int) -> None:
        """Fresh layers as ``specs`` say, drawn from ``seed``, with one optimizer for all."""
        self._specs = {spec.entity: spec for spec in specs}
        self.entities = tuple(self._specs)
        shapes = {name: shape for spec in specs for name, shape in spec.shapes().items()}
        self.parameters = {name: _fresh(name, shape, seed) for name, shape in shapes.items()}
        self._optimizers = {name: _optimizer(name, shape, optimizer) for name, shape in shapes.items()}
        self._passed: dict[str, list[list[LayerActivations]]] = {}
        self._gradients: dict[str, FloatArray] = {}
        self.all_reduce: AllReduce | None = None
        """What sums gradients over workers; None where there is one worker."""
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="dense") if specs else None

    @staticmethod
    def of(job: JobConfig, model: ModelSpec) -> DenseLayers:
        """Those of ``model``, fresh, under the optimizer of ``job``."""
        optimizer = job.optimizer_spec
        rate = job.model.dense.learning_rate or optimizer.learning_rate
        return DenseLayers(model.dense, replace(optimizer, learning_rate=rate, max_norm=None), job.train.seed)

    def apply(self, entity: str, rows_AD: FloatArray) -> FloatArray:
        """What the layers of ``entity`` make of rows; the rows themselves if it has none."""
        if entity not in self._specs:
            return rows_AD
        return _last(self._pass(entity, rows_AD), rows_AD)

    def forward(self, block: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The same of all entities in ``block``, float32 (A, D) each; ``backward`` goes the way back."""
        self._passed = {entity: self._pass(entity, block[entity]) for entity in self.entities}
        return {**block, **{entity: _last(tiles, block[entity]) for entity, tiles in self._passed.items()}}

    def _pass(self, entity: str, rows_AD: FloatArray) -> list[list[LayerActivations]]:
        spec, parameters = self._specs[entity], self.parameters
        assert self._threads is not None
        return list(self._threads.map(lambda tile_AD: forward_layers(spec, parameters, tile_AD), _tiles(rows_AD)))

    def backward(self, gradients: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Gradients by what ``forward`` was last given, of those by what it gave; those by the layers are kept."""
        taken = {entity: self._return(entity, gradients[entity]) for entity in self.entities}
        return {**gradients, **taken}

    def _return(self, entity: str, gradient_AD: FloatArray) -> FloatArray:
        spec, parameters = self._specs[entity], self.parameters
        self._gradients |= {name: np.zeros(shape, np.float32) for name, shape in spec.shapes().items()}
        out_AD = np.empty((len(gradient_AD), spec.widths[0]), np.float32)
        assert self._threads is not None
        tiles = self._threads.map(
            lambda passed, tile_AD: backward_layers(spec, parameters, passed, tile_AD),
            self._passed.pop(entity),
            _tiles(gradient_AD),
        )
        for number, (tile_AD, by_parameters) in enumerate(tiles):
            out_AD[number * _TILE_ROWS : (number + 1) * _TILE_ROWS] = tile_AD
            for name, values in by_parameters.items():
                self._gradients[name] += values
        return out_AD

    def update(self, rate_factor: float) -> None:
        """Apply the gradients of the last ``backward``, of all workers, at the learning rate times ``rate_factor``.

        Raises:
            DivergedError: a gradient or a new value is not finite, or beyond 1e18.
            ClusterError: a worker is gone.
        """
        if self.all_reduce is not None:
            self._sum_gradients(self.all_reduce)
        for name, optimizer in self._optimizers.items():
            optimizer.lr_factor = rate_factor
            values = self.parameters[name]
            try:
                optimizer.update(values, np.arange(len(values)), self._gradients[name])
            except DivergedError as error:
                raise DivergedError(f"dense layers ({name}): {error}") from error

    def _sum_gradients(self, all_reduce: AllReduce) -> None:
        """Sum the gradients over workers, all at once: an exchange costs the more, the more there are."""
        total_N = all_reduce.sum(np.concatenate([self._gradients[name].ravel() for name in self.parameters]))
        ends = np.cumsum([values.size for values in self.parameters.values()])
        for (name, values), summed_N in zip(self.parameters.items(), np.split(total_N, ends[:-1]), strict=True):
            self._gradients[name] = summed_N.reshape(values.shape)

    def checksum(self) -> int:
        """The CRC-32 of all that they hold: the same at each worker."""
        crc = 0
        for values in self._arrays().values():
            crc = zlib.crc32(values.tobytes(), crc)
        return crc

    def _arrays(self) -> dict[str, FloatArray]:
        """All that they hold: each array of parameters, and of its optimizer's state, by name."""
        arrays = dict(self.parameters)
        for name, optimizer in self._optimizers.items():
            arrays |= {f"{name}.{state}": values for state, values in optimizer.state.items()}
        return arrays

    def files(self) -> dict[str, bytes]:
        """What a checkpoint keeps of them now: a file that ``numpy.load`` reads, by its name; none without layers."""
        if not self._specs:
            return {}
        file = io.BytesIO()
        np.savez(file, **self._arrays())
        return {DENSE_FILE: file.getvalue()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over what ``checkpoint`` has of them.

        Raises:
            CheckpointError: its file is damaged or cannot be read.
            InputError: it has none, or others.
        """
        data = checkpoint.file(DENSE_FILE)
        uri = f"{checkpoint.uri}/{DENSE_FILE}"
        arrays = self._arrays()
        if data is None and arrays:
            raise InputError(
                f"{checkpoint.uri}: has no dense layers, but the job wants some for {' and '.join(self.entities)}; "
                "expected a checkpoint of a job with the same model.dense"
            )
        found = {} if data is None else _read(data, uri, checkpoint.uri)
        for name in sorted(found.keys() | arrays.keys()):
            has, wanted = (_describe(held.get(name)) for held in (found, arrays))
            if has != wanted:
                raise InputError(
                    f"{uri}: {name} is {has} there, and {wanted} in the job; expected a checkpoint of a job with the "
                    "same model.dense"
                )
        for name, values in arrays.items():
            values[...] = found[name]


def _fresh(name: str, shape: tuple[int, int], seed: int) -> FloatArray:
    """Initial values of the parameters ``name``."""
    kind = name.rpartition("/")[2]
    if kind != "weights":
        return np.full(shape, 1 if kind == "gain" else 0, np.float32)
    values = np.empty(shape, np.float32)
    scale = float(np.sqrt(2 / sum(shape)))
    # No table has a slash in its name, so none shares these numbers.
    init_rows(values, np.arange(len(values)), seed=seed, table=f"dense/{name}", std=scale)
    return values


def _optimizer(name: str, shape: tuple[int, int], spec: OptimizerSpec) -> LazyOptimizer:
    decay = spec.weight_decay if name.endswith("/weights") else 0.0
    return make_optimizer(replace(spec, weight_decay=decay), *shape)


def _tiles(rows_AD: FloatArray) -> list[FloatArray]:
    return [rows_AD[start : start + _TILE_ROWS] for start in range(0, len(rows_AD), _TILE_ROWS)]


def _last(tiles: Sequence[Sequence[LayerActivations]], rows_AD: FloatArray) -> FloatArray:
    """What came out of the last layer, which is as wide as what went into the first."""
    if not tiles:
        return np.empty_like(rows_AD)
    return np.concatenate([passed[-1].outputs_AD for passed in tiles])


def _read(data: bytes, uri: str, checkpoint: str) -> dict[str, FloatArray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{uri}: is no file of arrays: {error}", checkpoint) from error


def _describe(values: FloatArray | None) -> str:
    return "missing" if values is None else f"{values.dtype} {' x '.join(map(str, values.shape))}"
