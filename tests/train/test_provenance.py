"""``provenance.json``: an entry for each start, whatever ended it, and what they add up to."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_run
from tubelet import checkpoint
from tubelet.data.listing import read_manifest
from tubelet.train import provenance
from tubelet.train.provenance import Provenance, code, read_provenance, versions
from tubelet.train.stop import Preempted

SOURCE = str(Path(provenance.__file__).parents[2])


def told(out: Path) -> dict:
    return json.loads((out / "provenance.json").read_text())


def begin(out: Path, **facts) -> Provenance:
    return Provenance(out, "seed: 0\n", 4, **facts)


def test_a_run_says_where_it_came_from_and_what_it_cost(corpus, tmp_path):
    recipe, out = tiny_run.make_recipe(tmp_path / "tiny.yaml", corpus, train={"length": "4 steps"}), tmp_path / "run"
    tiny_run.train(recipe, out)
    tiny_run.train(recipe, out)  # nothing is left to do
    found = told(out)
    first, second = found["starts"]
    assert (first["from_step"], first["to_step"], first["ended"]) == (0, 4, "finished")
    assert (second["from_step"], second["to_step"], second["ended"]) == (4, 4, "finished")
    assert found["fingerprint"] == read_manifest(corpus).where("train").fingerprint and found["seed"] == 0
    assert found["recipe"] == f"sha256:{hashlib.sha256((out / 'recipe.yaml').read_bytes()).hexdigest()}"
    assert found["steps"] == 4 and found["clips_seen"] == 16 and found["loss"] > 0
    assert found["wall_seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert 0 < found["seconds"] <= found["wall_seconds"]
    assert found["core_hours"] == pytest.approx(first["core_hours"] + second["core_hours"])
    host = first["hosts"][0]
    assert first["core_hours"] == pytest.approx(host["cores"] * first["seconds"] / 3600, abs=0.001)
    assert host["processes"] == 1 and host["memory_gib"] > 0 and host["cpu"] and host["gpus"] == []


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (None, "finished"),
        (KeyboardInterrupt(), "interrupted"),
        (Preempted(), "pre-empted"),
        (ValueError("too bad\nmore"), "error"),
    ],
)
def test_how_a_start_ended(tmp_path, error, ended):
    try:
        with begin(tmp_path) as start:
            start.reached(0, 0.0, float("nan"))
            start.reached(7, 1.5, 0.25)
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    found = told(tmp_path)
    assert found["starts"][0]["ended"] == ended and ("finished" in found) == (error is None)
    assert found["clips_seen"] == 28 and found["loss"] == 0.25 and found["seconds"] == 1.5
    assert found["starts"][0].get("error") == ("ValueError: too bad" if ended == "error" else None)


KILLED = """
import os, signal, sys
from pathlib import Path
from tubelet.train.provenance import Provenance
with Provenance(Path(sys.argv[1]), "seed: 0", 4) as start:
    start.reached(0, 0.0, 1.0)
    start.reached(12, 3.0, 0.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_start_stands_there_with_what_it_had_saved(tmp_path):
    """Fails where a start is written only when it ends."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": SOURCE})
    assert done.returncode == -signal.SIGKILL
    assert told(tmp_path)["starts"][0]["ended"] is None and told(tmp_path)["steps"] == 12
    with begin(tmp_path) as start:
        start.reached(12, 3.0, 0.5)
        assert [each["ended"] for each in told(tmp_path)["starts"]] == ["killed", None]
        start.reached(20, 5.0, 0.4)
    first, second = told(tmp_path)["starts"]
    assert (first["from_step"], first["to_step"]) == (0, 12)
    assert (second["from_step"], second["to_step"], second["ended"]) == (12, 20, "finished")
    assert told(tmp_path)["command"] == first["command"] and told(tmp_path)["started"] == first["started"]


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, capsys):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with begin(tmp_path) as start:
        start.reached(3, 1.0, 0.5)
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_before_there_were_starts_goes_on(tmp_path):
    old = {
        "started": "2026-01-01T00:00:00+0000", "command": "tubelet train tiny", "seed": 3, "machine": "2 CPU cores",
        "processes": 1, "versions": {"torch": "2.11.0"}, "seconds": 60.5, "steps": 8, "clips_seen": 32,
    }  # fmt: skip
    (tmp_path / "provenance.json").write_text(json.dumps(old))
    with begin(tmp_path, seed=3) as start:
        start.reached(8, 60.5, 0.5)
        start.reached(10, 70.0, 0.4)
    found = told(tmp_path)
    first, second = found["starts"]
    assert first["versions"] == {"torch": "2.11.0"} and first["to_step"] == 8 and first["ended"] == "killed"
    assert second["to_step"] == 10 and found["seconds"] == 70.0 and found["started"] == old["started"]
    assert "wall_seconds" not in found and "core_hours" not in found  # the first start does not know its part
    assert "machine" not in found and "versions" not in found


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"'])
def test_a_damaged_file_is_said_and_begun_afresh(tmp_path, capsys, content):
    (tmp_path / "provenance.json").write_text(content)
    assert read_provenance(tmp_path / "provenance.json") == {}
    assert "begun afresh" in capsys.readouterr().err
    with begin(tmp_path):
        pass
    assert len(told(tmp_path)["starts"]) == 1


@pytest.mark.parametrize("program", ["/somewhere/bin/tubelet", "/somewhere/tubelet/__main__.py"])
def test_the_command_is_one_that_can_be_typed(tmp_path, monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [program, "train", "tiny", "--out", "my run"])
    with begin(tmp_path):
        pass
    assert told(tmp_path)["command"] == "tubelet train tiny --out 'my run'"


def test_versions_name_what_decodes_and_what_computes():
    found = versions()
    assert {"python", "torch", "numpy", "av", "ffmpeg"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())


def test_the_commit_is_that_of_a_checkout_of_ours_alone(tmp_path, monkeypatch):
    """Installed into somebody else's repository, the package must not take that one's commit for its own."""

    def git(*words):
        mine = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *mine, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    inside = tmp_path / "tubelet" / "train" / "provenance.py"
    inside.parent.mkdir(parents=True)
    inside.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert "commit" not in code()
    git("init")
    (tmp_path / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "-m", "another project")
    assert "commit" not in code()
    git("add", "tubelet")
    git("commit", "-m", "ours")
    assert code()["commit"] == git("rev-parse", "HEAD").strip() and code()["changed"] is False
    (tmp_path / "other.py").write_text("1")
    assert code()["changed"] is False  # only what is in the package counts
    inside.write_text("x = 2\n")
    assert code()["changed"] is True
    assert str(tmp_path) not in json.dumps(code())
