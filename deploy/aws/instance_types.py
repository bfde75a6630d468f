"""Memory and network bandwidth of Amazon EC2 instance types.

    find_instance("r6i.4xlarge").usable_bytes

Memory is ``MemoryInfo.SizeInMiB`` and bandwidth is ``NetworkInfo.NetworkCards[].BaselineBandwidthInGbps`` and
``PeakBandwidthInGbps`` as EC2's DescribeInstanceTypes returns them
(https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypes.html); the same figures are in
https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html (p, g), mo.html (r) and gp.html (m). For p2 and p3 it
only gave ``NetworkPerformance``: "High" for p2.xlarge, which is not a figure, and "Up to 10 Gigabit" for p3.2xlarge.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from crossfade.base.errors import InputError, option_named

GIB = 2**30
GIGABIT = 10**9

LINUX_SHARE = 1 / 64
"""Share of memory that Linux needs for page descriptors: 64 bytes (``struct page``) for each page of 4,096."""
LINUX_BYTES = GIB // 2
"""Other memory of an idle Linux, measured on a virtual machine of 24 GiB: 24 GiB less 1/64 less MemAvailable."""


@dataclass(frozen=True)
class InstanceType:
    """One instance type. Bandwidth above ``baseline_gbit``, up to ``peak_gbit``, is available in bursts only."""

    name: str
    memory_gib: float
    baseline_gbit: float | None
    peak_gbit: float | None

    @property
    def usable_bytes(self) -> int:
        """Bytes that Linux leaves to processes."""
        return int(self.memory_gib * GIB * (1 - LINUX_SHARE)) - LINUX_BYTES

    @property
    def vcpus(self) -> int:
        """Virtual CPUs: AWS gives an xlarge 4, an 8xlarge 8 times as many, and a metal those of its largest size."""
        family, _, size = self.name.partition(".")
        if size == "metal":
            return _METAL_VCPUS[family]
        return 2 if size == "large" else 4 * int(size.removesuffix("xlarge") or 1)

    @property
    def bits_per_second(self) -> float | None:
        """The sustained bandwidth, or the peak where AWS publishes no other; None if it publishes neither."""
        gbit = self.baseline_gbit or self.peak_gbit
        return None if gbit is None else gbit * GIGABIT


_METAL_VCPUS = {"g4dn": 96}
_SIZES: dict[str, list[tuple[str, float, float | None, float | None]]] = {
    "p2": [("xlarge", 61, None, None), ("8xlarge", 488, 10, 10), ("16xlarge", 732, 25, 25)],
    "p3": [("2xlarge", 61, None, 10), ("8xlarge", 244, 10, 10), ("16xlarge", 488, 25, 25)],
    "p3dn": [("24xlarge", 768, 100, 100)],
    "g4dn": [
        ("xlarge", 16, 5, 25),
        ("2xlarge", 32, 10, 25),
        ("4xlarge", 64, 20, 25),
        ("8xlarge", 128, 50, 50),
        ("12xlarge", 192, 50, 50),
        ("16xlarge", 256, 50, 50),
        ("metal", 384, 100, 100),
    ],
    "g5": [
        ("xlarge", 16, 2.5, 10),
        ("2xlarge", 32, 5, 10),
        ("4xlarge", 64, 10, 25),
        ("8xlarge", 128, 25, 25),
        ("12xlarge", 192, 40, 40),
        ("16xlarge", 256, 25, 25),
        ("24xlarge", 384, 50, 50),
        ("48xlarge", 768, 100, 100),
    ],
    "r5": [
        ("large", 16, 0.75, 10),
        ("xlarge", 32, 1.25, 10),
        ("2xlarge", 64, 2.5, 10),
        ("4xlarge", 128, 5, 10),
        ("8xlarge", 256, 10, 10),
        ("12xlarge", 384, 12, 12),
        ("16xlarge", 512, 20, 20),
        ("24xlarge", 768, 25, 25),
    ],
    "r6i": [
        ("large", 16, 0.781, 12.5),
        ("xlarge", 32, 1.562, 12.5),
        ("2xlarge", 64, 3.125, 12.5),
        ("4xlarge", 128, 6.25, 12.5),
        ("8xlarge", 256, 12.5, 12.5),
        ("12xlarge", 384, 18.75, 18.75),
        ("16xlarge", 512, 25, 25),
        ("24xlarge", 768, 37.5, 37.5),
        ("32xlarge", 1024, 50, 50),
    ],
    "r7g": [
        ("large", 16, 0.937, 12.5),
        ("xlarge", 32, 1.876, 12.5),
        ("2xlarge", 64, 3.75, 15),
        ("4xlarge", 128, 7.5, 15),
        ("8xlarge", 256, 15, 15),
        ("12xlarge", 384, 22.5, 22.5),
        ("16xlarge", 512, 30, 30),
    ],
    "m5": [
        ("large", 8, 0.75, 10),
        ("xlarge", 16, 1.25, 10),
        ("2xlarge", 32, 2.5, 10),
        ("4xlarge", 64, 5, 10),
        ("8xlarge", 128, 10, 10),
        ("12xlarge", 192, 12, 12),
        ("16xlarge", 256, 20, 20),
        ("24xlarge", 384, 25, 25),
    ],
}

INSTANCES = {
    f"{family}.{size}": InstanceType(f"{family}.{size}", memory, baseline, peak)
    for family, sizes in _SIZES.items()
    for size, memory, baseline, peak in sizes
}


def find_instance(name: str) -> InstanceType:
    """Return the instance type ``name``.

    Raises:
        InputError: it is not in the table.
    """
    if name not in INSTANCES:
        near = difflib.get_close_matches(name, INSTANCES, n=1, cutoff=0.6)
        hint = (
            f"did you mean '{near[0]}'?" if near else "known types are p2.8xlarge, g5.4xlarge, r6i.4xlarge and others"
        )
        raise InputError(
            f"{option_named('instance_type', name)}: unknown type; {hint} (known families: {', '.join(_SIZES)}; for "
            f"any other, compare the figures with its memory and set {option_named('bandwidth')})"
        )
    return INSTANCES[name]
