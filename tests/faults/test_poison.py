"""A loss or a gradient that is not a number, on one of two processes: skipped by both, and gone back from."""

import json

import pytest

from lives import Run, equal, finish, live, losses, saved
from toys import keys_of

OPTIONS = {"length": "12 steps", "save": "every 1 steps", "keep": 12, "log_steps": 1}


def listed(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.out / "not_finite.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("parallel", ["replicated", "sharded"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["momentum contrast", "siamese"])
def test_one_poisoned_sample_costs_its_step_and_changes_nothing(name, where, parallel, corpus, tmp_path):
    """Weights, moments, teacher, queue and batch statistics are as before, on both processes, though one saw it.

    Fails where only the process that saw it decides (the other steps, or waits for ever), where the hooks are called
    all the same (teacher and queue move), and where buffers are not put back (batch statistics).
    """
    run = Run(name, corpus, tmp_path / "run", {**OPTIONS, "parallel": parallel})
    keys = keys_of(run.clips, 4, 5)
    finish(run._replace(poison=(keys[-1:], where)), world=2)  # the last sample is the second process's
    before, after, later = (saved(run, step).read("") for step in (5, 6, 7))
    kept = [key for key in before if not key.startswith("random.")]
    assert all(equal(before[key], after[key]) for key in kept)
    assert not all(equal(after[key], later[key]) for key in kept)
    assert saved(run, 12).facts["skipped"] == 1
    assert len(losses(run)) == 12 and losses(run)[5] is None
    (line,) = listed(run)
    assert (line["step"], line["flaw"]) == (5, where)
    assert len(line["processes"]) == 2 and all(len(part["ids"]) == 2 for part in line["processes"])


def test_a_poisoned_sample_in_the_second_of_two_phases_undoes_the_first(corpus, tmp_path):
    """Fails where the reader, which had stepped already, keeps its step while the writer's is skipped."""
    run = Run("two phases", corpus, tmp_path / "run", OPTIONS)
    finish(run._replace(poison=(keys_of(run.clips, 4, 5)[-1:], "writer")), world=2)
    before, after, later = (saved(run, step).read("") for step in (5, 6, 7))
    kept = [key for key in before if not key.startswith("random.")]
    assert any(key.startswith("optimisers.reader.") for key in kept)
    assert all(equal(before[key], after[key]) for key in kept)
    assert not equal(after["learner.reader.weight"], later["learner.reader.weight"])
    (line,) = listed(run)
    assert (line["step"], line["phase"], line["flaw"]) == (5, "writer", "loss")


def test_several_in_a_row_go_back_to_a_checkpoint_and_pass_over_the_bad_stretch(corpus, tmp_path):
    """Fails without the roll-back: the steps 5, 6 and 7 would be lost, and the run would end 12 steps of data on."""
    run = Run("momentum contrast", corpus, tmp_path / "run", {**OPTIONS, "save": "every 4 steps", "patience": 3})
    bad = [key for step in (5, 6, 7) for key in keys_of(run.clips, 4, step)]
    ends = live(run._replace(poison=(bad, "loss")), world=2)
    assert all(end.exit_code == 0 for end in ends), ends
    assert [line["step"] for line in listed(run)] == [5, 6, 7]
    facts = saved(run, 12).facts
    assert (facts["passed_over"], facts["skipped"]) == (4, 3)
    seen = [end.value[0] for end in ends]
    for step in range(12):
        given = [sample.key for part in seen for sample in part[step]]
        assert given == keys_of(run.clips, 4, step if step < 4 else step + 4)
    assert "went back to the checkpoint of step 4" in ends[0].output


def test_what_going_back_does_not_help_ends_the_run_and_no_checkpoint_is_deleted(corpus, tmp_path):
    """Fails where going back removes checkpoints, or where it is tried for ever."""
    run = Run("momentum contrast", corpus, tmp_path / "run", {**OPTIONS, "save": "every 2 steps", "patience": 2})
    bad = [key for step in range(7, 40) for key in keys_of(run.clips, 4, step)]
    ends = live(run._replace(poison=(bad, "loss")), world=2)
    assert all(end.exit_code == 1 and "not finite step after step" in end.error for end in ends), ends
    kept = {folder.name[:14] for folder in run.out.rglob("checkpoints/**/step-*")}
    assert kept >= {f"step-{step:09d}" for step in (2, 4, 6)}
