"""Generated code, disassembled by objdump and run by NumPy: the few instructions that it has."""

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_kernels._kernels import PackedLinear, interpret_code

Halves = NDArray[np.float16]
Fma = Callable[[Halves, Halves, np.float16], Halves]  # accumulator, x, weight

LINE = 64  # bytes, of a register and of a cache line
HAS_OBJDUMP = shutil.which("objdump") is not None
# x, y, start, weights, next_block, next_x, next_y, next_start, next_y_other, next_start_other,
# y_other, start_other: `generated_fn` of generate_avx512.h, and where each argument is passed
FUNCTION = ctypes.CFUNCTYPE(None, *[ctypes.c_size_t] * 12)
PASSED = ("rdi", "rsi", "rdx", "rcx", "r8", "r9", *(f"rsp+{8 * i:#x}" for i in range(1, 7)))
X_AHEAD, WEIGHTS_AHEAD = 128 * LINE, 128 * 2  # bytes by which these two pointers are


def fma_rounded_once(acc: Halves, x: Halves, weight: np.float16) -> Halves:
    """As the instruction does it; of ordinary numbers float64 holds product and sum exactly."""
    return (acc + x.astype(np.float64) * np.float64(weight)).astype(np.float16)


def fma_rounded_twice(acc: Halves, x: Halves, weight: np.float16) -> Halves:
    """As the model in plain C does it, by way of float32."""
    return (acc + x.astype(np.float32) * np.float32(weight)).astype(np.float16)


def disassemble(code: bytes) -> list[tuple[str, list[str]]]:
    """Return mnemonic and operands of every instruction, up to the return."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel"]
        command += ["--no-show-raw-insn", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for text in re.findall(r"^ *[0-9a-f]+:\t(.*?) *$", listing, re.MULTILINE):
        mnemonic, _, operands = text.removeprefix("rex ").partition(" ")
        found.append((mnemonic, [operand for operand in operands.strip().split(",") if operand]))
        if mnemonic == "ret":
            return found
    raise ValueError("the code has no end")


class Interpreter:
    """Runs a weight's blocks in place of the CPU; keep it as long as the weight.

    Attributes:
        prefetched: Per call of a block what it has prefetched, addresses in this order.
        calls: Likewise, the arguments.
        error: What a call has raised: it is lost on the way through C.
    """

    def __init__(self, weight: PackedLinear, fma: Fma) -> None:
        self.prefetched: list[list[int]] = []
        self.calls: list[tuple[int, ...]] = []
        self.error: Exception | None = None
        self._functions: list[Any] = []
        self._fma = fma
        starts_from_bias = not weight.is_residual

        def function_of(code: bytes, block: np.void) -> int:
            listing = disassemble(code)
            is_bias = starts_from_bias and block["first_k"] == 0

            def call(*arguments: int) -> None:
                try:
                    self._run(listing, block, is_bias, arguments)
                except Exception as error:
                    self.error = error

            function = FUNCTION(call)
            self._functions.append(function)
            return ctypes.cast(function, ctypes.c_void_p).value or 0

        interpret_code(weight, function_of)

    def _run(
        self,
        listing: list[tuple[str, list[str]]],
        block: np.void,
        is_bias: bool,
        arguments: tuple[int, ...],
    ) -> None:
        rows, nonzeros = int(block["rows"]), int(block["num_values"])
        registers = dict(zip(PASSED, arguments, strict=True))
        x, y, start, weights, y_other, start_other = (*arguments[:4], *arguments[10:])
        size = 4 * rows if is_bias else LINE * rows
        to_write = [(y, LINE * rows), (y_other, LINE * rows)]
        to_read = [(x - X_AHEAD, LINE * int(block["k"])), (weights - WEIGHTS_AHEAD, 2 * nonzeros)]
        to_read += [*to_write, (start, size), (start_other, size)]
        zmm = np.full((32, 16), np.nan, np.float32)
        self.calls.append(arguments)
        self.prefetched.append([])

        def address(operand: str) -> int:
            base, sign, offset = re.fullmatch(
                r"(?:.* )?\[(\w+)(?:([+-])(0x\w+))?\]", operand
            ).groups()  # type: ignore[union-attr]
            return registers[base] + int(f"{sign or '+'}{offset or '0'}", 16)

        def memory(
            operand: str, dtype: type[np.generic], allowed: list[tuple[int, int]] = to_read
        ) -> NDArray[Any]:
            at, wide = address(operand), "ZMMWORD" in operand
            length = LINE if wide else np.dtype(dtype).itemsize
            assert any(first <= at and at + length <= first + n for first, n in allowed), operand
            assert not wide or at % LINE == 0
            return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(at)).view(dtype)

        def register(operand: str) -> NDArray[np.float32]:
            """The register, or the lower half of it."""
            row: NDArray[np.float32] = zmm[int(operand[3:])]
            return row if operand[0] == "z" else row[:8]

        for mnemonic, to in listing:
            match mnemonic:
                case "mov":
                    source = re.sub(r".*\[(.*)\]", r"\1", to[1])
                    registers[to[0]] = registers[source]
                case "lea":
                    registers[to[0]] = address(to[1])
                case "add":
                    registers[to[0]] += int(to[1], 16)
                case "prefetcht1":
                    self.prefetched[-1].append(address(to[0]))
                case "vmovaps" if to[0].startswith("zmm"):
                    register(to[0])[:] = memory(to[1], np.float32)
                case "vmovaps":
                    memory(to[0], np.float32, to_write)[:] = register(to[1])
                case "vpxord":
                    assert to[0] == to[1] == to[2]
                    register(to[0]).view(np.uint32)[:] = 0
                case "vfmadd231ph":
                    assert "BCST" in to[2]
                    acc = register(to[0]).view(np.float16)
                    weight = memory(to[2], np.float16)[0]
                    acc[:] = self._fma(acc, register(to[1]).view(np.float16), weight)
                case "vcvtph2ps":
                    halves = register(to[1]).view(np.float16).copy()  # they may overlap
                    register(to[0])[:] = halves
                case "vextracti32x8":
                    upper = register(to[1])[8 * int(to[2], 16) :].copy()
                    register(to[0])[:] = upper
                    register(f"z{to[0][1:]}")[8:] = 0.0
                case "vaddps":
                    register(to[0])[:] = register(to[1]) + memory(to[2], np.float32)
                case "ret":
                    return
                case _:
                    raise NotImplementedError(f"{mnemonic} {to}")
