import csv
import json
import re
from dataclasses import replace

import pytest

from tubelet import cli
from tubelet.data.listing import Manifest, read_manifest, write_manifest
from tubelet.data.synthetic import make_corpus

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
    words = ["--learners", "videomae", "simclr", "--clips", "48", "--seeds", "0", "1", "--tasks", "knn", "retrieval"]
    words += ["--learner.init", "none"]
    assert compare(*words) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    untrained, masked, contrastive = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["not pre-trained", "videomae", "simclr"]
    assert (masked["steps"], contrastive["steps"], untrained["steps"]) == (12, 6, 0)  # simclr takes two views
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


@pytest.fixture
def bare(corpus, tmp_path):
    """A manifest that tells no words."""
    manifest = read_manifest(corpus)
    for video in manifest.videos:
        video.extra.clear()
    write_manifest(tmp_path / "bare.csv", manifest)
    return tmp_path / "bare.csv"


def test_what_the_videos_have_not_is_left_out_and_said(bare, tmp_path, capfd):
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
    words = ["--clips", "2", "--test", "2", "--frames", "8", "--size", "32", "--motions", "[left, right]", *sound]
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
    assert cli.main(["compare", *words, "--learners", "avid"]) == int(silent)


@pytest.mark.parametrize(
    ("learner", "lacks"), [("mil_nce", "no column 'narration' with words"), ("coclr", "no column 'flow'")]
)
def test_a_learner_that_is_named_is_refused_where_the_videos_lack_what_it_needs(learner, lacks, bare, tmp_path, capfd):
    """Fails where it is trained without a loss and judged as if it were pre-trained."""
    words = ["compare", "--data.manifest", str(bare), "--out", str(tmp_path / "out"), *SMALL, "--learners", learner]
    assert cli.main([*words, "--tasks", "knn"]) == 1
    assert re.search(f"error: {learner} cannot be compared: .*{lacks}", capfd.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_numbers_have_their_names_and_methods_their_own_network_untrained(compare, tmp_path, capfd, monkeypatch):
    """One learner cannot be trained on so few videos, and one is named twice."""
    from matplotlib.figure import Figure

    drawn, real = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (drawn.append(self), real(self, *args, **how))[1])
    words = ["--learners", "jigsaw", "simclr", "xdc", "videomae", "simclr", "--clips", "8", "--seeds", "0"]
    words += ["--tasks", "retrieval", "knn", "--retrieval.ks", "[7,2]"]
    assert compare(*words) == 1
    told = capfd.readouterr().err
    assert "top-1 %, unless a column says otherwise" in told and "xdc: pre-training" in told.splitlines()[-1]
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    remove, keep = "not pre-trained", "not pre-trained, background keep"
    assert [(row["name"], row["untrained"]) for row in found["rows"]] == [
        (remove, remove), ("simclr", remove), ("xdc", remove), ("videomae", remove), (keep, remove), ("jigsaw", keep),
    ]  # fmt: skip
    assert found["numbers"] == {"retrieval recall@2": "recall@2", "retrieval recall@7": "recall@7", "knn": "top1"}
    failed = found["rows"][2]
    assert not any(failed["values"].values()) and "learner.clusters must be" in failed["errors"][0]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "recipe `tiny/NAME`" in text and "Ours" not in text and "Each sees 8 clips" in text
    assert "| xdc | failed | failed | failed |" in text and "What failed" in text
    axes = drawn[0].axes
    assert [one.get_xlabel() for one in axes] == ["recall@2 %", "recall@7 %", "top-1 %"]
    assert axes[2].get_title() == "knn" and [one.get_text() for one in axes[2].texts].count("failed") == 1
    own = {row["name"]: row["mean"].get("knn") for row in found["rows"]}
    beside = [line.get_segments()[0][:, 0].mean() for line in axes[2].collections if line.get_label() == remove]
    assert beside == [own[remove]] * 3 + [own[keep]]


def test_a_chain_is_a_row_of_all_its_links_and_other_tables_are_not_overwritten(corpus, tmp_path, capfd):
    """What flow shows does not matter here: each video is its own."""
    manifest = read_manifest(corpus)
    write_manifest(tmp_path / "flow.csv", Manifest([replace(video, flow=video.path) for video in manifest]))
    words = ["compare", "--data.manifest", str(tmp_path / "flow.csv"), "--out", str(tmp_path / "out"), *SMALL]
    words += ["--tasks", "knn", "--seeds", "0", "--learner.queue", "8"]
    assert cli.main([*words, "--learners", "coclr", "--clips", "39"]) == 2
    assert "--clips must be 40 or more, not 39: a step of coclr takes" in capfd.readouterr().err
    assert cli.main([*words, "--learners", "coclr", "--clips", "160"]) == 0
    table = tmp_path / "out" / "comparison.json"
    written, (_, row) = table.read_text(), json.loads(table.read_text())["rows"]
    assert (row["name"], row["steps"], row["clips"]) == ("coclr", 20, 160)
    assert row["values"]["knn"] and not row["errors"]
    home = tmp_path / "out" / "runs" / row["runs"]["0"]
    assert len([path for path in home.iterdir() if (path / "backbone.safetensors").is_file()]) == 5
    assert json.loads(home.with_suffix(".json").read_text())["encoder"].keys() == {"steps", "seconds"}
    for other in (["--learners", "coclr", "--clips", "120"], ["--learners", "moco", "--clips", "80"]):
        assert cli.main([*words, *other]) == 1
        assert "has another comparison, whose 'coclr' would be lost" in capfd.readouterr().err
    assert table.read_text() == written
    assert cli.main([*words, "--learners", "moco", "coclr", "--clips", "160", "--report"]) == 0
    assert [row["name"] for row in json.loads(table.read_text())["rows"]] == ["not pre-trained", "moco", "coclr"]


def test_masks_are_followed_without_labels(tmp_path, capfd):
    """Propagation needs masks, and no label; fails where every manifest must have labels."""
    corpus = make_corpus(tmp_path / "corpus", clips=4, test=2, size=16, frames=5, motions=("left", "up"), workers=0)
    manifest = read_manifest(corpus)
    write_manifest(corpus, Manifest([replace(video, label=None) for video in manifest]))
    words = ["compare", "--data.manifest", str(corpus), "--out", str(tmp_path / "out"), *SMALL, "--seeds", "0"]
    words += ["--learners", "jigsaw", "--clips", "4"]
    assert cli.main([*words, "--tasks", "propagation"]) == 0
    assert "propagation J&F" in (tmp_path / "out" / "comparison.md").read_text()
    assert cli.main([*words, "--tasks", "knn", "--dry-run"]) == 1
    assert "no video has a label" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", [["compare"], ["ablate", "mask"], ["evaluate", "run"]])
def test_several_processes_are_refused(command, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(command) == 1
    assert f"tubelet {command[0]} runs in one process" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learners", "videomea"], "no learner to compare is called 'videomea'; did you mean 'videomae'?"),
        (["--learners", "videomae", "simclr", "--clips", "7"], "--clips must be 8 or more, not 7: a step of simclr"),
        (["--learners", "videomae", "--train.length", "9 steps"], "compare takes no --train.length: --clips"),
        (["--learners", "coclr", "--flow.train.length=9 steps"], "compare takes no --train.length: --clips"),
        (["--learners", "videomae", "--seed", "1"], "compare takes no --seed: --seeds"),
        (["--learners", "videomae", "--name", "mine"], "compare takes no --name: "),
        (["--learners", "videomae", "--seeds", "0", "-1"], "--seeds must be 0 or more, not -1"),
        (["--learners", "videomae", "simclr", "--learner.ratio", "0.5"], "simclr: unknown option --learner.ratio"),
        (["--learners", "videomae", "--tasks", "classify"], "--tasks classify is of classifiers as they are"),
        (["--learners", "videomae", "--only", "moko"], "has no row 'moko'"),
        (["--learners", "videomae", "--report"], "nothing of these rows to report"),
    ],
)
def test_mistakes_are_named(compare, capfd, words, message):
    assert compare(*words) != 0
    assert message in " ".join(capfd.readouterr().err.split())
