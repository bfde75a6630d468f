"""The GPU and processor of each AWS instance type, the image variant for it, and how a job fits the type.

Which GPUs the packages of MXNet and PyTorch have code for, and which NVIDIA driver they need, is in
``trainer/model/engines/gpu_code.py``: variant torch has the first of ``TORCH_WHEELS``, and cu112 and cu90 have those of
``MXNET_WHEELS``. Only slim, without MXNet and PyTorch, is also for Arm.

    variant_of("ml.p2.xlarge")              # "cu90"
    variant_of("ml.g5.xlarge")              # "torch"
    variant_of("ml.g5.xlarge", "mxnet")     # "cu112"
    variant_of("r7g.xlarge")                # "slim"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossfade.base.errors import InputError, Option
from crossfade.base.text import counted
from crossfade.deploy.topology import sizes_on_hosts
from crossfade.trainer.config.schema import JobConfig
from crossfade.trainer.config.sections import ClusterConfig, on_gpu
from crossfade.trainer.model.engines.cuda_driver import Capability, format_version
from crossfade.trainer.model.engines.gpu_code import TORCH_WHEELS, MXNetVariant, has_code, mxnet_variant

if TYPE_CHECKING:
    from crossfade.trainer.config.sections import EngineName

Variant = Literal["cpu", "slim", "torch"] | MXNetVariant

ENGINES: dict[Variant, EngineName] = {"cpu": "cpu", "slim": "cpu", "torch": "torch", "cu112": "mxnet", "cu90": "mxnet"}
"""The engine by which each variant computes where ``train.engine`` is auto."""
_PACKAGES: dict[EngineName, str] = {"torch": "PyTorch", "mxnet": "MXNet"}


@dataclass(frozen=True)
class Gpu:
    """A GPU model and its CUDA compute capability."""

    name: str
    capability: Capability

    @property
    def variants(self) -> list[Variant]:
        """The image variants with code for this GPU, the newest first."""
        found: list[Variant] = ["torch"] if has_code(TORCH_WHEELS[0].codes, self.capability) else []
        mxnet = mxnet_variant(self.capability)
        return found if mxnet is None else [*found, mxnet]


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
_ARM_REASON = "has an Arm processor (Graviton), for which there is no MXNet package"
_ARM_WITH_GPU = {"g5g": "NVIDIA T4G"}
_TYPE = re.compile(r"([a-z][a-z0-9-]*)\.([a-z0-9-]+)")
_OTHERS = "g4dn.xlarge, g5.xlarge, or r6i.4xlarge without a GPU"


def gpu_of(instance_type: str) -> Gpu | None:
    """Return the GPU of ``instance_type``, None if it has none. SageMaker's types begin with ``ml.``.

    Raises:
        InputError: the type is unknown, or no image runs on it; the message has the reason.
    """
    match = _TYPE.fullmatch(instance_type.removeprefix("ml."))
    if match is None:
        raise InputError(f"instance type '{instance_type}': expected one such as {_OTHERS}")
    family = match[1]
    if family in _GPUS:
        return _GPUS[family]
    if family in _NOT_NVIDIA:
        raise InputError(
            f"instance type '{instance_type}': its accelerator is {_NOT_NVIDIA[family]}, but only NVIDIA GPUs are "
            f"supported; choose another type, such as {_OTHERS}"
        )
    if family in _ARM_WITH_GPU:
        raise InputError(
            f"instance type '{instance_type}': its GPU ({_ARM_WITH_GPU[family]}) is beside an Arm processor, for which "
            f"no image has an engine for GPUs; choose another type, such as {_OTHERS}"
        )
    if _ARM.fullmatch(family):
        return None
    if not _CPU_FAMILIES.fullmatch(family):
        raise InputError(
            f"instance type '{instance_type}': unknown family '{family}'; choose another type, such as {_OTHERS}"
        )
    return None


def is_arm(instance_type: str) -> bool:
    """Return whether ``instance_type`` has an Arm processor, AWS's Graviton."""
    return _ARM.fullmatch(instance_type.removeprefix("ml.").partition(".")[0]) is not None


def variant_of(instance_type: str, engine: EngineName = "auto") -> Variant:
    """Return the newest image variant that runs on ``instance_type`` and has ``engine``, the job's ``train.engine``.

    Raises:
        InputError: the type is unknown, or no variant that runs on it has the engine; the message has the reason.
    """
    gpu = gpu_of(instance_type)
    if gpu is None:
        return _without_gpu(instance_type, engine)
    for variant in gpu.variants:
        if engine in ("auto", "cpu", ENGINES[variant]):
            return variant
    raise InputError(
        f"train.engine is {engine}, but {_PACKAGES[engine]} has no code for the GPU of {instance_type}, {gpu.name} "
        f"(compute capability {format_version(gpu.capability)}); leave train.engine out, which uses "
        f"{_PACKAGES[ENGINES[gpu.variants[0]]]}, or choose another ",
        Option("instance_type"),
        ", such as g4dn.xlarge or g5.xlarge",
    )


def _without_gpu(instance_type: str, engine: EngineName) -> Variant:
    """Return the variant for an instance without a GPU.

    Raises:
        InputError: the variant lacks the engine.
    """
    variant: Variant = "slim" if is_arm(instance_type) else "cpu"
    if engine == "mxnet" and variant == "slim":
        raise InputError(
            f"train.engine is mxnet, but {instance_type} {_ARM_REASON}; leave train.engine out, or choose another ",
            Option("instance_type"),
            ", such as r6i.4xlarge",
        )
    if engine == "torch":
        raise InputError(
            f"train.engine is torch, but {instance_type} has no GPU, and the image for it, crossfade:{variant}, has no "
            "PyTorch; leave train.engine out, choose an ",
            Option("instance_type"),
            " with a GPU, such as g4dn.xlarge or g5.xlarge, or set an ",
            Option("image"),
            " that has PyTorch",
        )
    return variant


def sizes_on_instances(cluster: ClusterConfig, instance_type: str, hosts: int) -> dict[str, int]:
    """Return ``servers`` and ``workers`` on ``hosts`` instances of this type, where ``cluster`` leaves them open.

    On Arm, workers hold the tables.

    Raises:
        InputError: the job needs servers, which are MXNet's, and the instances have an Arm processor.
    """
    if not is_arm(instance_type):
        return sizes_on_hosts(cluster, hosts)
    sizes = sizes_on_hosts(cluster.model_copy(update={"store": "sharded"}), hosts)
    if cluster.store == "mxnet":
        found = "cluster.store is mxnet"
    elif servers := cluster.servers or sizes.get("servers"):
        found = f"the job has {counted(servers, 'server')}"
    else:
        return sizes
    workers = f" and cluster.workers to {hosts}" if hosts > 1 and cluster.workers == 1 else ""
    raise InputError(
        f"{found}, but {instance_type} {_ARM_REASON}; let the workers hold the tables (set cluster.store to sharded, "
        f"cluster.servers to 0{workers}), or choose another ",
        Option("instance_type"),
        ", such as r6i.4xlarge",
    )


_SUCCESSORS = {
    "p2": "g4dn.xlarge",
    "g3": "g4dn.xlarge",
    "g3s": "g4dn.xlarge",
    "p3": "g5.xlarge",
    "p3dn": "g5.xlarge",
}
"""By family that AWS is retiring (docs/aws.md has the sources), the nearest type that it is not."""


def check_device(job: JobConfig, instance_type: str) -> None:
    """Check that the job can run on this instance type, and that this has a GPU if the job names one.

    Raises:
        InputError: it cannot, or has none.
    """
    gpu = gpu_of(instance_type)
    if on_gpu(job.train.devices) and gpu is None:
        raise InputError(
            f"train.device is {', '.join(job.train.devices)}, but {instance_type} has no GPU; choose another ",
            Option("instance_type"),
            ", such as g5.xlarge, or add ",
            Option("set", "train.device=auto"),
        )


def notes(job: JobConfig, instance_type: str, hosts: int) -> Iterator[str]:
    """Yield what the user should read about ``job`` on ``hosts`` instances of this type."""
    family, prefix = instance_type.removeprefix("ml.").partition(".")[0], "ml." * instance_type.startswith("ml.")
    if family in _SUCCESSORS:
        successor = gpu_of(_SUCCESSORS[family])
        assert successor is not None
        yield (
            f"AWS is retiring {family} (docs/aws.md), so {instance_type} may not be available; the nearest type that "
            f"stays is {prefix}{_SUCCESSORS[family]}, with the GPU {successor.name}"
        )
    gpu, train = gpu_of(instance_type), job.train
    if gpu is not None and (train.engine == "cpu" or train.devices[0] == "cpu"):
        key = "train.engine" if train.engine == "cpu" else "train.device"
        yield (
            f"{instance_type} has a GPU ({gpu.name}) that the job does not use: {key} is cpu; an instance without one, "
            f"such as m5.xlarge, costs less ({key}=auto uses the GPU)"
        )
    cluster = job.cluster.model_copy(update=sizes_on_instances(job.cluster, instance_type, hosts))
    if job.model_copy(update={"cluster": cluster}).needs_horovod:
        yield (
            "dense layers (model.dense) of several workers need Horovod beside servers: use an image that was built "
            "with HOROVOD=1 (docs/docker.md), or let the workers hold the tables (cluster.store: sharded)"
        )
