import csv
import json
import re

import pytest

from tubelet import cli
from tubelet.data.listing import read_manifest, write_manifest

SMALL = [
    "--data.frames", "4", "--data.stride", "1", "--data.reference_fps", "8", "--data.size", "16",
    "--backbone.dim", "32", "--backbone.depth", "1", "--backbone.heads", "2", "--backbone.patch", "4",
    "--train.batch", "4", "--train.workers", "0", "--train.quiet", "true",
]  # fmt: skip


@pytest.fixture
def compare(corpus, tmp_path):
    def run(*words):
        return cli.main(["compare", "--data.manifest", str(corpus), "--out", str(tmp_path / "out"), *SMALL, *words])

    return run


def test_methods_get_one_budget_and_are_judged_alike(compare, tmp_path):
    words = ["--learners", "videomae", "moco", "--clips", "48", "--seeds", "0", "1", "--tasks", "knn", "retrieval"]
    words += ["--learner.init", "none"]
    assert compare(*words) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    untrained, masked, contrastive = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["not pre-trained", "videomae", "moco"]
    assert (masked["steps"], contrastive["steps"], untrained["steps"]) == (12, 6, 0)  # moco takes two views
    assert masked["clips"] == contrastive["clips"] == 48 and masked["epochs"] == 2 * contrastive["epochs"]
    assert found["columns"] == ["knn", "retrieval recall@1", "retrieval recall@5"]
    assert all(len(row["values"][column]) == 2 for row in found["rows"] for column in found["columns"])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| clips seen |" in text and "published" not in text
    assert re.search(r"\| videomae \| .* \| 12 \| 48 \| \d+ \| \d+\.\d+ \|", text)
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert len(lines) == 3 * 3 * 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert compare(*words) == 0  # nothing is done again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").glob("*.json")}


def test_what_the_videos_have_not_is_left_out_and_said(corpus, tmp_path, capfd):
    bare = tmp_path / "bare.csv"
    manifest = read_manifest(corpus)
    for video in manifest.videos:
        video.extra.clear()
    write_manifest(bare, manifest)
    words = ["compare", "--data.manifest", str(bare), "--out", str(tmp_path / "out"), *SMALL, "--dry-run"]
    assert cli.main([*words, "--tasks", "knn"]) == 0
    told = capfd.readouterr()
    assert re.search(r"mil_nce is left out: the manifest has no column 'narration' with words", told.err + told.out)
    assert re.search(r"^videomae +seed 2 ", told.out, re.MULTILINE) and "mil_nce  " not in told.out


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("silent", [False, True])
def test_sound_is_heard_in_files_and_in_shards(tmp_path, capfd, packed, silent):
    """Fails where a shard is taken for silent, or for heard since it is a shard."""
    sound = ["--sound"] if not silent else []
    words = ["--clips", "2", "--test", "0", "--frames", "8", "--size", "32", *sound]
    assert cli.main(["data", "synth", str(tmp_path / "corpus"), *words]) == 0
    manifest = tmp_path / "corpus" / "clips.csv"
    if packed:
        assert cli.main(["data", "pack", str(manifest), str(tmp_path / "packed"), "--workers", "1"]) == 0
        manifest = tmp_path / "packed" / "clips.csv"
    words = ["--data.manifest", str(manifest), "--out", str(tmp_path / "out"), *SMALL, "--dry-run", "--tasks", "knn"]
    assert cli.main(["compare", *words]) == 0
    told = capfd.readouterr()
    assert ("avid is left out: the videos have no sound" in told.err) == silent
    assert bool(re.search(r"^avid +seed 0 ", told.out, re.MULTILINE)) != silent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learners", "videomea"], "no learner to compare is called 'videomea'; did you mean 'videomae'?"),
        (["--learners", "videomae", "--clips", "0"], "--clips must be 1 or more"),
        (["--learners", "videomae", "--only", "moko"], "has no row 'moko'"),
        (["--learners", "videomae", "--report"], "nothing of these rows to report"),
    ],
)
def test_mistakes_are_named(compare, capfd, words, message):
    assert compare(*words) != 0
    assert message in " ".join(capfd.readouterr().err.split())
