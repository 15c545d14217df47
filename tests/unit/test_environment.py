"""The machine as a run sees it; cgroup trees are imitated below a temporary root."""

import os
import re
from pathlib import Path

import pytest

from cython_kernels import _kernels
from toolkit import environment


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/host/x\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/../outside\n"}, None),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({}, None),
    ],
)
def test_cgroup_quota_is_the_smallest_on_the_way_up(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    assert environment.cgroup_cpus(write(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("allowed", "quota", "threads", "reason"),
    [
        (8, None, 8, "affinity"),
        (8, 2.5, 3, "cgroup quota is 2.5"),
        (2, 6.0, 2, "affinity"),
        (4, 0.2, 1, "cgroup quota is 0.2"),
    ],
)
def test_threads_follow_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, allowed: int, quota: float | None, threads: int, reason: str
) -> None:
    monkeypatch.setattr(environment, "affinity", lambda: allowed)
    monkeypatch.setattr(environment, "cgroup_cpus", lambda: quota)
    decided, why = environment.decide_num_threads(0)
    assert decided == threads
    assert reason in why


def test_threads_requested_are_kept() -> None:
    threads, why = environment.decide_num_threads(7)
    assert threads == 7
    assert "engine.num_threads=7" in why


def test_what_the_engine_uses_of_the_cpu_follows_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TOOLKIT_ISA", raising=False)
    assert environment.used_precisions().endswith(f" by {environment.isas()[0]}")
    monkeypatch.setenv("TOOLKIT_ISA", "generic")
    assert environment.used_precisions() == "fp32 by generic, because of TOOLKIT_ISA"
    refusal = "AMX: the system refused"
    monkeypatch.setattr(_kernels, "refused_features", lambda: refusal)
    assert environment.used_precisions().endswith(f"; {refusal}")
    monkeypatch.setenv("TOOLKIT_ISA", "sve9")
    assert "TOOLKIT_ISA=sve9, which this CPU does not run" in environment.used_precisions()


def test_affinity_is_what_the_scheduler_allows() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert environment.affinity() == 1
        assert environment.decide_num_threads(0)[0] == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_description_names_cpu_cores_versions_and_revision() -> None:
    found = environment.describe_machine()
    assert found["cpu"]
    assert found["cores"] >= found["affinity"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert {"toolkit", "numpy", "torch"} <= found["versions"].keys()
    assert found["git_revision"] is None or re.fullmatch(
        r"[0-9a-f]{40}(-dirty)?", found["git_revision"]
    )
    assert len(found["load_average"]) == 3


def test_data_caches_are_read_and_instruction_caches_left_out(tmp_path: Path) -> None:
    def cache(index: int, level: str, kind: str, size: str, shared: str) -> dict[str, str]:
        folder = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        found = {"level": level, "type": kind, "size": size, "shared_cpu_map": shared}
        return {f"{folder}/{name}": f"{text}\n" for name, text in found.items()}

    files = cache(0, "1", "Data", "32K", "1") | cache(1, "1", "Instruction", "64K", "1")
    files |= cache(2, "2", "Unified", "1024K", "00000001,00000001")
    files |= cache(3, "3", "Unified", "odd", "1")
    expected = {1: (32 << 10, 1), 2: (1 << 20, 2)}
    assert environment.cache_sizes(write(tmp_path, files)) == expected
    assert environment.cache_sizes(tmp_path / "none") == {}
