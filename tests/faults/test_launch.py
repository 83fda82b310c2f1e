"""The files of examples/launch, as they are, with real processes: they recover, save when told to, and say how it went.

Every run here, whatever befell it, has to end with the losses and the weights of one that nothing befell, bit for bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from processes import run_processes
from tiny_run import make_clips, make_recipe
from tubelet import cli
from tubelet.log import read_metrics

LAUNCH = Path(__file__).resolve().parents[2] / "examples" / "launch"
SLURM = Path(__file__).with_name("slurm.py")
STEPS = 100
TRAIN = {"length": f"{STEPS} steps", "batch": 4, "workers": 1, "save": "every 10 steps", "log_steps": 1}

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in Linux's /proc")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    return make_recipe(folder / "recipe.yaml", make_clips(folder), train=TRAIN)


def undisturbed(recipe: Path, out: Path) -> None:
    assert cli.main(["train", str(recipe), "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_processes(undisturbed, 2, recipe, out)
    return result(out)


def result(out: Path):
    losses = [(line["step"], line["loss"]) for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    return losses, {name: tensor.tolist() for name, tensor in load_file(out / "learner.safetensors").items()}


@contextmanager
def launched(script: str, recipe: Path, out: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A script at work, its output in the file OUT.log; at the end nothing that it started is left."""
    tools = Path(sys.executable).parent
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        "RECIPE": str(recipe), "OUT": str(out), "LAUNCH": str(LAUNCH), **variables,
    }  # fmt: skip
    with log_of(out).open("a") as log:
        process = subprocess.Popen(
            ["bash", LAUNCH / script, *words], env=environment, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs are born deaf to it
        )  # fmt: skip
    try:
        yield process
    finally:
        for number in of_run(out):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def of_run(out: Path) -> dict[int, dict[str, str]]:
    """The processes of a run and their environments: the scripts, torchrun, those that train and those that decode."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            environment = dict(line.split("=", 1) for line in lines if "=" in line)
            if environment.get("OUT") == str(out):
                found[int(process.name)] = environment
    return found


def trains(out: Path, rank: str) -> int:
    """The process of a rank, and not those that decode for it, which are forks of it."""
    ranks = {number for number, environment in of_run(out).items() if environment.get("RANK") == rank}
    (process,) = (number for number in ranks if parent(number) not in ranks)
    return process


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not (lines := read_metrics(out / "metrics.jsonl")) or lines[-1]["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline, log_of(out).read_text()
        time.sleep(0.01)
    assert lines[-1]["step"] < STEPS, "it was over too soon for this test"


def test_one_machine_a_process_that_is_killed(recipe, expected, tmp_path):
    """torchrun keeps its store across restarts: `dist.start` has to prefix it by the attempt (see there).

    With one prefix for all attempts both of two tries failed.
    """
    out = tmp_path / "run"
    with launched("single_node.sh", recipe, out, NPROC="2", MAX_RESTARTS="1") as script:
        wait_for_step(out, 13, script)
        os.kill(trains(out, "1"), signal.SIGKILL)
        assert script.wait(120) == 0, log_of(out).read_text()
    assert "exitcode: -9" in log_of(out).read_text()
    assert result(out) == expected


@pytest.mark.slow
def test_two_machines_a_process_that_is_killed(recipe, expected, tmp_path):
    """Each machine has its own torchrun, and they may count restarts differently: no attempt may meet at the old store.

    Without TORCH_DISABLE_SHARE_RDZV_TCP_STORE in multi_node.sh one of two tries hung.
    """
    out = tmp_path / "run"
    with ExitStack() as stack:
        machines = [
            stack.enter_context(
                launched("multi_node.sh", recipe, out, NODES="2", HEAD="localhost", PORT="29431", NPROC="1")
            )
            for _ in range(2)
        ]
        wait_for_step(out, 13, machines[0])
        os.kill(trains(out, "1"), signal.SIGKILL)
        assert [machine.wait(120) for machine in machines] == [0, 0], log_of(out).read_text()
    assert "exitcode: -9" in log_of(out).read_text()
    assert result(out) == expected


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """A cluster of two machines, which are this one, as a job sees it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("srun", "scancel", "scontrol", "squeue"):
        (tools / name).symlink_to(SLURM)
    SLURM.chmod(0o755)
    return {
        "PATH": f"{Path(sys.executable).parent}:{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "9431",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_GPUS_ON_NODE": "1",
        "SLURM_REQUEUED": str(tmp_path / "requeued"),
    }  # fmt: skip


@pytest.mark.slow
def test_slurm_pre_empts_and_the_job_that_comes_back_goes_on(recipe, expected, tmp_path, slurm):
    """The signal for the batch script becomes one SIGTERM for every process of the step, torchrun and workers included.

    With a SHUTDOWN_S that is shorter than saving takes the processes are killed before they have saved; without the
    exit code 75 of single_node.sh, or the USR1 of slurm.sbatch, the job is not queued again.
    """
    out = tmp_path / "run"
    with launched("slurm.sbatch", recipe, out, **slurm) as job:
        wait_for_step(out, 13, job)
        first = trains(out, "0")
        os.kill(first, signal.SIGSTOP)  # so that saving takes long
        job.send_signal(signal.SIGUSR1)
        time.sleep(3)
        assert job.poll() is None, log_of(out).read_text()
        os.kill(first, signal.SIGCONT)
        assert job.wait(60) == 75, log_of(out).read_text()
        assert not of_run(out), "the machines are given back when all is saved, and not before"
    saved = read_metrics(out / "metrics.jsonl")[-1]["step"]
    assert log_of(out).read_text().count(f"stopped at step {saved} of {STEPS} and saved") == 2
    assert Path(slurm["SLURM_REQUEUED"]).read_text() == "requeue 9431\n"
    with launched("slurm.sbatch", recipe, out, **slurm, SLURM_RESTART_COUNT="1") as job:
        assert job.wait(120) == 0, log_of(out).read_text()
    assert Path(slurm["SLURM_REQUEUED"]).read_text() == "requeue 9431\n"
    assert result(out) == expected


@pytest.mark.parametrize(
    ("codes", "state", "again"),
    [("0 0", "RUNNING", False), ("1 1", "RUNNING", False), ("75 75", "RUNNING", True), ("75 0", "RUNNING", True),
     ("75 75", "COMPLETING", False)],
)  # fmt: skip
def test_slurm_queues_again_what_was_pre_empted_and_nothing_else(recipe, tmp_path, slurm, codes, state, again):
    """Neither what is done, nor what failed and would fail again, nor what its owner has cancelled."""
    launch = tmp_path / "launch"
    launch.mkdir()
    (launch / "multi_node.sh").write_text('#!/bin/bash\ncodes=($CODES)\nexit "${codes[$SLURM_NODEID]}"\n')
    (launch / "multi_node.sh").chmod(0o755)
    own = {**slurm, "LAUNCH": str(launch), "CODES": codes, "SLURM_STATE": state}
    with launched("slurm.sbatch", recipe, tmp_path / "run", **own) as job:
        assert job.wait(20) == max(map(int, codes.split()))
    assert Path(slurm["SLURM_REQUEUED"]).exists() == again


def test_ctrl_c_saves_and_is_told_apart_from_pre_emption(recipe, tmp_path):
    out = tmp_path / "run"
    with launched("single_node.sh", recipe, out, "--train.length", "100k steps", NPROC="2") as script:
        wait_for_step(out, 3, script)
        script.send_signal(signal.SIGINT)
        assert script.wait(60) == 130, log_of(out).read_text()
    assert log_of(out).read_text().count("and saved in") == 2


def test_a_mistake_in_the_recipe_is_told_once_and_nothing_is_started(recipe, tmp_path):
    """torchrun would begin again, MAX_RESTARTS times."""
    with launched("single_node.sh", recipe, tmp_path / "run", "--learner.ratoi", "0.5", NPROC="2") as script:
        assert script.wait(30) == 2
    said = log_of(tmp_path / "run").read_text()
    assert said == "error: unknown option --learner.ratoi; did you mean --learner.ratio?\n"


@pytest.mark.parametrize("script", ["single_node.sh", "multi_node.sh", "slurm.sbatch"])
def test_scripts_are_what_bash_understands_and_say_which_variable_is_missing(script):
    path = LAUNCH / script
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=True).stderr == b""
    bare = subprocess.run(["bash", path], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert bare.returncode != 0
    first = {"single_node.sh": "RECIPE: a recipe", "multi_node.sh": "NODES: how many", "slurm.sbatch": "SLURM_JOB_"}
    assert first[script] in bare.stderr
