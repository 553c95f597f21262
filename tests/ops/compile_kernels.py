"""Compile the kernels ahead of time and print what the machine code holds, as JSON.

A program of its own, run by ``test_triton_compiled``: the tests' process interprets the
kernels, and one that interprets cannot compile. It needs no GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

sys.path.insert(0, str(Path(__file__).parents[2]))

from sae_lens_hierarchical.ops import loss_budgets
from sae_lens_hierarchical.ops.triton import by_feature, kernels
from sae_lens_hierarchical.ops.triton.launch import (
    TABLE,
    budget_mask,
    compiler_options,
    plan_launch,
)

ARCHITECTURES = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
BATCH, D_IN = 8192, 2304
TYPES = {4: "*fp32", 2: "*bf16"}
# These stand for numbers that a real launch finds to be multiples of 16.
ALIGNED = ("d_in", "pass_columns", "first_column", "n_elements")


def fused(
    itemsize: int,
    k: int,
    budgets: list[int],
    architecture: int,
    d_sae: int = 65_536,
    **changes: Any,
) -> dict[str, Any]:
    """Compile ``fused_loss`` as ``op`` would launch it on this architecture."""
    launch = plan_launch(
        BATCH, k, D_IN, len(budgets), itemsize, architecture, d_sae=d_sae
    )
    constants = {
        "GROUPS": launch.groups,
        "RANKS": launch.ranks,
        "LANES": launch.lanes,
        "EVEN": launch.even,
        "BUDGET_MASK": budget_mask(budgets, launch.ranks),
        "TOPK": budgets == [k],
        "GRADIENTS": True,
        "TARGET_GRADIENT": False,
        "ATOMIC": True,
    } | changes
    weights = dict.fromkeys(
        ("target_ptr", "values_ptr", "W_dec_ptr", "b_dec_ptr"), TYPES[itemsize]
    )
    integers = {"indices_ptr": "*i64", "rank_budgets_ptr": "*i32"}
    result = compile_kernel(
        kernels.fused_loss, weights | integers, constants, launch.warps, architecture
    )
    # Each rank's row, and target's and b_dec's, in loads of four columns.
    row_loads = 2 * (launch.ranks + 2)
    adds = 2 * launch.ranks if constants["ATOMIC"] and constants["GRADIENTS"] else 0
    return result | {
        "wide_load": f"LDG.E.{32 * itemsize}",
        "wide_loads_expected": row_loads,
        "vector_adds_expected": adds,
    }


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, arch: int
) -> dict[str, Any]:
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        pointer = "*fp32" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, pointer)
        if name.endswith("_ptr") or name in ALIGNED:
            attributes[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options=compiler_options(warps),
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        code = disassemble(file.name)
    registers, stack, shared, local = map(
        int,
        re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", code)[-1],
    )
    operations = re.findall(
        r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", code
    )
    return {
        "registers": registers,
        "stack": stack,
        "local": local,
        "shared": shared,
        "threads": 32 * warps,
        "instructions": len(operations),
        "spills": [o for o in operations if o.startswith(("LDL", "STL"))],
        "loads": [o for o in operations if o.startswith("LDG")],
        "stores": [o for o in operations if o.startswith("STG")],
        "fused": [o for o in operations if o.startswith("FFMA")],
        "atomics": [o for o in operations if o.startswith(("RED", "ATOM"))],
    }


def disassemble(file: str) -> str:
    return subprocess.run(
        [TOOLS / "cuobjdump", "--dump-resource-usage", "--dump-sass", file],
        env=os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    rows = sorted({(size, k) for (_, size), rows in TABLE.items() for k in rows})
    for arch in ARCHITECTURES:
        # H100's are those that the table was made for; of the others the two extremes.
        for size, k in rows if arch == 90 else (rows[0], rows[-1]):
            result = fused(size, k, loss_budgets(k), arch)
            yield f"sm_{arch} row {8 * size} bit, K {k}, J_1", result
        yield (
            f"sm_{arch} scale",
            compile_kernel(
                kernels.scale, {"n_elements": "i64"}, {"BLOCK_SIZE": 4096}, 4, arch
            ),
        )
        integers: dict[str, str] = dict.fromkeys(
            ("rows_ptr", "indptr_ptr", "chunk_ends_ptr", "chunk_features_ptr"), "*i32"
        )
        for kernel in (kernels.sum_chunks, kernels.merge_chunks):
            name = f"sm_{arch} {kernel.fn.__name__}"
            yield (
                name,
                compile_kernel(
                    kernel, integers, by_feature.TILE, by_feature.WARPS, arch
                ),
            )
    j_1, j_8 = loss_budgets(128), loss_budgets(128, 8)
    for name, size, k, budgets, options in (
        ("J_1", 4, 128, j_1, {}),
        ("J_8", 4, 128, j_8, {}),
        ("TopK", 4, 128, [128], {}),
        ("J_1, bfloat16", 2, 128, j_1, {}),
        ("J_8, bfloat16", 2, 128, j_8, {}),
        ("TopK, bfloat16", 2, 128, [128], {}),
        ("K 32", 4, 32, loss_budgets(32), {}),
        ("reproducible", 4, 128, j_1, {"ATOMIC": False}),
        ("reproducible, bfloat16", 2, 128, j_1, {"ATOMIC": False}),
        ("target's gradient", 4, 128, j_1, {"TARGET_GRADIENT": True}),
        ("forward", 4, 128, j_1, {"GRADIENTS": False}),
        ("masked", 4, 100, loss_budgets(100), {}),
        ("d_sae 131,072", 4, 128, j_1, {"d_sae": 131_072}),
        ("d_sae 1,048,576", 4, 128, j_1, {"d_sae": 2**20}),
        ("d_sae 131,072, bfloat16", 2, 128, j_8, {"d_sae": 131_072}),
    ):
        yield f"sm_90 {name}", fused(size, k, budgets, 90, **options)


def compilations(kernel: Any, name: str, numbers: Iterable[int]) -> int:
    """Return how often Triton would compile a kernel whose launches differ in a number.

    Triton compiles anew for a number that is 1, or a multiple of 16.
    """
    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = dict.fromkeys(kernel.arg_names, 0)
    return len({str(bind(**arguments | {name: n})[1]) for n in numbers})


if __name__ == "__main__":
    results = {
        "code": dict(variants()),
        "compilations": {
            name: compilations(kernels.fused_loss, name, range(33))
            for name in ("first_block", "pass_columns")
        },
    }
    print(json.dumps(results))
