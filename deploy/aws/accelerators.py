"""The GPU of each AWS instance type, and the image variant whose MXNet has code for it.

Which GPUs the packages of MXNet and PyTorch have code for, and which NVIDIA driver they need, is in
``trainer/model/engines/gpu_code.py``: variants cu112 and cu90 have the packages of ``MXNET_WHEELS``.

    variant_of("ml.p2.xlarge")     # "cu90"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossfade.kvstore.errors import InputError
from crossfade.trainer.model.engines.cuda_driver import Capability, format_version
from crossfade.trainer.model.engines.gpu_code import MXNetVariant, mxnet_variant

if TYPE_CHECKING:
    from crossfade.trainer.config.schema import JobConfig

Variant = Literal["cpu"] | MXNetVariant

DEFAULT_EC2_TYPE = "p2.xlarge"
DEFAULT_SAGEMAKER_TYPE = "ml.p2.xlarge"


@dataclass(frozen=True)
class Gpu:
    """A GPU model and its CUDA compute capability."""

    name: str
    capability: Capability

    @property
    def variant(self) -> Variant | None:
        """The newest image variant whose MXNet has code for this GPU; None if there is none."""
        return mxnet_variant(self.capability)


_K80, _M60, _V100, _T4 = Gpu("K80", (3, 7)), Gpu("M60", (5, 2)), Gpu("V100", (7, 0)), Gpu("T4", (7, 5))
_A100, _A10G, _L4, _L40S = Gpu("A100", (8, 0)), Gpu("A10G", (8, 6)), Gpu("L4", (8, 9)), Gpu("L40S", (8, 9))
_H100, _H200, _B200 = Gpu("H100", (9, 0)), Gpu("H200", (9, 0)), Gpu("B200", (10, 0))
_B300, _RTX_PRO = Gpu("B300", (10, 3)), Gpu("RTX PRO 6000", (12, 0))

_GPUS: dict[str, Gpu] = {
    "p2": _K80,
    "p3": _V100,
    "p3dn": _V100,
    "p4d": _A100,
    "p4de": _A100,
    "p5": _H100,
    "p5e": _H200,
    "p5en": _H200,
    "p6-b200": _B200,
    "p6-b300": _B300,
    "g3": _M60,
    "g3s": _M60,
    "g4dn": _T4,
    "g5": _A10G,
    "g6": _L4,
    "g6f": _L4,
    "gr6": _L4,
    "gr6f": _L4,
    "g6e": _L40S,
    "g7e": _RTX_PRO,
}
"""By family: https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html, https://developer.nvidia.com/cuda-gpus."""

_NOT_NVIDIA = {
    "g4ad": "AMD Radeon Pro V520",
    "dl1": "Habana Gaudi",
    "dl2q": "Qualcomm AI 100",
    "trn1": "AWS Trainium",
    "trn1n": "AWS Trainium",
    "trn2": "AWS Trainium2",
    "trn2u": "AWS Trainium2",
    "inf1": "AWS Inferentia",
    "inf2": "AWS Inferentia2",
    "f1": "an FPGA",
    "f2": "an FPGA",
    "vt1": "Xilinx U30",
}
_CPU_FAMILIES = re.compile(r"(c|d|h|hpc|i|im|is|m|r|t|u|u7i|u7in|u7inh|x|x2idn|x2iedn|x2iezn|z)[0-9]+[a-z0-9-]*")
_ARM = re.compile(r"a1|[a-z]+[0-9]+[a-z]*g[a-z]*(-[a-z0-9]+)?")
"""By AWS's naming, a g after the generation's number means Graviton: m6g, c7gn, g5g."""
_TYPE = re.compile(r"([a-z][a-z0-9-]*)\.([a-z0-9-]+)")
_OTHERS = "g4dn.xlarge, g5.xlarge, or r6i.4xlarge without a GPU"


@dataclass(frozen=True)
class Accelerator:
    """What an instance type computes on: its GPU, or None, and the matching image variant."""

    gpu: Gpu | None
    variant: Variant


def accelerator_of(instance_type: str) -> Accelerator:
    """Return what ``instance_type`` computes on. SageMaker's types begin with ``ml.``.

    Raises:
        InputError: the type is unknown, or MXNet cannot run on it; the message has the reason.
    """
    match = _TYPE.fullmatch(instance_type.removeprefix("ml."))
    if match is None:
        raise InputError(f"instance type '{instance_type}': expected one such as {_OTHERS}")
    family = match[1]
    if family in _GPUS:
        gpu = _GPUS[family]
        if gpu.variant is None:
            raise InputError(
                f"instance type '{instance_type}': MXNet cannot use its GPU, {gpu.name}: it has no code for compute "
                f"capability {format_version(gpu.capability)}; choose another type, such as {_OTHERS}"
            )
        return Accelerator(gpu, gpu.variant)
    if family in _NOT_NVIDIA:
        raise InputError(
            f"instance type '{instance_type}': its accelerator is {_NOT_NVIDIA[family]}, but MXNet supports only "
            f"NVIDIA GPUs; choose another type, such as {_OTHERS}"
        )
    if _ARM.fullmatch(family):
        raise InputError(
            f"instance type '{instance_type}': has an Arm processor (Graviton), for which there is no MXNet "
            f"package; choose another type, such as {_OTHERS}"
        )
    if not _CPU_FAMILIES.fullmatch(family):
        raise InputError(
            f"instance type '{instance_type}': unknown family '{family}'; choose another type, such as {_OTHERS}"
        )
    return Accelerator(None, "cpu")


def variant_of(instance_type: str) -> Variant:
    """Return the image variant for ``instance_type``.

    Raises:
        InputError: the type is unknown, or MXNet cannot run on it.
    """
    return accelerator_of(instance_type).variant


def horovod_note(job: JobConfig, hosts: int) -> str | None:
    """Return a note for jobs that all-reduce the gradients of dense layers: their image needs Horovod.

    None for jobs that do not. Each of ``hosts`` runs a worker, or more if ``cluster.workers`` is larger.
    """
    if max(hosts, job.cluster.workers) == 1 or not job.model.has_dense_layers:
        return None
    return (
        "dense layers (model.dense) of several workers need Horovod: use an image of variant cpu that was built with "
        "--build-arg HOROVOD=1 (docs/docker.md)"
    )
