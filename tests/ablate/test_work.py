import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny_run import make_recipe
from tubelet import cli
from tubelet.ablate import tables, work
from tubelet.ablate.command import make_plan
from tubelet.data.listing import read_manifest, write_manifest
from tubelet.train.fit import Interrupted


@pytest.fixture
def mine(corpus, tmp_path):
    return make_recipe(tmp_path / "mine.yaml", corpus)


@pytest.fixture
def plan(mine, tmp_path):
    def make(table, *words, seeds=(0,), tasks=("knn",)):
        return make_plan(tables.find(table), str(mine), words, tmp_path / "out", seeds, tasks, None, (), None)

    return make


@pytest.fixture
def ablate(mine, tmp_path):
    def run(table, *words):
        return cli.main(["ablate", table, str(mine), "--out", str(tmp_path / "out"), *words])

    return run


@pytest.fixture
def trained(monkeypatch):
    """The folders that were trained in, in order."""
    folders, real = [], work.train

    def train(recipe, out):
        folders.append(out.name)
        return real(recipe, out)

    monkeypatch.setattr(work, "train", train)
    return folders


def test_a_table_from_nothing_to_its_files(ablate, tmp_path, capfd):
    assert ablate("decoder", "--seeds", "0", "1", "--tasks", "knn", "linear") == 0
    found = json.loads((tmp_path / "out" / "decoder.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["not pre-trained", "1 block", "2 blocks", "4 blocks", "8 blocks"]
    for row in found["rows"]:
        assert set(row["values"]["knn"]) == set(row["values"]["linear"]) == {"0", "1"}
        assert all(0 <= value <= 100 for value in row["values"]["knn"].values())
    assert found["failed"] == [] and found["missing"] == 0 and len(found["agreement"]["knn"]["pairs"]) == 6
    home = next(path for path in (tmp_path / "out" / "runs").iterdir() if (path / "metrics.jsonl").exists())
    kept = {path.name for path in home.rglob("*") if path.is_file()}
    assert {"backbone.json", "backbone.safetensors", "metrics.jsonl", "recipe.yaml"} <= kept
    assert not {name for name in kept if name.endswith((".pt", ".npy")) or name == "learner.safetensors"}


def test_nothing_is_done_twice_nor_by_two_tables(plan, trained):
    work.work(plan("decoder"))
    assert len(trained) == 4
    work.work(plan("decoder"))
    assert len(trained) == 4
    work.work(plan("ratio"))  # its row 0.5 is the recipe's default, as 1 block is
    assert len(trained) == 7
    work.work(plan("decoder", tasks=("knn", "linear")))  # another judge needs no other encoder
    assert len(trained) == 7


def test_the_judge_sees_the_encoder_of_the_row_with_the_seed_of_the_run(plan, monkeypatch):
    asked, real = [], work.evaluate
    monkeypatch.setattr(
        work, "evaluate", lambda run, *rest, **how: (asked.append((run.name, how["seeds"])), real(run, *rest, **how))[1]
    )
    made = plan("decoder", seeds=(0, 3))
    work.work(made, ["2 blocks"])
    runs = {(cell.row.name, cell.seed): cell.run.name for cell in made.cells}
    assert asked == [(runs["2 blocks", 0], (0,)), (runs["2 blocks", 3], (3,))]


def test_an_untrained_network_is_judged_from_scratch_where_others_are_fine_tuned(plan, monkeypatch):
    asked = []

    def evaluate(run, tasks, *rest, **how):
        asked.extend(tasks)
        return {task: {"x": {"top1": 0.5, "seconds": 1.0}} for task in tasks}

    monkeypatch.setattr(work, "evaluate", evaluate)
    work.work(plan("decoder", tasks=("finetune", "knn")), ["not pre-trained", "1 block"])
    assert asked == ["scratch", "knn", "finetune", "knn"]


def test_the_log_calls_no_untrained_network_trained(ablate, capfd):
    assert ablate("decoder", "--only", "not pre-trained", "--tasks", "knn") == 0
    said = capfd.readouterr().err
    assert "not pre-trained, seed 0: not pre-trained" in said and "knn: encoder, seed 0" in said


def test_images_are_learnt_first_and_their_encoder_inflated(plan, trained):
    """Each frame of the cube's embedding is the picture's, divided by their number (average inflation)."""
    from tubelet.checkpoint import load_backbone

    made = plan("strategy")
    work.work(made, ["images, inflated"])
    run = next(cell.run for cell in made.cells if cell.row.name == "images, inflated")
    assert trained == [run.first.name]
    pictures, videos = (load_backbone(work.folder(made.out, one)) for one in (run.first, run))
    assert pictures.config["tubelet"] == 1 and videos.config["tubelet"] == 2
    one, two = pictures.state_dict()["embed.weight"], videos.state_dict()["embed.weight"]
    assert torch.allclose(two.sum(dim=2), one.sum(dim=2), atol=1e-6)
    assert torch.equal(pictures.state_dict()["norm.weight"], videos.state_dict()["norm.weight"])


def test_a_part_of_the_videos_is_what_is_trained_on(plan):
    made = plan("videos_steps")
    work.work(made, ["1/4"])
    run = next(cell.run for cell in made.cells if cell.row.name == "1/4")
    listed = read_manifest(run.recipe.data["manifest"])
    assert [video.path for video in listed] == [video.path for video in run.videos] and len(listed) == 3
    told = json.loads((work.folder(made.out, run) / "provenance.json").read_text())
    assert told["steps"] == 2 and told["manifest"] == run.recipe.data["manifest"]


def test_a_transfer_matrix_judges_each_encoder_on_every_manifest(mine, corpus, tmp_path):
    other = tmp_path / "other.csv"
    write_manifest(other, read_manifest(corpus)[:14])
    words = ["--manifests", str(corpus), str(other), "--out", str(tmp_path / "out"), "--tasks", "knn"]
    assert cli.main(["ablate", "transfer", str(mine), *words]) == 0
    found = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["not pre-trained", "clips", "other"]
    assert all(set(row["mean"]) == {"knn on clips", "knn on other"} for row in found["rows"])


def test_a_row_that_fails_is_listed_and_the_others_go_on(ablate, tmp_path, capfd):
    """One time slot of tokens: a frame mask would hide all or nothing."""
    assert ablate("mask", "--data.frames", "2", "--tasks", "knn") == 1
    found = json.loads((tmp_path / "out" / "mask.json").read_text())
    by_name = {row["name"]: row for row in found["rows"]}
    assert by_name["tube .75"]["values"]["knn"] and not by_name["frame .875"]["values"]["knn"]
    assert "hides 0 of 1 places" in by_name["frame .875"]["errors"][0]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "frame .875" in said[0]
    assert "failed" in (tmp_path / "out" / "mask.md").read_text()


def test_an_interrupted_run_goes_on_from_its_checkpoint(plan, monkeypatch):
    """Stopped after 5 of 8 steps; the second start must not begin at 0, and ends as if it had never been stopped."""
    words = ("--train.length", "8 steps", "--train.save", "every 1 steps", "--train.log_steps", "1")
    whole = plan("decoder", *words)
    cell = next(cell for cell in whole.cells if cell.row.name == "2 blocks")
    real = os.kill
    from tubelet.learner import Learner

    before = Learner.after_step

    def stop(self, now):
        before(self, now)
        if now.step == 5:
            real(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "after_step", stop)
        with pytest.raises(Interrupted):
            work.work(whole, ["2 blocks"])
    assert work.record(whole.out, cell.run)["encoder"] is None
    first = (work.folder(whole.out, cell.run) / "metrics.jsonl").read_text().splitlines()
    work.work(whole, ["2 blocks"])
    lines = (work.folder(whole.out, cell.run) / "metrics.jsonl").read_text().splitlines()
    assert len(first) == 5 and lines[:5] == first and len(lines) == 8
    assert work.record(whole.out, cell.run)["encoder"]["steps"] == 8


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("somebody")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_is_held_by_one_process_and_free_when_that_is_killed(plan):
    made = plan("decoder")
    run = made.cells[1].run
    lock = Path(work.folder(made.out, run)).with_suffix(".lock")
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(work.Busy, match="somebody"), work.hold(made.out, run):
        pass
    holder.kill()
    holder.wait()
    with work.hold(made.out, run):
        assert str(os.getpid()) in lock.read_text()
    assert not lock.exists()


def test_a_lock_whose_file_was_removed_keeps_nobody_out_and_is_not_taken(plan, monkeypatch):
    """The other process ends, and removes the file, between our opening it and our locking it."""
    made = plan("decoder")
    run = made.cells[1].run
    other = work.hold(made.out, run)
    other.__enter__()
    real = work.fcntl.flock

    def flock(file, how):
        other.__exit__(None, None, None)
        real(file, how)

    with monkeypatch.context() as patched:
        patched.setattr(work.fcntl, "flock", flock)
        with pytest.raises(work.Busy, match="has just ended"), work.hold(made.out, run):
            pass
    with work.hold(made.out, run), pytest.raises(work.Busy, match=str(os.getpid())), work.hold(made.out, run):
        pass


def test_what_another_process_is_at_is_left_to_it_and_waited_for(plan, trained, monkeypatch):
    """The run is held at first; while this process waits, the other lets go without having done it."""
    made = plan("decoder")
    held = work.hold(made.out, made.cells[1].run)
    held.__enter__()
    waits = []

    def sleep(seconds):
        waits.append(list(trained))
        held.__exit__(None, None, None)

    monkeypatch.setattr(work, "time", SimpleNamespace(sleep=sleep))  # others sleep, too
    work.work(made)
    first = made.cells[1].run.name
    assert len(waits) == 1 and first not in waits[0] and len(waits[0]) == 3
    assert trained[-1] == first


def _work(mine, out, trained):
    os.environ["OMP_NUM_THREADS"] = "1"
    real = work.train
    work.train = lambda recipe, home: (trained.put(home.name), real(recipe, home))[1]
    work.work(make_plan(tables.find("decoder"), str(mine), (), out, (0,), ("knn",), None, (), None))


def test_two_processes_share_a_table(mine, tmp_path):
    context = multiprocessing.get_context("spawn")
    trained = context.Queue()
    both = [context.Process(target=_work, args=(mine, tmp_path / "out", trained)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    made = make_plan(tables.find("decoder"), str(mine), (), tmp_path / "out", (0,), ("knn",), None, (), None)
    assert not any(work.missing(made, cell.run) for cell in made.cells)
    assert sorted(trained.get(timeout=5) for _ in range(4)) == sorted(c.run.name for c in made.cells if c.run.trained)
    assert trained.empty()
    assert not list((tmp_path / "out" / "runs").glob("*.lock"))


# What a user may do wrong: one line each


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mosk"], 2, "no table is called 'mosk'; did you mean 'mask'?"),
        (["mask", "tiny"], 2, "tiny needs --data.manifest clips.csv"),
        (["mask", "tiny", "--data.manifest", "no.csv"], 1, "no such manifest: "),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--only", "tub .9"], 2, "did you mean 'tube .9'?"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--tasks", "kn"], 2, "no task is called 'kn'"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--linear.k", "3"], 2, "unknown option --linear.k"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--learner.ratoi", "3"], 2, "unknown option --learner.ratoi"),
        (["transfer", "tiny", "--data.manifest", "CORPUS"], 2, "table transfer needs --manifests"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--manifests", "a.csv"], 2, "--manifests is for the tables"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--labels-per-class", "0"], 2, "must be 1 or more"),
        (["mask", "tiny", "--data.manifest", "UNLABELLED"], 1, "no video has a label"),
        (["mask", "tiny", "--data.manifest", "CORPUS", "--out", "/proc/no"], 1, "/proc/no"),
    ],
)
def test_mistakes_are_one_line(words, code, message, corpus, tmp_path, capfd):
    unlabelled = tmp_path / "unlabelled.csv"
    unlabelled.write_text(f"path\n{corpus.parent / '00.mp4'}\n", encoding="utf-8")
    named = {"CORPUS": str(corpus), "UNLABELLED": str(unlabelled)}
    assert cli.main(["ablate", *[named.get(word, word) for word in words]]) == code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines


def test_dry_run_lists_and_touches_nothing(ablate, tmp_path, capsys):
    assert ablate("decoder", "--dry-run", "--tasks", "knn") == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 5 and text.count("to train, to judge: knn") == 5
    assert not (tmp_path / "out").exists()
    assert ablate("decoder", "--only", "1 block", "--tasks", "knn") == 0
    capsys.readouterr()
    assert ablate("decoder", "--dry-run", "--tasks", "knn") == 0
    assert capsys.readouterr().out.count("done") == 1


def test_a_report_of_nothing_is_refused_and_leaves_no_folder(ablate, mine, tmp_path, capfd):
    assert ablate("decoder", "--only", "1 block", "--tasks", "knn") == 0
    assert ablate("decoder", "--report", "--tasks", "knn") == 0
    capfd.readouterr()
    words = ["--report", "--tasks", "knn", "--out", str(tmp_path / "typo")]
    assert cli.main(["ablate", "decoder", str(mine), *words]) == 1
    assert "typo has nothing of these rows to report" in capfd.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_the_tables_are_listed(capsys):
    assert cli.main(["ablate", "list"]) == 0 and cli.main(["list"]) == 0
    assert capsys.readouterr().out.count("Kind and ratio of the mask (VideoMAE, table 1b)") == 2
