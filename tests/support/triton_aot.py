"""Compiles the launches that road_kernels/triton/prepare.py prepares, for any GPU, without having one."""

import collections
import re
import subprocess
from pathlib import Path

import torch

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
# Triton's compiler (3.6 to 3.9) aborts on constants of such a type.
_ONE_ELEMENT = re.compile(r"tensor<(?:1x)+[a-z!]")


def forget_launches() -> None:
    """For a test that prepares them for another device or with other constants, before and after it."""
    from road_kernels.triton import calls, prepare, prepare_fused

    for function in (*vars(prepare).values(), *vars(prepare_fused).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    calls.ready.clear()


def compile_launch(launch, dtypes: list[torch.dtype], target: str, aligned: bool = True, small: bool = False):
    """What launch(*tensors) would compile for tensors of these dtypes on 16-byte boundaries (or not).

    small: each in a storage of less than 2 GB, which Triton's AMD backend accesses with buffer instructions.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = launch.kernel
    values = dict(zip(kernel.arg_names[len(dtypes) :], launch.tail, strict=True))
    constants = {p.name for p in kernel.params if p.is_constexpr}
    pointers = {name: "*" + _NAMES[dtype] for name, dtype in zip(kernel.arg_names, dtypes, strict=False)}
    signature = {name: pointers.get(name, "constexpr" if name in constants else "i64") for name in kernel.arg_names}
    known = [["tt.divisibility", 16]] * aligned + [["tt.pointer_range", 32]] * small
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): values[name] for name in constants},
        attrs={(i,): known for i in range(len(dtypes))},
    )
    options = launch.options(hip=TARGETS[target][0] == "hip")
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    for stage in ("ttir", "ttgir"):
        lines = [line for line in compiled.asm[stage].splitlines() if _ONE_ELEMENT.search(line)]
        assert not lines, f"{kernel.__name__} has tiles of one element: {lines[:3]}"
    return compiled


class Sass:
    """Resources and memory accesses of a kernel compiled for an NVIDIA GPU."""

    def __init__(self, compiled, folder: Path):
        import triton

        cubin = folder / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

        def read(option):
            return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout

        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", read("-res-usage")))
        self.registers, self.stack, self.local = (int(usage[key]) for key in ("REG", "STACK", "LOCAL"))
        self.shared = compiled.metadata.shared
        self.accesses = collections.Counter(re.findall(r"\b(?:LDG|STG|LDL|STL)[A-Z0-9.]*", read("-sass")))
        self.row_loop_uses_shared_memory = _row_loop_changes_layout(compiled.asm["ttgir"])

    def widths(self, kind: str) -> set[str]:
        """{"128"} if all loads ("LDG") or stores ("STG") of global memory move 16 bytes."""
        found = (re.search(r"\.(128|64|U16|U8)", a) for a in self.accesses if a.startswith(kind))
        return {m.group(1) if m else "32" for m in found}


def _row_loop_changes_layout(ttgir: str) -> bool:
    """Whether an innermost loop converts a tensor's layout: a round trip through shared memory for every row."""
    depth, loops = 0, []  # (brace depth where a loop began, whether it contains another, its lines)
    innermost = []
    for line in ttgir.splitlines():
        if re.search(r"\b(scf\.for|scf\.while)\b", line):
            for loop in loops:
                loop[1] = True
            loops.append([depth, False, []])
        depth += line.count("{") - line.count("}")
        for loop in loops:
            loop[2].append(line)
        if loops and depth <= loops[-1][0] and " do {" not in line:
            _, nested, lines = loops.pop()
            if not nested:
                innermost.append("\n".join(lines))
    return any("tt.load" in loop and "ttg.convert_layout" in loop for loop in innermost)
