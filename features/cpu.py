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


def _cgroup_cores(root: Path, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU quota in cores: the smallest of this process's control group and its parents, of cgroup v2 or v1;
    None without a quota.

    root: where the groups are mounted. own: the file that names this process's groups. In a container, the
    root is often the group itself.
    """
    quotas = [_quota(root), _quota(root / "cpu")]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:  # "0::/user.slice" (v2), or "4:cpu,cpuacct:/user.slice" (v1)
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        path = (root / "cpu" if controllers else root) / group.lstrip("/")
        quotas += [_quota(folder) for folder in (path, *path.parents) if folder.is_relative_to(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path) -> float | None:
    """Quota of one control group's folder in cores; None without one."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit():
        return None  # "max", or -1: no limit
    return int(quota) / int(period)
