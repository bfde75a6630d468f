"""What computes gradients: the interface of engines, and which engine and device a worker uses.

    choice = choose_engine(job.train, local_rank(store.rank), store.workers)
    choice.engine, choice.device            # "torch", "gpu:0"
    engine = choice.build(job, model)
    vectors, tape = towers.forward(batch, block)
    loss, gradients = engine.gradients(batch, vectors)

An engine gets vectors, after towers and dense layers, and returns their gradients: it does not depend on how they were
made.

Where ``train.engine`` or ``train.device`` is ``auto``, a GPU is used that an installed engine can drive, PyTorch before
MXNet, and the CPU otherwise. Of several such GPUs, each worker uses one: its rank among the workers of its host, modulo
their count. ``gpu`` is the same without the CPU. What is requested by number is used or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from crossfade.base.environment import environment_integer
from crossfade.base.errors import InputError
from crossfade.trainer.config.schema import TrainConfig
from crossfade.trainer.config.sections import EngineName
from crossfade.trainer.model.engines.cuda_driver import DriverState, GpuInfo, find_gpus
from crossfade.trainer.model.engines.gpu_code import mxnet_reason, torch_reason

if TYPE_CHECKING:
    from crossfade.base.arrays import FloatArray
    from crossfade.trainer.config.schema import JobConfig
    from crossfade.trainer.model.batches import Batch
    from crossfade.trainer.model.spec import ModelSpec

LOCAL_RANK_VARIABLE = "CROSSFADE_LOCAL_RANK"
"""The number of a worker among those of its host, from 0; its agent sets it."""
_MAX_LOCAL_RANK = 65_535
_REASONS: dict[EngineName, Callable[[GpuInfo], str | None]] = {"torch": torch_reason, "mxnet": mxnet_reason}
"""Why an engine cannot drive a GPU; the first engine that can is preferred."""


class Engine(Protocol):
    """Computes losses and gradients from the vectors of a batch's active rows, at a cost independent of table size.

    Attributes:
        name: as ``train.engine`` names it.
        device: as ``train.device`` names it, a GPU with its number.
    """

    name: str
    device: str

    def gradients(self, batch: Batch, vectors: Mapping[str, FloatArray]) -> tuple[float, dict[str, FloatArray]]:
        """Compute this worker's part of the mean loss over the global batch, and its gradients.

        Args:
            batch: the examples and negatives, by active row.
            vectors: by entity, the vectors of its active rows, float32 (A, D), in the order of the batch's ``rows_A``.

        Returns:
            The loss, and the gradients of ``vectors``. Summed over workers, both are those of
            Σ_b |w_b|·loss_b / global_size, where loss_b is the reversed loss if w_b < 0
            (``trainer/model/losses.py``). An empty batch gives 0 and gradients of shape (0, D).
        """

    def gpu_memory(self) -> tuple[int, int] | None:
        """Return the used and the total bytes of the engine's GPU, None on the CPU. Any thread may call it."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine and the device of a worker.

    Attributes:
        engine: cpu, mxnet or torch.
        device: by its name in a job file; a GPU with its number.
        notes: what the user should know about GPUs that are not used, a line each.
    """

    engine: EngineName
    device: str
    notes: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    def build(self, job: JobConfig, model: ModelSpec) -> Engine:
        """Create the engine for ``model`` and the loss and negatives of ``job``.

        Raises:
            MissingExtraError: it needs a package that is not installed.
            InputError: it needs a GPU that is not available.
        """
        # Each engine is imported where it is used: the others may not be installed, and kernels take time to load.
        from crossfade.trainer.model.losses import LossSpec

        loss = LossSpec.of(job)
        if self.engine == "torch":
            from crossfade.trainer.model.engines.torch import TorchEngine

            return TorchEngine(model, loss, job.negatives, self.device)
        if self.engine == "mxnet":
            from crossfade.trainer.model.engines.mxnet import MXNetEngine

            return MXNetEngine(model, loss, job.negatives, self.device)
        from crossfade.trainer.model.engines.cpu import CpuEngine

        return CpuEngine(model, loss, job.negatives)


def local_rank(rank: int) -> int:
    """Return the number of this worker among those of its host, or ``rank``, among all, if no agent started it.

    Raises:
        InputError: the variable that the agent sets is not a number.
    """
    return environment_integer(LOCAL_RANK_VARIABLE, rank, 0, _MAX_LOCAL_RANK)


def choose_engine(train: TrainConfig, rank: int = 0, workers: int = 1) -> EngineChoice:
    """Choose for a worker.

    Args:
        train: what the job requests.
        rank: the number of the worker among those of its host.
        workers: the number of workers on all hosts.

    Raises:
        InputError: a GPU is requested that is not there, or that no engine in question can drive.
    """
    if train.engine == "cpu" or (train.device == "cpu" and train.engine == "auto"):
        return EngineChoice("cpu", "cpu")
    if train.device == "cpu":
        return EngineChoice(train.engine, "cpu")
    engines = list(_REASONS) if train.engine == "auto" else [train.engine]
    state = find_gpus()
    if train.device != "auto":
        return _requested(engines, train.device, state, rank)
    found = _usable(engines, state.gpus)
    if found is None:
        notes = (state.problem,) if state.problem else _notes(engines[0], state.gpus)
        return EngineChoice("cpu" if train.engine == "auto" else train.engine, "cpu", notes)
    engine, usable = found
    notes = _notes(engine, state.gpus)
    if workers == 1 and len(usable) > 1:
        notes += (f"of {len(usable)} GPUs, a worker uses one: for all of them, set cluster.workers to {len(usable)}",)
    return EngineChoice(engine, _name(usable[rank % len(usable)]), notes)


def drivers(gpu: GpuInfo) -> tuple[list[EngineName], str]:
    """Return the engines that can drive ``gpu``, and why the preferred one cannot; empty if it can."""
    reasons = {name: reason_of(gpu) for name, reason_of in _REASONS.items()}
    return [name for name, reason in reasons.items() if reason is None], next(iter(reasons.values())) or ""


def _requested(engines: Sequence[EngineName], name: str, state: DriverState, rank: int) -> EngineChoice:
    requested = f"train.device is {name}"
    if not state.gpus:
        raise InputError(
            f"{requested}, but no GPU is found here ({state.problem or 'NVIDIA has no driver or no device here'}): set "
            "train.device to cpu or auto"
        )
    gpus = list(state.gpus)
    if name != "gpu":
        number = int(name.removeprefix("gpu:"))
        if number >= len(gpus):
            raise InputError(f"{requested}, but the GPUs of this machine are {', '.join(map(str, gpus))}")
        gpus = [gpus[number]]
    if found := _usable(engines, gpus):
        engine, usable = found
        return EngineChoice(engine, _name(usable[rank % len(usable)]))
    raise InputError(f"{requested}: {_notes(engines[0], gpus)[0]}")


def _name(gpu: GpuInfo) -> str:
    return f"gpu:{gpu.index}"


def _usable(engines: Sequence[EngineName], gpus: Sequence[GpuInfo]) -> tuple[EngineName, list[GpuInfo]] | None:
    """Return the first of ``engines`` that can drive a GPU, and the GPUs that it can drive."""
    for engine in engines:
        usable = [gpu for gpu in gpus if _REASONS[engine](gpu) is None]
        if usable:
            return engine, usable
    return None


def _notes(engine: EngineName, gpus: Sequence[GpuInfo]) -> tuple[str, ...]:
    """Return why ``engine`` cannot drive some of ``gpus``: a line for each reason, with the first GPU it applies to."""
    first: dict[str, GpuInfo] = {}
    for gpu in gpus:
        if reason := _REASONS[engine](gpu):
            first.setdefault(reason, gpu)
    return tuple(f"{gpu} cannot be used: {reason}" for reason, gpu in first.items())
