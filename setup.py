"""Build the kernels. Everything else is declared in pyproject.toml.

The extension is compiled for the platform's baseline instruction set; each ISA header opens its own
compiler target region, so that one wheel runs everywhere and never dies of an illegal instruction.
`TOOLKIT_SANITIZE=1` builds the debug variant with bounds checks and the address and
undefined-behaviour sanitizers.
"""

import os
import platform
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

SANITIZE = os.environ.get("TOOLKIT_SANITIZE") == "1"

compile_args = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
link_args = ["-fopenmp"]
if platform.machine() in ("x86_64", "AMD64"):
    compile_args.append("-march=x86-64")
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
    flags += ["-fexpensive-optimizations"]  # fuse multiply and add, as -O3 does: the same bits
    compile_args += [*flags, "-Wno-maybe-uninitialized"]  # false alarms about Cython's line numbers
    link_args += flags

extensions = [
    Extension(
        "cython_kernels._kernels",
        ["cython_kernels/_kernels.pyx"],
        include_dirs=["cython_kernels"],
        depends=[
            str(file)
            for file in sorted(Path("cython_kernels").rglob("*"))
            if file.suffix in (".h", ".pxi", ".pyx")
        ],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
]

setup(
    packages=[*find_packages(include=["toolkit*", "cython_kernels*"]), "toolkit.conf"],
    package_dir={"toolkit.conf": "conf"},
    include_package_data=False,  # the wheel holds what is named here; C sources are for the sdist
    package_data={
        "toolkit": ["py.typed", "*.json"],
        "toolkit.present": ["*.html", "*.js"],
        "toolkit.serving": ["*.html"],
        "toolkit.conf": ["**/*.yaml", "*.yaml"],
        "cython_kernels": ["py.typed", "*.pyi"],
    },
    ext_modules=cythonize(
        extensions,
        # its C file has bounds checks: the ordinary build must not find it
        build_dir="build/sanitize" if SANITIZE else None,
        compiler_directives={
            "language_level": 3,
            "boundscheck": SANITIZE,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": SANITIZE,
            "freethreading_compatible": True,
        },
    ),
)
