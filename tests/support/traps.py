"""AMX and AVX512-FP16 on a CPU without them: `traps.c` does what each of their instructions does.

Slow, but it is the code as it was compiled for such CPUs, where the models of `isa/models.h` are
the same source with other instructions.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cython_kernels import _kernels

ISA = "amx_bf16_code"


def _install() -> list[str]:
    """Return the ISA that tests may use from now on, or none: they may not."""
    compiler = shutil.which("gcc")
    try:
        _kernels.forms_of(ISA)
    except ValueError:  # not x86-64, or a CPU that lacks more
        return []
    if compiler is None or "amx_bf16" in _kernels.available_isas():
        return []
    if "asan" in os.environ.get("LD_PRELOAD", ""):  # AddressSanitizer has handlers of its own
        return []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "traps.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, *flags, source, "-o", library], check=True, timeout=100)
        traps = ctypes.CDLL(str(library))
    if traps.install_traps():
        raise OSError("the handler of SIGILL could not be installed")
    return [ISA]


TRAPPED_ISAS = _install()
