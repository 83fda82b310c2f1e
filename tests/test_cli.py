import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_run import make_clips, make_recipe, train
from tubelet import cli, recipe
from tubelet.command import COMMANDS
from tubelet.types import TubeletError

WITHOUT_TORCH = """
import sys
from tubelet.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules and "av" not in sys.modules, "slow imports on the way to an answer"
sys.exit(code)
"""


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def run(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return train(make_recipe(folder / "mine.yaml", clips, evaluate={"knn": "end"}), folder / "mine")


def complaint(capfd, *words: object) -> tuple[int, str]:
    """The exit code and what was said on standard error, which must be a single line that begins with 'error: '."""
    capfd.readouterr()
    code = cli.main([str(word) for word in words])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ") or "Traceback" in line]
    assert len(lines) == 1 and "Traceback" not in lines[0], lines
    return code, lines[0]


# Help and mistakes


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        ([], 0),
        (["--version"], 0),
        (["data"], 0),
        (["data", "--help"], 0),
        *[([*name.split(), "--help"], 0) for name in COMMANDS],
        (["train", "tiny", "--learner.name", "supervised", "--help"], 0),
        (["list"], 0),
        (["show", "tiny", "--no-build"], 0),
        (["trian"], 2),
        (["train", "tiny", "--learner.ratoi", "1"], 2),
        (["predict", "run", "video", "--tpo", "1"], 2),
        (["evaluate", "run", "--tasks", "knnn"], 2),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(words, code):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (len(done.stderr.splitlines()) == 1) if code else done.stdout


def test_every_command_has_a_summary_and_an_example_of_itself(capsys):
    for name, found in COMMANDS.items():
        assert found.example.startswith(f"tubelet {name}") and found.summary.endswith(".")
        assert cli.main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert f"example: {found.example}" in text and found.summary in text


def test_python_m_tubelet_is_the_command():
    done = subprocess.run([sys.executable, "-m", "tubelet", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"tubelet \d+\.\d+\.\d+\n", done.stdout)


def test_import_tubelet_has_load_backbone_but_does_not_wait_for_torch():
    check = (
        "import sys, tubelet; assert 'torch' not in sys.modules; tubelet.load_backbone; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
    import tubelet

    with pytest.raises(AttributeError, match="no attribute 'load_backbon'"):
        tubelet.load_backbon  # noqa: B018


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "tiny"], "unknown command 'trian'; did you mean 'train'?"),
        (["data", "scna"], "unknown command 'data scna'; did you mean 'scan'?"),
        (["train"], "the following arguments are required: RECIPE (tubelet train --help)"),
        (["train", "tny"], "no recipe is called 'tny'; did you mean 'tiny'?"),
        (["train", "tiny"], "tiny needs --data.manifest clips.csv"),
        (["train", "tiny", "--learner.ratoi", "1"], "unknown option --learner.ratoi; did you mean --learner.ratio?"),
        (["train", "tiny", "--oot", "x"], "unknown option --oot; did you mean --out?"),
        (["train", "tiny", "--ratoi", "x"], "unknown option --ratoi; did you mean"),
        (["train", "tiny", "stray"], "unexpected argument stray"),
        (
            ["train", "tiny", "--learner.mask", "tub"],
            "--learner.mask cannot be 'tub': expected one of tube, random, frame",
        ),
        (["predict", "r", "v", "--top", "x"], "--top: cannot be 'x': expected a whole number"),
        (["predict", "r", "v", "--to", "3"], "unknown option --to; did you mean --top?"),
        (["data", "synth", "o", "--clips", "many"], "--clips cannot be 'many': expected a whole number"),
        (["data", "synth", "o", "--clps", "1"], "unknown option --clps; did you mean --clips?"),
        (["evaluate", "r", "--tasks", "linaer"], "no task is called 'linaer'; did you mean 'linear'?"),
        (["evaluate", "r", "--knn.kk", "3"], "unknown option --knn.kk; did you mean --knn.k?"),
        (["evaluate", "r", "--labels-per-class", "0"], "--labels-per-class must be 1 or more, not 0"),
    ],
)
def test_usage_errors_are_one_line_with_the_right_word_and_exit_2(capfd, words, message):
    code, said = complaint(capfd, *words)
    assert code == 2 and message in said


# Bad input: one clear line and a non-zero exit


def empty_folder(tmp_path, clips, run):
    (tmp_path / "videos").mkdir()
    return ["data", "scan", tmp_path / "videos", "-o", tmp_path / "out.csv"], "no videos in"


def no_readable_video(tmp_path, clips, run):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    (tmp_path / "videos" / "b.mp4").touch()
    return ["data", "scan", tmp_path / "videos", "--workers", 0, "-o", tmp_path / "out.csv"], "none of the 2 videos"


def missing_manifest(tmp_path, clips, run):
    return ["train", "tiny", "--data.manifest", tmp_path / "no.csv", "--out", tmp_path / "out"], "no such manifest"


def missing_video(tmp_path, clips, run):
    return ["reconstruct", run, tmp_path / "no.mp4"], "no.mp4"


def text_named_mp4(tmp_path, clips, run):
    (tmp_path / "a.mp4").write_text("this is a text and not a video\n")
    return ["reconstruct", run, tmp_path / "a.mp4"], "a.mp4"


def zero_bytes(tmp_path, clips, run):
    (tmp_path / "a.mp4").touch()
    return ["reconstruct", run, tmp_path / "a.mp4"], "a.mp4"


def training_set_unreadable(tmp_path, clips, run):
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "clips.csv").write_text("path\na.mp4\n")
    return ["train", make_recipe(tmp_path / "r.yaml", tmp_path / "clips.csv"), "--out", tmp_path / "out"], "a.mp4"


def one_class(tmp_path, clips, run):
    manifest = clips.with_name("one-class.csv")
    manifest.write_text(re.sub("class .", "class 0", clips.read_text()))
    return ["evaluate", run, "--manifest", manifest, "--workers", 0], "only one class"


def one_class_to_train(tmp_path, clips, run):
    manifest = clips.with_name("one-class.csv")
    manifest.write_text(re.sub("class .", "class 0", clips.read_text()))
    return [
        "train",
        make_recipe(tmp_path / "r.yaml", manifest, "supervised"),
        "--out",
        tmp_path / "out",
    ], "two or more are needed"


def without_labels(clips: Path) -> Path:
    manifest = clips.with_name("no-labels.csv")
    manifest.write_text("path\n" + "".join(line.split(",")[0] + "\n" for line in clips.read_text().splitlines()[1:]))
    return manifest


def labels_missing(tmp_path, clips, run):
    return ["evaluate", run, "--manifest", without_labels(clips), "--workers", 0], "no video has a label"


def labels_missing_to_train(tmp_path, clips, run):
    return [
        "train",
        make_recipe(tmp_path / "r.yaml", without_labels(clips), "supervised"),
        "--out",
        tmp_path / "out",
    ], "`label`"


def checkpoint_does_not_fit(tmp_path, clips, run):
    other = shutil.copytree(run, tmp_path / "other")
    about = json.loads((other / "backbone.json").read_text())
    about["backbone"]["dim"] = 32
    (other / "backbone.json").write_text(json.dumps(about))
    return ["embed", other, clips, "-o", tmp_path / "out.csv"], "does not fit this VisionTransformer"


def init_does_not_fit(tmp_path, clips, run):
    words = ["train", make_recipe(tmp_path / "r.yaml", clips), "--backbone.init", run, "--backbone.dim", 32]
    return [*words, "--out", tmp_path / "out"], "dim"


def damaged_weights(tmp_path, clips, run):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "backbone.safetensors").write_bytes(b"\0" * 40)
    return ["embed", other, clips, "-o", tmp_path / "out.csv"], "backbone.safetensors cannot be read"


def size_and_patch(tmp_path, clips, run):
    return ["train", make_recipe(tmp_path / "r.yaml", clips), "--data.size", 20, "--out", tmp_path / "out"], "20"


def another_recipe(tmp_path, clips, run):
    return ["train", run, "--out", run, "--learner.ratio", 0.25], "learner.ratio is 0.5 there and 0.25 here"


def not_a_run(tmp_path, clips, run):
    return ["predict", tmp_path / "nothing", next(clips.parent.glob("*.mp4"))], "nothing does not exist"


def no_classifier(tmp_path, clips, run):
    return ["predict", run, next(clips.parent.glob("*.mp4"))], "tubelet train finetune --backbone.init"


def wrong_ending(tmp_path, clips, run):
    return ["embed", run, clips, "-o", tmp_path / "out.txt"], "must end in one of .parquet, .csv, .npz"


@pytest.mark.parametrize(
    "case",
    [
        empty_folder, no_readable_video, missing_manifest, missing_video, text_named_mp4, zero_bytes,
        training_set_unreadable, one_class, one_class_to_train, labels_missing, labels_missing_to_train,
        checkpoint_does_not_fit, init_does_not_fit, damaged_weights, size_and_patch, another_recipe, not_a_run,
        no_classifier, wrong_ending,
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_line_and_exit_1(case, tmp_path, clips, run, capfd):
    words, message = case(tmp_path, clips, run)
    code, said = complaint(capfd, *words)
    assert code == 1 and message in said


# What the commands do


def test_train_leaves_a_run_whose_recipe_reads_back(run, clips):
    assert recipe.of_run(run) == recipe.load(run)
    assert recipe.of_run(run).data["manifest"] == str(clips)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("knn/top1" in line for line in lines)
    result = json.loads((run / "evaluation" / "results.json").read_text())["knn"]["videomae"]
    assert result["videos"] == 4 and result["step"] == 2


def test_the_same_command_again_finds_nothing_left_to_do(run, capfd):
    before = (run / "backbone.safetensors").read_bytes()
    assert cli.main(["train", str(run), "--out", str(run)]) == 0
    assert (run / "backbone.safetensors").read_bytes() == before


def test_training_without_labels_only_leaves_the_probe_out(tmp_path, clips, capfd):
    made = make_recipe(tmp_path / "r.yaml", without_labels(clips), evaluate={"knn": "end"})
    train(made, tmp_path / "out")
    assert "knn left out" in " ".join(capfd.readouterr().err.split())


def test_show_prints_a_recipe_with_weights_and_shapes(run, tmp_path, capsys):
    assert cli.main(["show", str(run), "--learner.ratio", "0.25"]) == 0
    shown = capsys.readouterr().out
    assert "# grid: 2 x 2 x 2 = 8 tokens of width 16" in shown
    assert "# batch: video B C T H W = 4 3 4 16 16" in shown and "# weights: " in shown
    (tmp_path / "again.yaml").write_text(shown)
    assert recipe.load(tmp_path / "again.yaml") == recipe.load(run, ["--learner.ratio", "0.25"])


@pytest.mark.parametrize(
    "name", ["demo", "finetune", "tiny", "v2/pretrain_hybrid_base_800e", "mae_st/finetune_k400_large_50e"]
)
def test_packaged_recipes_build_and_their_numbers_fit_together(name, capsys):
    assert cli.main(["show", name]) == 0
    assert "tokens of width" in capsys.readouterr().out


def test_scan_lists_the_readable_and_quarantines_the_rest(clips, tmp_path, capfd):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clips.with_name("0.mp4"), folder)
    (folder / "bad.mp4").write_text("no video")
    assert cli.main(["data", "scan", str(folder), "-o", str(tmp_path / "m.csv"), "--workers", "0"]) == 0
    assert (tmp_path / "m.csv").read_text().splitlines()[1:] == ["videos/0.mp4"]
    assert "bad.mp4" in (tmp_path / "m-unreadable.csv").read_text()
    printed = capfd.readouterr()
    assert "videos" in printed.out and "bad.mp4" in printed.err


def test_evaluate_compares_with_the_untrained_network_and_keeps_what_was_there(run, capfd):
    words = [
        "evaluate",
        str(run),
        "--tasks",
        "knn",
        "--baseline",
        "--seeds",
        "0",
        "1",
        "--knn.k",
        "3",
        "--workers",
        "0",
    ]
    assert cli.main([*words, "--labels-per-class", "2"]) == 0
    assert "untrained" in capfd.readouterr().out
    assert cli.main(["evaluate", str(run), "--tasks", "linear", "--workers", "0"]) == 0
    results = json.loads((run / "evaluation" / "results.json").read_text())
    assert set(results) == {"knn", "linear"} and set(results["knn"]) == {"videomae", "untrained"}
    result = results["knn"]["untrained"]
    assert [seed["seed"] for seed in result["seeds"]] == [0, 1] and result["labels_per_class"] == 2
    assert result["top1"] == pytest.approx(sum(seed["top1"] for seed in result["seeds"]) / 2)
    assert (run / "evaluation" / "knn-untrained-seed1" / "predictions.csv").exists()


def test_reconstruct_and_report_write_their_files(run, clips, tmp_path, capfd):
    video = str(clips.with_name("0.mp4"))
    assert (
        cli.main(["reconstruct", str(run), video, "-o", str(tmp_path), "--no-true-statistics", "--ratio", "0.75"]) == 0
    )
    assert len(list(tmp_path.glob("*.mp4"))) == 1 and len(list(tmp_path.glob("*.png"))) == 1
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1000


def test_doctor_knows_the_machine(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("python", "torch", "CPU cores", "bfloat16", "GPU"))


# How it ends


def test_ctrl_c_says_what_next_and_exits_130(monkeypatch, capfd):
    def stop(found, rest=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", stop)
    assert cli.main(["train", "tiny"]) == 130
    assert "goes on" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(found):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "dispatch", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m tubelet train --help | head -1", shell=True, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith("usage")


def test_only_the_first_of_several_processes_complains(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["trian"]) == 2
    assert capfd.readouterr().err == ""


def test_errors_of_any_length_are_one_line(monkeypatch):
    def fail(words):
        raise TubeletError("one\n  two")

    said = io.StringIO()
    monkeypatch.setattr(cli, "dispatch", fail)
    monkeypatch.setattr(sys, "stderr", said)
    assert cli.main([]) == 1 and said.getvalue() == "error: one two\n"


def test_a_classifier_is_judged_as_it_is(clips, tmp_path, capsys):
    tuned = train(make_recipe(tmp_path / "tune.yaml", clips, "supervised"), tmp_path / "tuned")
    weights = (tuned / "learner.safetensors").read_bytes()
    assert cli.main(["evaluate", str(tuned)]) == 0
    assert "classifier" in capsys.readouterr().out
    result = json.loads((tuned / "evaluation" / "results.json").read_text())["classifier"]["supervised"]
    assert result["videos"] == 4
    assert (tuned / "learner.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "words", [["train", "RECIPE", "--out", "FILE/run"], ["data", "scan", "CLIPS", "-o", "FILE/x.csv"]]
)
def test_what_cannot_be_written_to_is_named(words, clips, tmp_path, capfd):
    file = tmp_path / "file"
    file.write_text("not a folder")
    made = make_recipe(tmp_path / "r.yaml", clips)
    spelt = [w.replace("FILE", str(file)).replace("RECIPE", str(made)).replace("CLIPS", str(clips)) for w in words]
    code, said = complaint(capfd, *spelt)
    assert code == 1
    assert str(file) in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_begins_is_a_pre_emption_too(monkeypatch, number):
    """Fails with the system's own answer (killed by the signal), and with an exception, which an import may swallow."""

    def load(*words):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(1)

    monkeypatch.setattr(recipe, "load", load)
    pid = os.fork()
    if pid == 0:
        os._exit(cli.main(["train", "tiny"]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75


def test_handlers_of_signals_are_put_back(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["train", "no such recipe"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
