"""The folder of checkpoints: whole or not there, checked, pruned, never confused."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tubelet.train.checkpoints import FACTS, SUMS, Checkpoint, Checkpoints
from tubelet.train.saving import Saver
from tubelet.types import TubeletError


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "learner.weight": torch.rand(5, 3, generator=generator), "learner.count": torch.tensor(step),
        "learner.mask": torch.rand(7, generator=generator) > 0.5, "learner.none": torch.zeros(0, 4),
        "optimisers.main.weight.exp_avg": torch.rand(5, 3, generator=generator).bfloat16(),
    }  # fmt: skip


def write(folder: Path, steps: list[int], keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    with Saver(checkpoints, lambda checkpoint: None, in_background=True) as saver:
        for step in steps:
            saver.save(state(step), {"step": step})
    assert saver.failure is None
    return checkpoints


def newest(checkpoints: Checkpoints) -> Checkpoint:
    found = checkpoints.newest()
    assert found is not None
    return found


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    found = newest(write(tmp_path, [4]))
    assert found.facts["step"] == 4
    for name, tensor in found.read("").items():
        assert torch.equal(tensor, state(4)[name]) and tensor.dtype == state(4)[name].dtype, name
    assert found.tensors() == {name: tensor.shape for name, tensor in state(4).items()}
    into = {name: torch.zeros_like(tensor) for name, tensor in state(4).items()}
    found.read_into(into)
    assert all(torch.equal(tensor, state(4)[name]) for name, tensor in into.items())


def test_copies_are_made_before_training_goes_on(tmp_path):
    """Fails when the saver is handed the live tensors: the next step changes them while they are written."""
    tensors, checkpoints = {"w": torch.zeros(1_000_000)}, Checkpoints(tmp_path, 1)
    with Saver(checkpoints, lambda checkpoint: None, in_background=True) as saver:
        saver.save(tensors, {"step": 1})
        tensors["w"].fill_(1)
    assert newest(checkpoints).read("")["w"].eq(0).all()


def test_the_newest_few_are_kept(tmp_path):
    write(tmp_path, [1, 2, 3, 20, 1000], keep=2)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["step-000000020", "step-000001000"]


@pytest.mark.parametrize("file", ["tensors", FACTS, SUMS])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "missing", "empty"])
def test_a_damaged_newest_one_is_said_and_the_one_before_used(tmp_path, capsys, file, harm):
    """Fails without the checksums: a flipped bit in a tensor is read as if nothing were wrong."""
    checkpoints = write(tmp_path, [1, 2])
    place = newest(checkpoints).folder
    (path,) = place.glob("*.safetensors") if file == "tensors" else [place / file]
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[len(data) * 2 // 3] ^= 4
        path.write_bytes({"flipped": data, "truncated": data[: len(data) // 2], "empty": b""}[harm])
    found = newest(checkpoints)
    assert found.facts["step"] == 1
    said = capsys.readouterr().err
    assert "step-000000002 is damaged" in said and "going on from" in said and "(step 1)" in said
    assert place.exists(), "what is damaged is left for a person to look at"


def test_a_damaged_one_is_not_kept_in_place_of_a_good_one(tmp_path):
    """Fails when the newest by number are kept: after a damaged step 20 the new step 15 would be deleted at once."""
    checkpoints = write(tmp_path, [10, 20], keep=1)
    (file,) = newest(checkpoints).folder.glob("*.safetensors")
    file.write_bytes(b"")
    write(tmp_path, [15], keep=1)
    assert newest(checkpoints).facts["step"] == 15


def test_when_all_are_damaged_the_run_does_not_start_afresh(tmp_path):
    checkpoints = write(tmp_path, [1, 2])
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(TubeletError, match=r"no checkpoint in .* can be read: move them away to start afresh"):
        checkpoints.newest()


def test_the_checksums_are_those_of_sha256sum(tmp_path):
    place = newest(write(tmp_path, [3])).folder
    assert subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=place, capture_output=True).returncode == 0


def test_what_is_set_aside_is_not_gone_on_with_and_not_deleted(tmp_path):
    checkpoints = write(tmp_path, [1, 2])
    checkpoints.set_aside(newest(checkpoints))
    assert newest(checkpoints).facts["step"] == 1
    write(tmp_path, [2])
    checkpoints.set_aside(newest(checkpoints))
    assert sorted(place.name for place in (tmp_path / "aside").iterdir()) == ["step-000000002", "step-000000002-1"]


def test_checksums_that_name_files_elsewhere_are_not_followed(tmp_path, capsys):
    checkpoints = write(tmp_path, [1])
    sums = newest(checkpoints).folder / SUMS
    sums.write_text(sums.read_text() + "0" * 64 + "  ../../../etc/passwd\n")
    with pytest.raises(TubeletError, match="can be read"):
        checkpoints.newest()
    assert "names a file elsewhere" in capsys.readouterr().err


KILLED = """
import os, sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_checkpoints import write
calls = 0
def dying(real):
    def call(*args, **options):
        global calls
        calls += 1
        if calls > {after}:
            os._exit(9)
        return real(*args, **options)
    return call
write(Path({folder!r}), [1, 2], keep=1)
for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
write(Path({folder!r}), [3], keep=1)
print(calls)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """Fails when the folder has its name before its files are on the disk, or the old one goes before the new is there.

    The process ends at each call in turn that changes something on the disk.
    """
    path = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]
    survived, after = set(), 0
    while True:
        folder = tmp_path / str(after)
        script = KILLED.format(path=path, folder=str(folder), after=after)
        pid = os.fork()
        if pid == 0:
            try:
                exec(compile(script, "killed", "exec"), {})  # in a fork: torch is there already
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = newest(Checkpoints(folder, 1))
        assert torch.equal(found.read("")["learner.weight"], state(found.facts["step"])["learner.weight"])
        survived.add(found.facts["step"])
        write(folder, [4], keep=1)  # and what was left does not stand in the way
        assert [place.name for place in folder.iterdir()] == ["step-000000004"]
        if code == 0:
            break
        after += 1
    assert survived == {2, 3} and after > 4


def test_a_failure_is_told_and_the_next_one_tried(tmp_path, capsys):
    """Fails when an error of the disk ends the run, or when it is not remembered for the end of it."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    (tmp_path / "checkpoints").write_text("a file in the way")
    with Saver(checkpoints, lambda checkpoint: None, in_background=True) as saver:
        saver.save(state(1), {"step": 1})
        saver.wait()
        assert saver.failure and saver.written == 0
        assert "the checkpoint of step 1 could not be written" in capsys.readouterr().err
        (tmp_path / "checkpoints").unlink()
        saver.save(state(2), {"step": 2})
    assert saver.failure is None and saver.written == 2
    assert newest(checkpoints).facts["step"] == 2


