"""Results of MXNet's engine by case, with small tiles and on simulated GPUs; called in a separate process."""

from dataclasses import dataclass
from unittest.mock import patch

from engine_cases import CASES, Result, gradients_by

from crossfade.base.errors import InputError
from crossfade.kvstore.mxnet.imports import import_mxnet
from crossfade.trainer.model.engines import mxnet
from crossfade.trainer.model.engines.mxnet import MXNetEngine

Results = dict[str, Result]
"""By case."""


@dataclass(frozen=True)
class GpuResults:
    """Results on GPUs, the memory that is in use, and what a GPU that is missing leads to."""

    results: Results
    memory: tuple[int, int] | None
    error: str


def results_on(device: str) -> Results:
    """Return the results on ``device``. Each engine computes a smaller batch first."""
    results = {}
    for name, case in CASES.items():
        engine = MXNetEngine(*case.parts, device)
        gradients_by(engine, case.part(slice(0, 2)))
        results[name] = gradients_by(engine, case)
    return results


def results_in_tiles(device: str, **limits: int) -> Results:
    """Return the results on ``device`` with other ``limits`` of the size of tiles."""
    with patch.multiple(mxnet, **limits):
        return results_on(device)


def results_on_gpus() -> GpuResults:
    """Return the results on a GPU, whose part a CPU context plays, with copies from and to pinned memory."""
    mx, case = import_mxnet(), CASES["softmax-dot-all"]
    memory = {0: (1, 10), 1: (2, 20)}
    with (
        patch.object(mx, "gpu", mx.cpu),
        patch.multiple(mx.context, num_gpus=lambda: 2, gpu_memory_info=memory.__getitem__),
    ):
        results = results_on("gpu:1")
        used = MXNetEngine(*case.parts, "gpu:1").gpu_memory()
        try:
            MXNetEngine(*case.parts, "gpu:2")
        except InputError as error:
            return GpuResults(results, used, str(error))
    raise AssertionError("a GPU that is missing is accepted")
