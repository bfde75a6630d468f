"""Dense layers on top of a tower's embeddings: forward, closed-form backward, and their own optimizer.

    layers = DenseLayers.of(job, model)
    vectors, tape = layers.forward(block)               # by entity, float32 (A, D)
    by_inputs, by_parameters = layers.backward(tape, by_vectors)
    layers.update(by_parameters, lr_factor)
    vectors_AD = layers.apply("track", rows_AD)         # to evaluate or to write

As in the two-tower models of Huang et al. (DSSM, CIKM 2013) and Yi et al. (YouTube, RecSys 2019), each side is a
feed-forward network, whose output is scored. With x the vector of a tower, every layer but the last computes

    a = W x,   μ = mean(a),   σ = √(mean((a − μ)²) + 1e-5)
    h = f(gain ⊙ (a − μ)/σ + bias)      (layer normalization; Ba, Kiros and Hinton, 2016, equations 3 and 4)

and the last one W x + bias, which is added to the tower's vector (He et al., CVPR 2016). f is max(0, ·). Means are over
the units of one row, so a row's vector does not depend on other rows, except that products of matrices round by their
shape: ``apply`` adds in a fixed order, so that an evaluated or written vector is the same whichever rows are computed
beside it. With z the argument of f, n = (a − μ)/σ and g = ∂loss/∂h ⊙ f′(z), sums over rows,

    ∂bias = Σ g,  ∂gain = Σ g ⊙ n,  ∂n = g ⊙ gain,  ∂a = (∂n − mean(∂n) − n mean(∂n ⊙ n))/σ,  ∂W = Σ ∂a xᵀ,  ∂x = Wᵀ ∂a

The content layer of a side is a single layer, W x + bias, whose x is the content of a row
(``trainer/data/features.py``) and whose output is one part of the tower's vector. It begins with outputs about as long
as an embedding.

W is initialized uniformly with standard deviation √(2/(inputs + outputs)) (Glorot and Bengio, 2010) from the
counter-based generator; biases are 0 and gains 1. The optimizer is the job's and treats each unit as a row that is
always active; weight decay applies to W only, and max_norm not at all. Rows are processed in tiles of a fixed size,
whose gradients are added in order, so results do not depend on the number of threads.

Each worker holds a copy of the layers. Their gradients, of the mean loss over the global batch, are summed over workers
before they are applied (``trainer/model/allreduce.py``), so that all copies stay equal.

Shapes: A rows, N parameters, D columns. Here, A1 is a column, (A, 1).
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from crossfade.base.arrays import FloatArray
from crossfade.base.errors import CheckpointError, DivergedError, InputError
from crossfade.base.io.regular_files import SMALL_FILE_BYTES
from crossfade.kvstore.checkpoint.checkpoint import Checkpoint
from crossfade.kvstore.finite import find_non_finite_row
from crossfade.kvstore.jit import get_num_threads, njit
from crossfade.kvstore.lanes import exact_dot
from crossfade.kvstore.optimizer_spec import OptimizerSpec
from crossfade.kvstore.optimizers import LazyOptimizer, make_optimizer
from crossfade.kvstore.philox import init_rows
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import resolved
from crossfade.trainer.model.allreduce import AllReduce
from crossfade.trainer.model.spec import LayerSpec, ModelSpec

DENSE_FILE = "dense.npz"
_TILE_ROWS = 256
"""Rows of a tile: each of its arrays takes about 100 KiB, which stays in the cache and the allocator's pool."""
_SMALLEST_VARIANCE = 1e-5

Parameters = Mapping[str, FloatArray]
"""Parameters by name, such as ``track/0/weights``."""

DenseGradients = Mapping[str, FloatArray]
"""Gradients by the name of the parameter."""


@dataclass(frozen=True)
class LayerActivations:
    """What ``backward_layers`` needs of one layer: inputs, outputs and, of all layers but the last, n and 1/σ."""

    inputs_AD: FloatArray
    outputs_AD: FloatArray
    normal_AD: FloatArray | None = None
    inverse_A1: FloatArray | None = None


DenseTape = Mapping[str, Sequence[Sequence[LayerActivations]]]
"""What ``DenseLayers.backward`` needs of ``forward``: by entity, for each tile of rows, its layers' activations."""


def forward_layers(
    spec: LayerSpec,
    parameters: Parameters,
    rows_AD: FloatArray,
    multiply: Callable[[FloatArray, FloatArray], FloatArray] = np.matmul,
) -> list[LayerActivations]:
    """Pass rows, float32 or float64, through the layers; the last activations hold the result.

    ``multiply`` multiplies rows by the transpose of weights.
    """
    activations: list[LayerActivations] = []
    for number in range(len(spec.widths) - 1):
        layer = f"{spec.entity}/{number}"
        inputs_AD = activations[-1].outputs_AD if activations else rows_AD
        raw_AD: FloatArray = multiply(inputs_AD, parameters[f"{layer}/weights"].T)
        normal_AD = inverse_A1 = None
        if f"{layer}/gain" in parameters:
            raw_AD -= raw_AD.mean(axis=1, keepdims=True)
            variance_A1 = np.square(raw_AD).mean(axis=1, keepdims=True)
            inverse_A1 = 1 / np.sqrt(variance_A1 + raw_AD.dtype.type(_SMALLEST_VARIANCE))
            normal_AD = raw_AD * inverse_A1
            raw_AD = normal_AD * parameters[f"{layer}/gain"]
        raw_AD += parameters[f"{layer}/bias"]
        if number < len(spec.widths) - 2:
            raw_AD = np.maximum(raw_AD, 0)
        elif not spec.reads_content:
            raw_AD += rows_AD
        activations.append(LayerActivations(inputs_AD, raw_AD, normal_AD, inverse_A1))
    return activations


def backward_layers(
    spec: LayerSpec, parameters: Parameters, activations: Sequence[LayerActivations], gradient_AD: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Compute the gradients of the inputs and of the parameters from that of the result of ``forward_layers``.

    That of content, which nothing is learned by, is left out: the first array is then meaningless.
    """
    gradients: dict[str, FloatArray] = {}
    residual_AD = gradient_AD
    for number, layer_activations in reversed(list(enumerate(activations))):
        layer = f"{spec.entity}/{number}"
        if number < len(activations) - 1:
            gradient_AD = gradient_AD * (layer_activations.outputs_AD > 0)
        gradients[f"{layer}/bias"] = gradient_AD.sum(axis=0, keepdims=True)
        if layer_activations.normal_AD is not None:
            normal_AD = layer_activations.normal_AD
            gradients[f"{layer}/gain"] = (gradient_AD * normal_AD).sum(axis=0, keepdims=True)
            gradient_AD = gradient_AD * parameters[f"{layer}/gain"]
            along_A1 = (gradient_AD * normal_AD).mean(axis=1, keepdims=True)
            gradient_AD = gradient_AD - gradient_AD.mean(axis=1, keepdims=True) - normal_AD * along_A1
            gradient_AD *= layer_activations.inverse_A1
        gradients[f"{layer}/weights"] = gradient_AD.T @ layer_activations.inputs_AD
        if number or not spec.reads_content:
            gradient_AD = gradient_AD @ parameters[f"{layer}/weights"]
    return gradient_AD if spec.reads_content else gradient_AD + residual_AD, gradients


class DenseLayers:
    """The layers of all towers of a model, which may be none, and the state of their optimizer."""

    def __init__(self, specs: Sequence[LayerSpec], optimizer: OptimizerSpec, seed: int) -> None:
        """Initialize the layers of ``specs`` from ``seed``; all share the settings of ``optimizer``."""
        self._specs = {spec.entity: spec for spec in specs}
        self.entities = tuple(self._specs)
        shapes = {name: shape for spec in specs for name, shape in spec.shapes().items()}
        self.parameters = {
            name: _initial_values(name, shape, seed, spec.init_std)
            for spec in specs
            for name, shape in spec.shapes().items()
        }
        self._optimizers = {name: _optimizer(name, shape, optimizer) for name, shape in shapes.items()}
        self.all_reduce: AllReduce | None = None
        """Sums gradients over workers; None with a single worker."""
        self._threads = ThreadPoolExecutor(get_num_threads(), thread_name_prefix="dense") if specs else None

    @staticmethod
    def of(job: JobConfig, model: ModelSpec) -> DenseLayers:
        """Initialize the layers of ``model`` with the optimizer of ``job``."""
        optimizer = replace(job.optimizer_spec, learning_rate=resolved(job.model.dense.learning_rate), max_norm=None)
        return DenseLayers(model.dense, optimizer, job.train.seed)

    def apply(self, entity: str, rows_AD: FloatArray) -> FloatArray:
        """Compute the vectors of ``entity`` from the rows of its tower; the rows themselves if it has no layers."""
        if entity not in self._specs:
            return rows_AD
        return self._outputs(entity, self._forward(entity, rows_AD, _multiply_in_order), rows_AD)

    def forward(self, block: Mapping[str, FloatArray]) -> tuple[dict[str, FloatArray], DenseTape]:
        """Compute the outputs for the entities and content layers in ``block``, float32 (A, D) each.

        Returns:
            The vectors by entity, and the tape that ``backward`` needs.
        """
        tape = {entity: self._forward(entity, block[entity]) for entity in self.entities if entity in block}
        outputs = {entity: self._outputs(entity, tiles, block[entity]) for entity, tiles in tape.items()}
        return {**block, **outputs}, tape

    def _outputs(self, entity: str, tiles: Sequence[Sequence[LayerActivations]], rows_AD: FloatArray) -> FloatArray:
        """Join the outputs of the last layer for ``rows_AD``."""
        if not tiles:
            return np.empty((0, self._specs[entity].widths[-1]), rows_AD.dtype)
        return np.concatenate([activations[-1].outputs_AD for activations in tiles])

    def _forward(
        self,
        entity: str,
        rows_AD: FloatArray,
        multiply: Callable[[FloatArray, FloatArray], FloatArray] = np.matmul,
    ) -> list[list[LayerActivations]]:
        spec, parameters = self._specs[entity], self.parameters
        assert self._threads is not None
        tiles = _tiles(rows_AD)
        return list(self._threads.map(lambda tile_AD: forward_layers(spec, parameters, tile_AD, multiply), tiles))

    def backward(
        self, tape: DenseTape, gradients: Mapping[str, FloatArray]
    ) -> tuple[dict[str, FloatArray], DenseGradients]:
        """Compute the gradients of the inputs, by entity, and of the parameters.

        Args:
            tape: what ``forward`` returned with the vectors.
            gradients: those of the outputs, by entity or content layer; others are returned unchanged.
        """
        by_inputs: dict[str, FloatArray] = {}
        by_parameters: dict[str, FloatArray] = {}
        for entity in (entity for entity in self.entities if entity in gradients):
            by_inputs[entity], of_entity = self._backward(entity, tape[entity], gradients[entity])
            by_parameters |= of_entity
        return {**gradients, **by_inputs}, by_parameters

    def _backward(
        self, entity: str, tape: Sequence[Sequence[LayerActivations]], gradient_AD: FloatArray
    ) -> tuple[FloatArray, dict[str, FloatArray]]:
        spec, parameters = self._specs[entity], self.parameters
        by_parameters = {name: np.zeros(shape, gradient_AD.dtype) for name, shape in spec.shapes().items()}
        out_AD = np.empty((len(gradient_AD), spec.widths[-1 if spec.reads_content else 0]), gradient_AD.dtype)
        assert self._threads is not None
        tiles = self._threads.map(
            lambda activations, tile_AD: backward_layers(spec, parameters, activations, tile_AD),
            tape,
            _tiles(gradient_AD),
        )
        for number, (tile_AD, of_tile) in enumerate(tiles):
            out_AD[number * _TILE_ROWS : (number + 1) * _TILE_ROWS] = tile_AD
            for name, values in of_tile.items():
                by_parameters[name] += values
        return out_AD, by_parameters

    def update(self, gradients: DenseGradients, lr_factor: float) -> None:
        """Apply ``gradients``, summed over all workers, at the learning rate times ``lr_factor``.

        Raises:
            DivergedError: a gradient or a new value is not finite, or beyond 1e18.
            ClusterError: another worker was lost.
        """
        if self.all_reduce is not None:
            gradients = self._sum_over_workers(gradients, self.all_reduce)
        for name, optimizer in self._optimizers.items():
            optimizer.lr_factor = lr_factor
            values = self.parameters[name]
            try:
                optimizer.update(values, np.arange(len(values)), gradients[name])
            except DivergedError as error:
                raise DivergedError(f"dense layers ({name}): ", error.args) from error

    def _sum_over_workers(self, gradients: DenseGradients, all_reduce: AllReduce) -> DenseGradients:
        """Sum all gradients in one exchange, since each exchange has a fixed cost."""
        total_N = all_reduce.sum(np.concatenate([gradients[name].ravel() for name in self.parameters]))
        ends = np.cumsum([values.size for values in self.parameters.values()])
        return {
            name: summed_N.reshape(values.shape)
            for (name, values), summed_N in zip(self.parameters.items(), np.split(total_N, ends[:-1]), strict=True)
        }

    def checksum(self) -> int:
        """Compute the CRC-32 of parameters and optimizer state, which is the same at every worker."""
        crc = 0
        for values in self._arrays().values():
            crc = zlib.crc32(values.tobytes(), crc)
        return crc

    def _arrays(self) -> dict[str, FloatArray]:
        """Return the parameters and their optimizer's state by name."""
        arrays = dict(self.parameters)
        for name, optimizer in self._optimizers.items():
            arrays |= {f"{name}.{state}": values for state, values in optimizer.state.items()}
        return arrays

    def files(self) -> dict[str, bytes]:
        """Return the files of a checkpoint: one that ``numpy.load`` reads, by its name; none without layers."""
        if not self._specs:
            return {}
        file = io.BytesIO()
        np.savez(file, **self._arrays())
        return {DENSE_FILE: file.getvalue()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Restore parameters and optimizer state from ``checkpoint``.

        Raises:
            CheckpointError: its file is corrupt or cannot be read, or a value is not finite.
            InputError: it has no layers, or other layers.
        """
        arrays = self._arrays()
        expected_bytes = sum(values.nbytes for values in arrays.values())
        data = checkpoint.file(DENSE_FILE, max(SMALL_FILE_BYTES, 2 * expected_bytes))
        uri = f"{checkpoint.uri}/{DENSE_FILE}"
        if data is None and arrays:
            raise InputError(
                f"{checkpoint.uri}: has no dense layers, but the job has some for {' and '.join(self.entities)}; "
                "expected a checkpoint of a job with the same model.dense and content"
            )
        found = {} if data is None else _read(data, uri, checkpoint=checkpoint.uri)
        for name in sorted(found.keys() | arrays.keys()):
            actual, expected = (_describe(held.get(name)) for held in (found, arrays))
            if actual != expected:
                raise InputError(
                    f"{uri}: {name} is {actual} in the checkpoint and {expected} in the job; expected a "
                    "checkpoint of a job with the same model.dense and content"
                )
        for name, values in arrays.items():
            if find_non_finite_row(found[name]) is not None:
                raise CheckpointError(f"{uri}: {name} has values that are not finite", checkpoint=checkpoint.uri)
            values[...] = found[name]


def _initial_values(name: str, shape: tuple[int, int], seed: int, init_std: float | None) -> FloatArray:
    kind = name.rpartition("/")[2]
    if kind != "weights":
        return np.full(shape, 1 if kind == "gain" else 0, np.float32)
    values = np.empty(shape, np.float32)
    std = float(np.sqrt(2 / sum(shape)) if init_std is None else init_std / np.sqrt(shape[1]))
    # Names of tables have no slash, so no table shares these random numbers.
    init_rows(values, np.arange(len(values)), seed=seed, table=f"dense/{name}", std=std)
    return values


def _optimizer(name: str, shape: tuple[int, int], spec: OptimizerSpec) -> LazyOptimizer:
    decay = spec.weight_decay if name.endswith("/weights") else 0.0
    return make_optimizer(replace(spec, weight_decay=decay), *shape)


def _multiply_in_order(rows_AD: FloatArray, weights_DN: FloatArray) -> FloatArray:
    """Return the product, in float32 with each element summed in an order that depends on nothing but D."""
    if rows_AD.dtype != np.float32:
        return rows_AD @ weights_DN
    product_AN = np.empty((len(rows_AD), weights_DN.shape[1]), np.float32)
    _sum_in_order(np.ascontiguousarray(rows_AD), np.ascontiguousarray(weights_DN.T), product_AN)
    return product_AN


@njit(cache=True, nogil=True)
def _sum_in_order(rows_AD, weights_ND, product_AN):  # type: ignore[no-untyped-def]
    for a in range(product_AN.shape[0]):
        for n in range(product_AN.shape[1]):
            product_AN[a, n] = np.float32(exact_dot(rows_AD[a], weights_ND[n]))


def _tiles(rows_AD: FloatArray) -> list[FloatArray]:
    return [rows_AD[start : start + _TILE_ROWS] for start in range(0, len(rows_AD), _TILE_ROWS)]


def _read(data: bytes, uri: str, checkpoint: str) -> dict[str, FloatArray]:
    try:
        _check_members(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    # RuntimeError: encrypted, compressed in another way, or a header nested too deeply.
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, RuntimeError, MemoryError, struct.error) as error:
        raise CheckpointError(f"{uri}: is not an .npz file: {error}", checkpoint=checkpoint) from error


def _check_members(data: bytes) -> None:
    """Reject arrays that would take more memory than the file: ``np.savez`` stores them as they are.

    Raises:
        ValueError: there is one.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(data):
            raise ValueError("its arrays are compressed, or take more bytes than the file")
        for member in members:
            with archive.open(member) as file:
                if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
                    raise ValueError(f"{member.filename} is of another version of the format")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
            if prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} has fewer bytes than its header announces")


def _describe(values: FloatArray | None) -> str:
    return "missing" if values is None else f"{values.dtype} {' x '.join(map(str, values.shape))}"
