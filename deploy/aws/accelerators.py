"""The GPU of each AWS instance type, the image variant for it, and how a job fits the type.

Which GPUs the packages of MXNet and PyTorch have code for, and which NVIDIA driver they need, is in
``trainer/model/engines/gpu_code.py``: variant torch has ``TORCH_WHEEL``, cu112 and cu90 a package of ``MXNET_WHEELS``.

    variant_of("ml.p2.xlarge")              # "cu90"
    variant_of("ml.g5.xlarge")              # "torch"
    variant_of("ml.g5.xlarge", "mxnet")     # "cu112"
    variant_of("r6i.xlarge")                # "cpu"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossfade.base.errors import InputError, Option
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.model.engines.cuda_driver import Capability
from crossfade.trainer.model.engines.gpu_code import TORCH_WHEEL, MXNetVariant, has_code, mxnet_variant

if TYPE_CHECKING:
    from crossfade.trainer.config.sections import EngineName

Variant = Literal["cpu", "torch"] | MXNetVariant

_ENGINES: dict[Variant, tuple[EngineName, ...]] = {
    "cpu": ("cpu", "mxnet"),
    "torch": ("torch", "cpu"),
    "cu112": ("mxnet", "cpu"),
    "cu90": ("mxnet", "cpu"),
}
"""The engines of each variant, first the one by which it computes where ``train.engine`` is auto."""


@dataclass(frozen=True)
class Gpu:
    """A GPU model and its CUDA compute capability."""

    name: str
    capability: Capability

    @property
    def variants(self) -> list[Variant]:
        """The image variants with code for this GPU, the newest first."""
        found: list[Variant] = ["torch"] if has_code(TORCH_WHEEL.codes, self.capability) else []
        mxnet = mxnet_variant(self.capability)
        return found if mxnet is None else [*found, mxnet]


_GPUS: dict[str, Gpu] = {
    family: Gpu(name, capability)
    for name, capability, families in (
        ("K80", (3, 7), ("p2",)),
        ("M60", (5, 2), ("g3", "g3s")),
        ("V100", (7, 0), ("p3", "p3dn")),
        ("T4", (7, 5), ("g4dn",)),
        ("A100", (8, 0), ("p4d", "p4de")),
        ("A10G", (8, 6), ("g5",)),
        ("L4", (8, 9), ("g6", "g6f", "gr6", "gr6f")),
        ("L40S", (8, 9), ("g6e",)),
        ("H100", (9, 0), ("p5",)),
        ("H200", (9, 0), ("p5e", "p5en")),
        ("B200", (10, 0), ("p6-b200",)),
        ("B300", (10, 3), ("p6-b300",)),
        ("RTX PRO 6000", (12, 0), ("g7e",)),
    )
    for family in families
}
"""By family: https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html, https://developer.nvidia.com/cuda-gpus."""
_ACCELERATED = re.compile(r"(dl|f|g|gr|inf|p|trn|vt)[0-9].*")
"""Families with an accelerator. No image has code for those that are not in ``_GPUS``, such as trn1, g4ad, and g5g."""
_TYPE = re.compile(r"(?:ml\.)?([a-z][a-z0-9-]*)\.[a-z0-9-]+")


def gpu_of(instance_type: str) -> Gpu | None:
    """Return the GPU of ``instance_type``, None if it has none. SageMaker's types begin with ``ml.``.

    Raises:
        InputError: it is no instance type, or has an accelerator that no image has code for.
    """
    match = _TYPE.fullmatch(instance_type)
    if match is None or (match[1] not in _GPUS and _ACCELERATED.fullmatch(match[1])):
        problem = "is no instance type" if match is None else "has an accelerator that no image has code for"
        raise InputError(
            f"{instance_type} {problem}; choose another ",
            Option("instance_type"),
            ", such as g4dn.xlarge, g5.xlarge, or r6i.4xlarge without a GPU",
        )
    return _GPUS.get(match[1])


def variant_of(instance_type: str, engine: EngineName = "auto") -> Variant:
    """Return the newest image variant that runs on ``instance_type`` and has ``engine``, the job's ``train.engine``.

    Raises:
        InputError: the type is unknown, or no variant that runs on it has the engine.
    """
    gpu = gpu_of(instance_type)
    variants: list[Variant] = gpu.variants if gpu else ["cpu"]
    for variant in variants:
        if engine == "auto" or engine in _ENGINES[variant]:
            return variant
    having = f"its GPU, {gpu.name}" if gpu else "its processor, without a GPU"
    raise InputError(
        f"train.engine is {engine}, but no image has that engine for {instance_type}: {having}, runs "
        f"{' or '.join(f'crossfade:{variant}' for variant in variants)}; leave train.engine out, or choose another ",
        Option("instance_type"),
        ", such as g4dn.xlarge or g5.xlarge",
    )


def check_device(job: JobConfig, instance_type: str) -> None:
    """Check that the instance type exists, and has a GPU if the job names one.

    Raises:
        InputError: it does not, or has none.
    """
    if gpu_of(instance_type) is None and job.train.on_gpu:
        raise InputError(
            f"train.device is {job.train.device}, but {instance_type} has no GPU; choose another ",
            Option("instance_type"),
            ", such as g5.xlarge, or add ",
            Option("set", "train.device=auto"),
        )
