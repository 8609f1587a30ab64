"""What processes cost, read from /proc: nobody is asked about himself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME, _CUTIME, _CSTIME = 11, 12, 13, 14  # of /proc/PID/stat, after the command's closing parenthesis


@dataclass(frozen=True, slots=True)
class Cost:
    """One process since its start: seconds of CPU, its own and of children it waited for; memory now and at most."""

    cpu_s: float
    children_cpu_s: float
    rss_kib: int
    peak_rss_kib: int
    threads: int
    files: int

    def since(self, before: Cost) -> Cost:
        """The same, with the CPU of a stretch of time."""
        return Cost(
            self.cpu_s - before.cpu_s,
            self.children_cpu_s - before.children_cpu_s,
            self.rss_kib,
            self.peak_rss_kib,
            self.threads,
            self.files,
        )


def cost_of(pid: int) -> Cost:
    """Of a process that runs; raises OSError when it does not."""
    process = Path("/proc") / str(pid)
    stat = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    times = [int(stat[field]) / _TICKS_PER_S for field in (_UTIME, _STIME, _CUTIME, _CSTIME)]
    lines = (process / "status").read_text(encoding="utf-8").splitlines()
    status = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
    return Cost(
        cpu_s=times[0] + times[1],
        children_cpu_s=times[2] + times[3],
        rss_kib=int(status["VmRSS"]),
        peak_rss_kib=int(status["VmHWM"]),
        threads=int(status["Threads"]),
        files=len(list((process / "fd").iterdir())),
    )


def total(costs: list[Cost]) -> Cost:
    """Of several processes; the peak is the sum of their peaks, at least what they ever used together."""
    return Cost(
        sum(one.cpu_s for one in costs),
        sum(one.children_cpu_s for one in costs),
        sum(one.rss_kib for one in costs),
        sum(one.peak_rss_kib for one in costs),
        sum(one.threads for one in costs),
        sum(one.files for one in costs),
    )
