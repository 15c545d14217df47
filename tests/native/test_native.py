"""The kernels without Python: every compiler at hand, this CPU and an emulated AArch64."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]  # as in setup.py

# Compiler → its flags, and what runs the program.
BUILDS = {
    "gcc": ([], []),
    "clang": ([], []),
    "aarch64-linux-gnu-gcc": (["-static"], ["qemu-aarch64"]),
}


@pytest.mark.parametrize("compiler", BUILDS)
def test_every_kernel_is_close_to_plain_loops(compiler: str, tmp_path: Path) -> None:
    flags, runner = BUILDS[compiler]
    for command in (compiler, *runner):
        if shutil.which(command) is None:
            pytest.skip(f"needs {command} (Debian: gcc-aarch64-linux-gnu, qemu-user, clang)")
    program = tmp_path / "kernel_test"
    source = REPO / "tests" / "native" / "kernel_test.c"
    include = f"-I{REPO / 'cython_kernels'}"
    build = [compiler, *FLAGS, *flags, include, str(source), "-o", str(program), "-lm"]
    built = subprocess.run(build, capture_output=True, text=True, timeout=400, check=False)
    assert built.returncode == 0, built.stderr
    assert "warning" not in built.stderr
    done = subprocess.run(
        [*runner, program], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* passed, 0 failed$", done.stdout, re.MULTILINE)
    arm = bool(runner) or platform.machine() == "aarch64"
    assert re.search(r"^neon: [1-9]\d* passed$", done.stdout, re.MULTILINE) or not arm


def _features_asked_for(isa: str) -> set[str]:
    """Those that an ISA's header asks the CPU for, and those of the ISA that it builds on."""
    header = (REPO / "cython_kernels" / "isa" / f"{isa}.h").read_text()
    asked = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', header))
    bases = re.findall(r"return is_supported_(\w+)\(\)", header)
    return asked.union(*map(_features_asked_for, bases))


@pytest.mark.parametrize("isa", ["avx2", "avx512", "avx512_vnni", "avx512_bf16"])
def test_the_target_region_names_no_feature_that_is_not_asked_for(isa: str) -> None:
    header = (REPO / "cython_kernels" / "isa" / f"{isa}.h").read_text()
    regions = re.findall(r'target\("([\w,]+)"\)', header)  # clang's and gcc's
    assert len(regions) == 2
    for region in regions:
        assert set(region.split(",")) <= _features_asked_for(isa)
        assert isa.partition("_")[2].replace("_", "") in region
