"""Choose the engine and the devices of a worker, where ``train.engine`` or ``train.device`` is ``auto``.

    choice = choose_engine(job.train, rank=0, workers=1)
    choice.engine, choice.devices           # "torch", ("gpu:0",)

``auto`` uses a GPU that an installed engine can drive, PyTorch before MXNet, and the CPU otherwise. Of several GPUs,
each worker uses one: number rank modulo their count. What is requested by name is used or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crossfade.kvstore.errors import InputError
from crossfade.trainer.config.devices import EngineName
from crossfade.trainer.config.schema import TrainConfig
from crossfade.trainer.model.engines.cuda_driver import DriverState, GpuInfo, find_gpus
from crossfade.trainer.model.engines.gpu_code import mxnet_reason, torch_reason

_REASONS: dict[EngineName, Callable[[GpuInfo], str | None]] = {"torch": torch_reason, "mxnet": mxnet_reason}
"""Why an engine cannot drive a GPU; the first engine that can is preferred."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine and the devices of a worker.

    Attributes:
        engine: cpu, mxnet or torch.
        devices: by their names in a job file; GPUs with their number.
        notes: what the user should know about GPUs that are not used, a line each.
    """

    engine: EngineName
    devices: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the devices are GPUs."""
        return self.devices[0] != "cpu"


def choose_engine(train: TrainConfig, rank: int = 0, workers: int = 1) -> EngineChoice:
    """Choose for worker ``rank`` of ``workers``.

    Raises:
        InputError: a GPU is requested that is not there, or that no engine in question can drive.
    """
    names = train.devices
    if train.engine == "cpu" or (names[0] == "cpu" and train.engine == "auto"):
        return EngineChoice("cpu", ("cpu",))
    if names[0] == "cpu":
        return EngineChoice(train.engine, tuple(names))
    state = find_gpus()
    if names[0] == "auto":
        return _automatic(train.engine, state, rank, workers)
    return _requested(train.engine, names, state, rank)


def drivers(gpu: GpuInfo) -> tuple[list[EngineName], str]:
    """Return the engines that can drive ``gpu``, and why the preferred one cannot; empty if it can."""
    reasons = {name: reason_of(gpu) for name, reason_of in _REASONS.items()}
    return [name for name, reason in reasons.items() if reason is None], next(iter(reasons.values())) or ""


def _engines(engine: EngineName) -> list[EngineName]:
    return list(_REASONS) if engine == "auto" else [engine]


def _automatic(engine: EngineName, state: DriverState, rank: int, workers: int) -> EngineChoice:
    on_cpu: EngineName = "cpu" if engine == "auto" else engine
    if not state.gpus:
        return EngineChoice(on_cpu, ("cpu",), (state.problem,) if state.problem else ())
    gpu = state.gpus[rank % len(state.gpus)]
    found, reason = _driving(engine, [gpu])
    if found is None:
        return EngineChoice(on_cpu, ("cpu",), (reason,))
    idle = [f"gpu:{other.index}" for other in state.gpus if other != gpu]
    notes = [
        f"train.device is auto, which uses {gpu}, but not {', '.join(idle)}: for all of them, set train.device to "
        f"[{', '.join(f'gpu:{other.index}' for other in state.gpus)}]"
    ]
    return EngineChoice(found, (f"gpu:{gpu.index}",), tuple(notes) if idle and workers == 1 else ())


def _requested(engine: EngineName, names: Sequence[str], state: DriverState, rank: int) -> EngineChoice:
    requested = f"train.device is {', '.join(names)}"
    if not state.gpus:
        raise InputError(
            f"{requested}, but no GPU is found here ({state.problem or 'NVIDIA has no driver or no device here'}): set "
            "train.device to cpu or auto"
        )
    by_name = {f"gpu:{gpu.index}": gpu for gpu in state.gpus}
    numbered = [f"gpu:{state.gpus[rank % len(state.gpus)].index}" if name == "gpu" else name for name in names]
    for name in numbered:
        if name not in by_name:
            raise InputError(f"{requested}, but the GPUs of this machine are {', '.join(map(str, state.gpus))}")
    found, reason = _driving(engine, [by_name[name] for name in numbered])
    if found is None:
        raise InputError(f"{requested}: {reason}")
    return EngineChoice(found, tuple(numbered))


def _driving(engine: EngineName, gpus: Sequence[GpuInfo]) -> tuple[EngineName | None, str]:
    """Return the first engine in question that can drive all of ``gpus``; else None and why the first cannot."""
    reasons = []
    for name in _engines(engine):
        problems = [f"{gpu} cannot be used: {reason}" for gpu in gpus if (reason := _REASONS[name](gpu)) is not None]
        if not problems:
            return name, ""
        reasons.append(problems[0])
    return None, reasons[0]
