"""docs/distributed.md names the GPU, package, and image variant of each AWS instance type as the code does."""

import re
from pathlib import Path

from crossfade.deploy.aws.accelerators import _GPUS
from crossfade.trainer.model.engines.gpu_code import MXNET_WHEELS, TORCH_WHEEL, has_code, mxnet_variant

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch>=2.9,<2.14"


def rows_of_types() -> dict[str, list[str]]:
    """Return the other cells of the table of instance types, by family."""
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    table = page.partition("| instance types |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return {family: row[1:] for row in rows for family in row[0].split(", ")}


def test_table_of_instance_types_agrees_with_the_code() -> None:
    expected = {}
    for family, gpu in _GPUS.items():
        if has_code(TORCH_WHEEL.codes, gpu.capability):
            engine, package, variant = "torch", TORCH, "torch"
        else:
            image = mxnet_variant(gpu.capability)
            assert image is not None
            engine, package, variant = "mxnet", MXNET_WHEELS[image].requirement, image
        expected[family] = [gpu.name, ".".join(map(str, gpu.capability)), engine, package, variant]
    assert {family: row[:5] for family, row in rows_of_types().items()} == expected
