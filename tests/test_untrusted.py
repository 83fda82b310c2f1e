"""What comes from elsewhere cannot run code: no such call is in the source, and files that try are refused."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rich.console import Console

import tubelet
from tiny_run import make_clips, make_recipe, train
from tubelet import checkpoint, cli, log, registry
from tubelet.data.inspect import write_unreadable
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.types import TubeletError
from videos import make_video

SOURCE = Path(tubelet.__file__).parent

CODE = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "runpy.run_path", "runpy.run_module"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
PICKLES = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "torch.distributed.checkpoint.FileSystemReader", "torch.hub.load", "torch.package.PackageImporter",
}  # fmt: skip
YAML = {f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")}
UNPACKERS = {"extract", "extractall", "unpack_archive"}
IMPORTERS = {"importlib.import_module", "importlib.util.spec_from_file_location"}

ALLOWED = {
    ("data/workers.py", "pickle.loads"): "what our own processes say to each other through pipes that nobody else has",
    ("registry.py", "importlib.import_module"): "modules that a scan of our own folders has found",
    ("apply/doctor.py", "importlib.import_module"): "names that are written there",
    ("data/flow.py", "importlib.import_module"): "a name that is written there",
    ("data/torchcodec.py", "importlib.import_module"): "a name that is written there",
}


def dangers(source: str) -> list[str]:
    """The calls in a source that could run what a file says."""
    tree = ast.parse(source)
    full: dict[str, str] = {}  # as it is called here -> its whole name
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            tops = [(name, name.name.partition(".")[0]) for name in node.names]
            full |= {name.asname or top: name.name if name.asname else top for name, top in tops}
        elif isinstance(node, ast.ImportFrom):
            full |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = f"{full.get(first, first)}{dot}{rest}"
        given = {word.arg: word.value for word in node.keywords}

        def says(argument: str, value: object, given: dict = given) -> bool:
            return isinstance(given.get(argument), ast.Constant) and given[argument].value is value

        wrong = (
            name in CODE | SHELLS | PICKLES | YAML | IMPORTERS
            or name.startswith(("os.exec", "os.spawn", "os.posix_spawn"))
            or name.rpartition(".")[2] in UNPACKERS
            or (name == "torch.load" and not says("weights_only", True))
            or (name.startswith("numpy.") and "allow_pickle" in given and not says("allow_pickle", False))
            or (name.startswith("subprocess.") and node.args and not isinstance(node.args[0], ast.List))
            or ("shell" in given and not says("shell", False))
            or (name == "torch.distributed.checkpoint.load" and "storage_reader" not in given)
            or (name == "jinja2.Environment" and not says("autoescape", True))
        )
        if wrong:
            found.append(name)
    return found


def test_no_call_in_the_source_runs_what_a_file_says():
    """Fails with any such call that is not in `ALLOWED`, and with one there that is gone."""
    found = {
        (path.relative_to(SOURCE).as_posix(), name) for path in SOURCE.rglob("*.py")
        for name in dangers(path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import pickle as p\np.loads(data)",
        "from pickle import loads\nloads(data)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import numpy\nnumpy.load(path, allow_pickle=True)",
        "import os\nos.system(f'ls {path}')",
        "import subprocess\nsubprocess.run(f'ls {path}', shell=True)",
        "import subprocess\nsubprocess.run('ls')",
        "from subprocess import run\nrun(command)",
        "import tarfile\ntarfile.open(path).extractall(folder)",
        "import shutil\nshutil.unpack_archive(path, folder)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as get\nget(name)",
        "from torch.distributed.checkpoint import FileSystemReader\nFileSystemReader(path)",
        "from torch.distributed import checkpoint as dcp\ndcp.load(state, checkpoint_id=path)",
        "from jinja2 import Environment\nEnvironment(loader=loader)",
    ],
)
def test_the_guard_sees(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()\nre.compile(text)\nast.literal_eval(text)",
        "import torch\ntorch.load(path, weights_only=True)\ntorch.compile(model)",
        "import yaml\nyaml.safe_load(text)",
        "import numpy\nnumpy.load(path)\nnumpy.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls', '--', path])",
        "import pickle\npickle.dumps(value)",
    ],
)
def test_the_guard_lets_pass(source):
    assert not dangers(source)


# Files with code in them. Each writes a canary when it is run.


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def evil_files(canary: Path) -> dict[str, bytes]:
    """Ways of hiding code in what is taken for weights."""
    zipped, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"a": torch.ones(2), "b": Evil(canary)}}, zipped)
    torch.save({"model": Evil(canary)}, legacy, _use_new_zipfile_serialization=False)
    return {"pickle": pickle.dumps({"model": Evil(canary)}), "zip": zipped.getvalue(), "legacy": legacy.getvalue()}


WAYS = ("pickle", "zip", "legacy")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A recipe, the run of it, and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    manifest = make_clips(folder / "clips")
    recipe = make_recipe(folder / "recipe.yaml", manifest)
    tuned = make_recipe(folder / "tuned.yaml", manifest, learner="supervised")
    return recipe, train(recipe, folder / "run"), train(tuned, folder / "tuned-run")


@pytest.mark.parametrize("way", WAYS)
def test_a_canary_sings_where_it_is_unpickled(tmp_path, way):
    """The tests below would notice."""
    with suppress(pickle.UnpicklingError, RuntimeError):  # a bare pickle is run, and then it is no checkpoint
        torch.load(io.BytesIO(evil_files(tmp_path / "canary")[way]), weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "pytorch_model.bin", "mp_rank_00_model_states.pt"])
def test_convert_opens_no_code(tmp_path, capsys, way, name):
    """Fails where ``weights_only`` is left out: that of `convert.load`, or safetensors that fall back to pickle."""
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(evil_files(tmp_path / "canary")[way])
    for source in (path, path.parent):
        assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", "tubelet"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["backbone.safetensors", "learner.safetensors"])
def test_weights_of_a_run_that_are_code_are_refused_by_all_that_load_them(tmp_path, runs, capsys, way, name):
    recipe, run, tuned = runs
    video = make_video(tmp_path / "v.mp4", 12)
    copies = [shutil.copytree(whole, tmp_path / f"copy-{whole.name}") for whole in (run, tuned)]
    for copy in copies:
        (copy / name).write_bytes(evil_files(tmp_path / "canary")[way])
    init = [f"--backbone.init={copies[0]}"]
    init += [f"--learner.init={copies[0]}"] if name == "learner.safetensors" else []
    clips = runs[0].parent / "clips" / "clips.csv"
    backbone_only = [
        ["embed", copies[0], clips, "-o", tmp_path / "e.csv"],
        ["evaluate", copies[0], "--tasks", "knn"],
        ["train", recipe, "--out", tmp_path / "taught", "--learner.target=teacher", f"--learner.teacher={copies[0]}"],
    ]
    learner_only = [["predict", copies[1], video], ["reconstruct", copies[0], video], ["evaluate", copies[1]]]
    either = [
        ["convert", copies[0], tmp_path / "out", "--to", "original"],
        ["train", recipe, "--out", tmp_path / "started", *init],
    ]
    if name == "backbone.safetensors":
        either[0].append("--encoder")
    for words in [*either, *(backbone_only if name == "backbone.safetensors" else learner_only)]:
        assert cli.main([str(word) for word in words]) == 1, words
        assert f"{name} cannot be read" in capsys.readouterr().err, words
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_from_no_checkpoint_with_code_in_it(tmp_path, runs, capsys, way):
    """All the places of checkpoints, today's and earlier ones, their checksums made to fit."""
    recipe, run, _ = runs
    for place in ("tensors", "metadata", "earlier"):
        copy = shutil.copytree(run, tmp_path / place)
        evil = evil_files(tmp_path / "canary")[way]
        for folder in (copy, *(copy / "checkpoints").glob("step-*")):
            (folder / ".metadata").write_bytes(evil)  # what other readers of torch's would unpickle
        for folder in (copy / "checkpoints").glob("step-*"):
            if place == "tensors":
                for file in folder.glob("*.safetensors"):
                    file.write_bytes(evil)
            sums = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
            sums += [".metadata"] if place == "metadata" else []
            lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sums]
            (folder / "SHA256SUMS").write_text("".join(lines))
        if place == "earlier":
            shutil.rmtree(copy / "checkpoints")
            (copy / "checkpoint.pt").write_bytes(evil)
        done = cli.main(["train", str(recipe), "--out", str(copy)])
        assert done == (0 if place == "metadata" else 1), capsys.readouterr().err
        assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["os", "os.system", "subprocess.Popen", "vit.__init__", "../evil", "tubelet.demo", "", ["vit"], {}, None, 3]
)
def test_a_description_names_what_is_registered_or_nothing(tmp_path, runs, name):
    """Fails where a name of a file is imported: only what a scan of our folders has found can be built."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    about = json.loads((copy / "backbone.json").read_text())
    (copy / "backbone.json").write_text(json.dumps(about | {"backbone": about["backbone"] | {"name": name}}))
    before = set(sys.modules)
    with pytest.raises(TubeletError, match="no backbone is called"):
        tubelet.load_backbone(copy)
    with pytest.raises(TubeletError, match="no method is called"):
        registry.build("methods", name)  # type: ignore[arg-type]
    assert {module for module in sys.modules if module not in before} == set()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("told", ["[]", "{}", '{"backbone": []}', '{"backbone": {}}', "nonsense", '"vit"'])
def test_a_description_of_another_shape_is_damaged(tmp_path, runs, told):
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    (copy / "backbone.json").write_text(told)
    with pytest.raises(TubeletError, match=r"backbone\.json is damaged"):
        tubelet.load_backbone(copy)


def test_arguments_that_a_backbone_does_not_have_are_refused(tmp_path, runs):
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    about = json.loads((copy / "backbone.json").read_text())
    (copy / "backbone.json").write_text(json.dumps(about | {"backbone": about["backbone"] | {"evil": 1}}))
    with pytest.raises(TubeletError, match=r"vit cannot be made of these settings: .*'evil'"):
        checkpoint.load_backbone(copy)


def test_shards_of_a_checkpoint_lie_beside_their_list(tmp_path, capsys):
    """Fails where the list may name any path, or the folder itself, which would be opened for ever."""
    source = tmp_path / "in"
    source.mkdir()
    shards = [{"weight_map": {"a": shard}} for shard in ("../evil.bin", "/elsewhere/evil.bin", "", ".", "..")]
    for told in (*shards, {}, {"weight_map": []}, {"weight_map": {}}):
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(told))
        assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", "tubelet"]) == 1
        assert "it must name files beside it" in capsys.readouterr().err
    for shard in (3, None):
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
        assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", "tubelet"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_zip_that_is_no_checkpoint_is_told_of(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
    assert cli.main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "out"), "--to", "tubelet"]) == 1
    assert "a zip file of something else" in capsys.readouterr().err


# Names of files

NAMES = (
    "-rf.mp4", "--help.mp4", "new\nline.mp4", "[red]a[bold].mp4", "[|x].mp4", "<script>alert(1).mp4",
    'quo"te\'s.mp4', "=1+1.mp4", "@sum.mp4", "; touch canary;.mp4", "$(touch canary).mp4", "a,b.mp4", "x%d.mp4",
    "\x1b[31mred.mp4", "file:a.mp4", "concat:a|b.mp4",
)  # fmt: skip


def test_names_of_files_are_only_names(tmp_path, monkeypatch, capfd):
    """Fails without `CONTROLS` and `Text` in `log`: an escape reaches the terminal, ``[/x]`` ends the command."""
    monkeypatch.chdir(tmp_path)
    film = make_video(tmp_path / "film.mp4", 12).read_bytes()
    for number, name in enumerate(NAMES):
        folder = tmp_path / "in" / ("[/b]" if number % 2 else "=2\x1b[1m")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(film if number % 4 else b"no film")
    before = {path for path in tmp_path.rglob("*") if "out" not in path.name}
    for words in (
        ["data", "check", "in", "-o", "out.csv", "--workers", "0"],
        ["data", "scan", "in", "-o", "out-2.csv", "--workers", "0"],
        ["data", "pack", "out.csv", "out-packed", "--workers", "0"],
        ["data", "join", "out.csv", "out-packed/clips.csv", "-o", "out-3.csv"],
    ):
        assert cli.main(words) == 0, words
        told = "".join(capfd.readouterr())
        assert "\x1b[31m" not in told
        assert "\x1b[1m" not in told
    assert {path for path in tmp_path.rglob("*") if "out" not in str(path.relative_to(tmp_path))} == before
    whole = {name for number, name in enumerate(NAMES) if number % 4}
    assert {video.path.name for video in read_manifest("out.csv")} == whole
    assert all(video.path.is_file() for video in read_manifest("out.csv"))
    page = (tmp_path / "out-check.html").read_text()
    assert "<script>alert" not in page


def test_an_error_tells_a_terminal_nothing(tmp_path, capsys):
    """Fails where `cli` prints a name as it is."""
    assert cli.main(["train", "tiny", "--data.manifest", str(tmp_path / "\x1b[31mred.csv")]) == 1
    assert "\\x1b[31mred.csv" in (told := capsys.readouterr().err)
    assert "\x1b" not in told


def test_tables_are_for_programs_and_keep_names_to_the_letter(tmp_path):
    """A spreadsheet would reckon with a cell such as ``=1+1``; changing it would make it the name of another file."""
    videos = [Video(tmp_path / name, label=name) for name in NAMES]
    write_manifest(tmp_path / "m.csv", Manifest(videos))
    assert read_manifest(tmp_path / "m.csv").videos == videos
    write_unreadable(tmp_path / "u.csv", [(video.path, "=1+1") for video in videos])
    with (tmp_path / "u.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file)][1:] == [str(video.path) for video in videos]


def test_a_table_holds_no_commands_for_a_terminal_and_no_markup():
    printed = io.StringIO()
    rows = [["[/x] \x9b1m"], ["\x1b[2J"], ["a" * 40]]
    Console(file=printed, width=100).print(log.table("[red]t\x1b]0;x\x07", ["a"], rows))
    assert "[red]t\\x1b]0;x\\x07" in printed.getvalue()
    assert "[/x] \\x9b1m" in printed.getvalue()
    assert "\x1b" not in printed.getvalue()
