"""Momentum Contrast pre-training (MoCo, He et al., CVPR 2020; MoCo v2, Chen et al., 2020)."""

import os

__version__ = "0.1.0"


def is_busy(loadavg: str, cores: int) -> bool:
    """Whether other processes occupy half of the cores or more, given the text of Linux's /proc/loadavg."""
    try:
        running = int(loadavg.split()[3].partition("/")[0])  # at this moment, this process included
    except (IndexError, ValueError):
        return False
    return running - 1 >= cores / 2


def _loadavg() -> str:
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


# By default OpenMP threads spin while they wait: the fastest choice on a quiet machine, but several times slower when
# another process wants their cores. Set before torch loads OpenMP, and only where the user has not chosen.
if is_busy(_loadavg(), os.cpu_count() or 1):
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
