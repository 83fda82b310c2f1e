#!/usr/bin/env python3
"""What a job sees of SLURM: this file, linked as `srun`, `scancel`, `scontrol` and `squeue` into a folder on the PATH.

As the manual pages say, `srun` starts the command once for each node, answers with the highest exit code, and kills at
once when it is told to end; `scancel --signal` reaches every process of the step, but neither srun nor the batch
script. What is requeued is written into the file $SLURM_REQUEUED.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def srun(words: list[str]) -> int:
    command = list(itertools.dropwhile(lambda word: word.startswith("--"), words))
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = [
        subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": str(node)}, start_new_session=True)
        for node in range(nodes)
    ]
    signal.signal(signal.SIGTERM, lambda number, frame: [task.kill() for task in tasks])
    return max(task.wait() % 256 for task in tasks)


def scancel(words: list[str]) -> int:
    option, job = words
    number = signal.Signals[f"SIG{option.removeprefix('--signal=')}"]
    for process in members(f"SLURM_JOB_ID={job}", "SLURM_NODEID="):
        with suppress(ProcessLookupError):
            os.kill(process, number)
    return 0


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(words[2].split(",")))
        return 0
    action, job = words
    with Path(os.environ["SLURM_REQUEUED"]).open("a", encoding="utf-8") as requeued:
        print(action, job, file=requeued)
    return 0


def squeue(words: list[str]) -> int:
    print(os.environ.get("SLURM_STATE", "RUNNING"))
    return 0


def members(*begins: str) -> list[int]:
    """The processes whose environment has a line with each of these beginnings."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            if all(any(line.startswith(begin) for line in lines) for begin in begins):
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    tools = {tool.__name__: tool for tool in (srun, scancel, scontrol, squeue)}
    sys.exit(tools[Path(sys.argv[0]).name](sys.argv[1:]))
