"""Number of CPU cores that this process may use."""

import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Number of usable cores, at least 1: the minimum of machine count, affinity, cgroup quota and SLURM."""
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    if (quota := _cgroup_cores(Path("/sys/fs/cgroup"))) is not None:
        counts.append(max(1, math.floor(quota)))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if os.environ.get(name, "").isdigit():
            counts.append(max(1, int(os.environ[name])))
            break
    return min(counts)


def _cgroup_cores(root: Path) -> float | None:
    """CPU quota of this control group (cgroup v2 or v1) in cores; None without a quota."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit():
        return None  # "max", or -1: no limit
    return int(quota) / int(period)
