"""Compile the fused kernel without a GPU: Triton needs one to start kernels, but not to compile them.

    compile_kernels.py CAPABILITY:DIM...

CAPABILITY is a compute capability without its point, such as 90. Print a line of JSON for each kind of optimizer, with
and without switches, and each argument: the kernel's name, which ends with DIM, and its assembler code.
"""

import json
import sys
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crossfade.kvstore.optimizer_spec import KINDS, OptimizerKind, state_dtype, state_shapes
from crossfade.kvstore.torch import triton_kernels

STATE = {"sums": "sum_of_squares", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "step"}
TYPES = {"weights": "*fp32", "rows": "*i64", "gradient": "*fp32", "divergent": "*i8"}


def assembler(kind: OptimizerKind, with_switches: bool, dim: int, capability: int) -> str:
    """Return the code of the kernel as it is compiled for arguments at addresses that are multiples of 16."""
    kernel: Any = triton_kernels._update_kernel
    rows, columns = triton_kernels.block_shape(dim)
    constants: dict[str, Any] = {"KIND": kind, "HAS_DECAY": with_switches, "HAS_MAX_NORM": with_switches, "DIM": dim}
    constants |= {"BLOCK_ROWS": rows, "BLOCK_COLUMNS": columns}
    types: dict[str, str] = {}
    for name in kernel.arg_names:
        array = name.removesuffix("_pointer")
        if name == "active_rows":
            types[name] = "i32"
        elif array == name:
            types[name] = "constexpr" if name in constants else "fp32"
        elif array in TYPES:
            types[name] = TYPES[array]
        elif STATE[array] in state_shapes(kind, 1, dim):
            types[name] = {"float32": "*fp32", "int32": "*i32"}[state_dtype(STATE[array])]
        else:
            types[name], constants[name] = "constexpr", None
    aligned = [number for number, name in enumerate(kernel.arg_names) if types[name].startswith("*")]
    attributes = {(number,): [["tt.divisibility", 16]] for number in aligned}
    source = ASTSource(kernel, types, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_kernels.OPTIONS)
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])


def main() -> None:
    for kind, with_switches, words in product(KINDS, (False, True), sys.argv[1:]):
        capability, dim = map(int, words.split(":"))
        code = assembler(kind, with_switches, dim, capability)
        print(json.dumps([f"{kind} {with_switches} {capability} {dim}", code]), flush=True)


if __name__ == "__main__":
    main()
