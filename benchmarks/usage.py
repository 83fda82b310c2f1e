"""What this process and all that descend from it use, from Linux's /proc."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_s() -> float:
    """CPU seconds that this process and its workers have used, those that ended included."""
    total = 0.0
    for process in family():
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        own, ended = fields[11:13], fields[13:15]
        total += sum(map(int, own + ended)) / os.sysconf("SC_CLK_TCK")
    return total


def held() -> tuple[int, int]:
    """Bytes resident in this process and its workers: each process in full, and shared pages once."""
    resident = proportional = 0
    for process in family():
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Rss":
                resident += 1024 * int(value.split()[0])
            elif name == "Pss":
                proportional += 1024 * int(value.split()[0])
    return resident, proportional


def family() -> list[int]:
    """This process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found
