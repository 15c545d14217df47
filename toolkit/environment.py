"""The machine a run has: CPU, the share of it this process may use, versions. Imports no torch."""

import math
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

# What the kernels use or could use, as Linux spells it in /proc/cpuinfo.
FEATURES_X86 = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
)
FEATURES_ARM = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2")


def describe_machine() -> dict[str, Any]:
    """Describe the machine and the software, as `record.json` keeps it.

    Returns:
        `cpu` (model name), `machine`, `system`, `cores` (logical, of the machine), `affinity`
        (logical CPUs this process may use), `cgroup_cpus` (CPU quota in CPUs, None without one),
        `isas` (what the kernels can use here, best first), `memory_bytes`, `python`, `versions`
        (of the packages installed), `git_revision` (None outside a checkout), `load_average`
        (1, 5 and 15 minutes).
    """
    return {
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "affinity": affinity(),
        "cgroup_cpus": cgroup_cpus(),
        "isas": isas(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "versions": versions(),
        "git_revision": git_revision(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def summary() -> str:
    """Describe the machine in a few lines of text, as `toolkit info` prints it."""
    found = describe_machine()
    _, reason = decide_num_threads(0)
    has, lacks = cpu_features()
    lines = [
        f"CPU       {found['cpu']} ({found['machine']}, {found['cores']} logical cores)",
        f"features  {' '.join(has) or 'unknown'}",
        f"missing   {' '.join(lacks) or 'nothing that the kernels could use'}",
        f"ISA       {', '.join(found['isas'])}",
        f"precision {used_precisions()}",
        f"threads   {reason}",
        f"python    {found['python']}",
        *(f"{package:<24}{number}" for package, number in found["versions"].items()),
    ]
    return "\n".join(lines)


def decide_num_threads(requested: int) -> tuple[int, str]:
    """Decide how many threads to use, and say why.

    Args:
        requested: Number of threads wanted; 0 leaves the choice to the machine.

    Returns:
        The number, >= 1, and the reason as a sentence. With 0 it is the smaller of the CPUs this
        process may be scheduled on and its cgroup quota, rounded up: in a container
        `os.cpu_count()` counts the host's, and threads beyond the quota are only throttled.
    """
    if requested > 0:
        return requested, f"{requested} because engine.num_threads={requested}"
    allowed, quota = affinity(), cgroup_cpus()
    if quota is not None and math.ceil(quota) < allowed:
        return math.ceil(quota), (
            f"{math.ceil(quota)} because the cgroup quota is {quota:g} CPUs "
            f"(of {allowed} in the affinity mask)"
        )
    return allowed, (
        f"{allowed} because the affinity mask holds {allowed} of {os.cpu_count()} CPUs "
        f"and the cgroup quota is {'unlimited' if quota is None else f'{quota:g} CPUs'}"
    )


def cpu_features() -> tuple[list[str], list[str]]:
    """Name what the CPU has, and what it lacks, of the instructions that the kernels could use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [], []
    flags: set[str] = set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm
            flags = set(value.split())
            break
    features = FEATURES_X86 if platform.machine() in ("x86_64", "AMD64") else FEATURES_ARM
    return [name for name in features if name in flags], [
        name for name in features if name not in flags
    ]


def used_precisions() -> str:
    """Say what the instruction set in use multiplies in, and what the system refuses.

    That is the best one, or what the environment variable TOOLKIT_ISA names, as for an engine.
    """
    from cython_kernels._kernels import precisions_of, refused_features

    used = os.environ.get("TOOLKIT_ISA")
    if used and used not in isas():
        return f"none: TOOLKIT_ISA={used}, which this CPU does not run"
    forced = ", because of TOOLKIT_ISA" if used else ""
    used = used or isas()[0]
    precisions = f"{', '.join(precisions_of(used))} by {used}{forced}"
    return "; ".join(filter(None, [precisions, refused_features()]))


def affinity() -> int:
    """Count the logical CPUs this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def cgroup_cpus(root: Path = Path("/")) -> float | None:
    """Read the CPU quota of this process's cgroup, version 1 or 2, and of the groups above it.

    Args:
        root: Where `proc` and `sys` are found.

    Returns:
        The smallest quota in CPUs (quota over period), > 0; None if nothing limits it.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # not Linux
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            quotas += _quotas(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas(root / "sys/fs/cgroup/cpu", path, _quota_v1)
    return min(quotas, default=None)


def cache_sizes(root: Path = Path("/")) -> dict[int, tuple[int, int]]:
    """Read the data caches of the first CPU.

    Args:
        root: Where `sys` is found.

    Returns:
        Level → bytes, and how many logical CPUs share them; empty where the system does not say.
    """
    sizes = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size, shared = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size", "shared_cpu_map")
            )
            sharing = int(shared.replace(",", ""), 16).bit_count()
            if kind != "Instruction":
                sizes[int(level)] = (int(size.removesuffix("K")) * 1024, max(1, sharing))
        except (OSError, ValueError):
            continue
    return sizes


def isas() -> list[str]:
    """List the instruction sets that the kernels can use on this CPU, best first."""
    from cython_kernels._kernels import available_isas

    return list(available_isas())


def cpu_model() -> str:
    """Name the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()  # Arm kernels print no model name


def versions() -> dict[str, str]:
    """Look up the versions of toolkit and of what it runs on, without importing anything.

    These are the packages that its metadata names, development's aside, as far as installed.
    """
    lines = [
        line for line in requires("toolkit") or [] if "extra == 'dev'" not in line.replace('"', "'")
    ]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    found = {}
    for name in dict.fromkeys(["toolkit", *names]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Name the commit of the checkout this package runs from, `-dirty` if files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None  # installed from a wheel; a repository further up is somebody else's
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        run = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def _quotas(mount: Path, path: str, read: Callable[[Path], float | None]) -> list[float]:
    """Collect the quotas of a group and of all above it; inside a container its path may be the
    host's and not exist below the mount, whose own files then hold the limit."""
    group = mount / path.lstrip("/")
    folders = [group, *group.parents]
    return [quota for folder in folders[: folders.index(mount) + 1] if (quota := read(folder))]


def _quota_v2(folder: Path) -> float | None:
    # "max 100000" or "<quota> <period>", both in microseconds
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    # microseconds; a quota of -1 means unlimited
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
