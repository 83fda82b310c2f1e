import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import published
from tubelet import cli
from tubelet.checkpoint import load_backbone, read_about
from tubelet.convert.convert import convert, read, written_whole
from tubelet.convert.neutral import Options
from tubelet.train.run import load_learner
from tubelet.types import TubeletError

HEADS = Options(heads=4, decoder_heads=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("make", [published.pretraining, published.classifier])
def test_the_way_round_all_formats_is_equal_tensor_for_tensor(tmp_path, make):
    state = make()
    published.save(state, tmp_path / "x.pth", args=published.SMALL)
    convert(tmp_path / "x.pth", tmp_path / "ours", "tubelet", HEADS)
    convert(tmp_path / "ours", tmp_path / "hf", "huggingface")
    convert(tmp_path / "hf", tmp_path / "again", "tubelet")
    convert(tmp_path / "again", tmp_path / "back.pth", "original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_a_converted_folder_is_used_as_a_run(tmp_path):
    published.save(published.pretraining(), tmp_path / "x.pth", args=published.SMALL)
    convert(tmp_path / "x.pth", tmp_path / "ours", "tubelet", HEADS)
    assert load_backbone(tmp_path / "ours").dim == 48
    video = torch.rand(1, 3, 4, 16, 16)
    assert load_learner(tmp_path / "ours").reconstruct(video).reconstructed.shape == video.shape
    published.save(published.classifier(), tmp_path / "y.pth", args=published.SMALL)
    convert(tmp_path / "y.pth", tmp_path / "classifier", "tubelet", HEADS)
    assert load_learner(tmp_path / "classifier").logits(video).shape == (1, 5)


def test_the_head_of_k710_gives_that_of_another_set(tmp_path):
    state = published.classifier(classes=5)
    path = published.save(state, tmp_path / "x.pth", args=published.SMALL)
    (tmp_path / "map.json").write_text("[3, 0, 4]")
    neutral = read(path, Options(heads=4, head_map=str(tmp_path / "map.json")))
    assert torch.equal(neutral.module.head.weight, state["head.weight"][[3, 0, 4]])
    assert torch.equal(neutral.module.head.bias, state["head.bias"][[3, 0, 4]]) and neutral.classes == ["3", "0", "4"]
    for wrong in ("[5]", "[]", '{"a": 1}', "[true]", '["0"]'):
        (tmp_path / "map.json").write_text(wrong)
        with pytest.raises(TubeletError, match="must be a JSON list of rows of the head, each 0 to 4"):
            read(path, Options(heads=4, head_map=str(tmp_path / "map.json")))


@pytest.mark.parametrize("data_set", ["SSV2", "Kinetics-400"])
def test_a_classifier_is_used_with_the_sampling_it_was_trained_with(tmp_path, data_set):
    args = Namespace(data_set=data_set, **vars(published.SMALL))
    source = published.save(published.classifier(), tmp_path / "x.pth", args=args)
    done = convert(source, tmp_path / "ours", "tubelet", HEADS)
    in_segments = data_set == "SSV2"
    assert read_about(tmp_path / "ours")["clip"].get("segments", False) is in_segments
    said = "sampling: a frame from each of 4 equal parts" if in_segments else "sampling: dense clips, 4 frames 4 apart"
    assert sum(note.startswith(said) for note in done.notes) == 1
    convert(tmp_path / "ours", tmp_path / "again", "tubelet")
    assert read_about(tmp_path / "again")["clip"] == read_about(tmp_path / "ours")["clip"]


def test_sampling_that_no_file_says_is_told_by_an_option(tmp_path):
    source = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(source, tmp_path / "hf", "huggingface", HEADS)
    assert "segments" not in read(tmp_path / "hf").clip
    words = ["convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--to", "tubelet", "--segments"]
    assert cli.main(words) == 0 and read_about(tmp_path / "ours")["clip"]["segments"] is True


def test_what_is_no_conversion_is_not_written_over(tmp_path):
    source = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    other = published.save(published.classifier(seed=1), tmp_path / "other.pth")
    for out, to in ((tmp_path / "mine", "tubelet"), (other, "original"), (tmp_path / "mine", "original")):
        before = other.read_bytes()
        with pytest.raises(TubeletError, match="is not a conversion"):
            convert(source, out, to, HEADS)
        assert other.read_bytes() == before and (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("hf", "hf"), ("hf", "again"), ("hf", "hf/../hf"), ("again", "hf"), ("hf", "hf/new"),
        ("hf/model.safetensors", "hf"), ("hf/model.safetensors", "again/model.safetensors"),
    ],
)  # fmt: skip
def test_the_source_is_never_written_over(tmp_path, source, out):
    """A conversion may be replaced, but not by what is made of it."""
    path = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(path, tmp_path / "hf", "huggingface", HEADS)
    (tmp_path / "again").symlink_to(tmp_path / "hf")
    before = contents(tmp_path / "hf")
    with pytest.raises(TubeletError, match=r"is, holds or is within .* choose another place"):
        convert(tmp_path / source, tmp_path / out, "tubelet")
    assert contents(tmp_path / "hf") == before


def test_a_conversion_is_replaced_until_it_was_used(tmp_path):
    source = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    for to, out in (("tubelet", tmp_path / "ours"), ("original", tmp_path / "y.pth")):
        convert(source, out, to, HEADS)
        convert(source, out, to, HEADS)
    (tmp_path / "ours" / "evaluation").mkdir()
    with pytest.raises(TubeletError, match=r"was used since \(evaluation\)"):
        convert(source, tmp_path / "ours", "tubelet", HEADS)


def test_an_error_on_the_way_leaves_what_was_there(tmp_path):
    source = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(source, tmp_path / "ours", "tubelet", HEADS)
    before = contents(tmp_path / "ours")
    with pytest.raises(RuntimeError, match="no more disk"), written_whole(tmp_path / "ours") as fresh:
        fresh.mkdir()
        (fresh / "half").write_text("half")
        raise RuntimeError("no more disk")
    assert contents(tmp_path / "ours") == before and {p.name for p in tmp_path.iterdir()} == {"x.pth", "ours"}


@pytest.mark.parametrize("source", ["x.pth", "hf"])
@pytest.mark.parametrize("command", ["embed", "show", "train"])
def test_a_checkpoint_of_others_is_told_how_to_become_one_of_ours(tmp_path, capfd, source, command):
    path = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(path, tmp_path / "hf", "huggingface", HEADS)
    place = str(tmp_path / source)
    words = {
        "embed": [place, "clips.csv", "-o", "x.npz"],
        "show": ["v1/pretrain_k400_base_800e", "--backbone.init", place],
        "train": ["v1/pretrain_k400_base_800e", "--backbone.init", place],
    }[command]
    assert cli.main([command, *words]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "has no backbone.json" in line and f"`tubelet convert {place} DST --to tubelet`" in line


def test_the_folder_says_where_it_came_from(tmp_path):
    source = published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(source, tmp_path / "ours", "tubelet", HEADS)
    about = json.loads((tmp_path / "ours" / "conversion.json").read_text())
    assert about["from"] == str(source) and about["taken_for"] == "original VideoMAE, classifier" and about["proof"]


@pytest.mark.parametrize(
    "tensors",
    [
        {"conv1.weight": torch.ones(64, 3, 7, 7), "bn1.weight": torch.ones(64), "fc.weight": torch.ones(9, 9)},
        {"embeddings.word_embeddings.weight": torch.ones(9, 4), "encoder.layer.0.output.weight": torch.ones(4, 4)},
        {"patch_embed.proj.weight": torch.ones(4, 3, 4, 4), "layers.0.blocks.0.norm1.weight": torch.ones(4)},
        {"x": torch.ones(1)},
    ],
    ids=["resnet", "text", "swin", "one"],
)
def test_another_architecture_gets_one_line(tmp_path, capfd, tensors):
    path = published.save(tensors, tmp_path / "videomae_base.pth")  # a name is no proof
    assert cli.main(["convert", str(path), str(tmp_path / "out"), "--to", "tubelet"]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and "is no video or image transformer that is known here" in line
    assert next(iter(tensors)) in line and not (tmp_path / "out").exists()


def test_the_command_says_what_it_took_the_file_for_and_how_far_the_two_are_apart(tmp_path, capfd):
    path = published.save(published.classifier(), tmp_path / "x.bin", args=published.SMALL)
    words = ["convert", str(path), str(tmp_path / "out"), "--to", "tubelet", "--heads", "4"]
    assert cli.main(words) == 0
    said = capfd.readouterr().err
    assert "was taken for: original VideoMAE, classifier" in said and "read back: all 32 tensors are equal" in said
    assert "largest difference from transformers" in said or "transformers is not installed" in said
    assert cli.main([*words[:5], "--heads", "5"]) == 1
    assert "backbone.heads (5) must divide" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [{"tubelet": 0}, {"heads": 0}, {"decoder_heads": -1}, {"stride": 0}, {"std": 0.0}])
def test_a_number_that_cannot_be_is_refused_by_its_option(wrong):
    with pytest.raises(TubeletError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
        Options(**wrong)


def test_help_needs_no_torch():
    code = "import sys; from tubelet.cli import main; main(['convert', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--head-map" in done.stdout
