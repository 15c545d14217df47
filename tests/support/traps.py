"""AMX and AVX512-FP16 on a CPU without them: `traps.c` does what each of their instructions does.

Slow, but it is the code as it was compiled for such CPUs, where the models of `isa/models.h` are
the same source with other instructions.
"""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

from cython_kernels import _kernels

ISA = "amx_bf16_code"


def install() -> str | None:
    """Handle SIGILL in this process from now on; return why not, if that cannot be."""
    compiler = shutil.which("gcc")
    try:
        _kernels.forms_of(ISA)
    except ValueError:  # not x86-64, or a CPU that lacks more
        return "needs AVX-512 BF16"
    if compiler is None:
        return "needs gcc"
    if "amx_bf16" in _kernels.available_isas():
        return "AMX is here: nothing traps"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "traps.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, *flags, source, "-o", library], check=True, timeout=100)
        traps = ctypes.CDLL(str(library))
    if traps.install_traps():
        raise OSError("the handler of SIGILL could not be installed")
    return None
