"""The GPUs of this machine that PyTorch can use, or why there are none."""

from functools import lru_cache

from crossfade.trainer.model.engines.cuda_driver import find_gpus
from crossfade.trainer.model.engines.gpu_code import torch_reason


@lru_cache
def usable_gpus() -> tuple[tuple[str, ...], str]:
    """Return the GPUs that PyTorch can use, as ``train.device`` names them, and why it cannot use the others.

    PyTorch is imported only where there is a GPU.
    """
    state = find_gpus()
    if not state.gpus:
        return (), state.problem or "NVIDIA's driver is not installed, or it has no device"
    reasons = {gpu: torch_reason(gpu) for gpu in state.gpus}
    usable = tuple(f"gpu:{gpu.index}" for gpu, reason in reasons.items() if reason is None)
    return usable, "; ".join(f"{gpu} cannot be used: {reason}" for gpu, reason in reasons.items() if reason)
