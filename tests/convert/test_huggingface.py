import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import published
from tubelet.convert.convert import convert, read
from tubelet.convert.neutral import Options
from tubelet.types import TubeletError

HEADS = Options(heads=4, decoder_heads=2)


@pytest.fixture
def folder(tmp_path):
    """A classifier's folder, as written by us."""
    published.save(published.classifier(), tmp_path / "x.pth", args=published.SMALL)
    convert(tmp_path / "x.pth", tmp_path / "hf", "huggingface", HEADS)
    return tmp_path / "hf"


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 64), ("num_hidden_layers", 3), ("intermediate_size", 100), ("patch_size", 16),
        ("tubelet_size", 1),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_weights_is_refused(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(TubeletError, match=rf"config\.json says {key} {value}, and the weights have"):
        read(folder)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("num_channels", 4), ("qv_bias", False)])
def test_a_config_of_a_network_that_is_not_ours_is_refused(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(TubeletError, match=rf"config\.json says {key} {json.dumps(value)}, and only"):
        read(folder)


def test_a_config_of_another_pooling_than_the_weights_is_refused(folder):
    edit(folder / "config.json", use_mean_pooling=False)
    with pytest.raises(TubeletError, match="says use_mean_pooling false, and the weights have an fc_norm"):
        read(folder)


def test_a_config_of_another_model_or_a_damaged_one_is_refused(folder):
    edit(folder / "config.json", model_type="vit")
    with pytest.raises(TubeletError, match=r"no config\.json of a videomae model"):
        read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(TubeletError, match=r"config\.json is damaged"):
        read(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_frames", "x"), ("num_frames", None), ("num_frames", 0), ("num_frames", 4.5), ("image_size", []),
        ("image_size", [16, 24]), ("image_size", {"height": 16}), ("num_attention_heads", None),
        ("layer_norm_eps", "small"), ("id2label", {"a": "b"}), ("id2label", ["a", "b"]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named_with_its_key(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(TubeletError, match=rf"config\.json says {key} ") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_written_as_text_are_read(folder):
    before = read(folder)
    edit(folder / "config.json", num_frames="4", image_size="16", layer_norm_eps="1e-6", hidden_size="48")
    after = read(folder)
    assert after.clip == before.clip and after.notes == before.notes


@pytest.mark.parametrize("text", ['{"image_mean": [0.5, 0', '{"image_mean": 0.5}', '{"image_std": [1, 1]}', "[]"])
def test_a_damaged_processor_gets_one_line(folder, text):
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(TubeletError, match=r"preprocessor_config\.json"):
        read(folder)


def test_a_folder_that_transformers_does_not_read_is_compared_with_nothing(folder, tmp_path):
    pytest.importorskip("transformers")
    edit(folder / "config.json", hidden_size="48", num_frames="4")
    done = convert(folder, tmp_path / "ours", "tubelet")
    assert "does not read" in done.proof[1] and all("\n" not in line for line in done.proof)


def test_a_file_of_weights_is_read_with_the_config_beside_it(folder):
    assert read(folder / "model.safetensors").kind == "classifier"


def test_it_says_what_transformers_needs(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["use_mean_pooling"] is True and config["layer_norm_eps"] == 1e-6 and config["qv_bias"] is True
    assert config["num_frames"] == 4 and config["image_size"] == 16 and config["id2label"]["4"] == "4"
    assert any(name.endswith("attention.q_bias") for name in load_file(folder / "model.safetensors"))


def test_names_of_classes_come_from_the_config_or_a_file(folder, tmp_path):
    edit(folder / "config.json", id2label={str(n): f"class {n}" for n in range(5)})
    assert read(folder).classes == [f"class {n}" for n in range(5)]
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    assert read(folder, Options(classes=str(tmp_path / "names.txt"))).classes == list("abcde")
    (tmp_path / "names.json").write_text(json.dumps({"b": 1, "a": 0, "d": 3, "e": 4, "c": 2}))
    assert read(folder, Options(classes=str(tmp_path / "names.json"))).classes == list("abcde")
    for text in ('{"a": "b"}', "3", "null", '{"0": "a", "7": "b"}', "[1, 2, 3, 4, 5]", "[["):
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(TubeletError, match=r"names\.json (must be a JSON list of names|is not JSON)"):
            read(folder, Options(classes=str(tmp_path / "names.json")))
    with pytest.raises(TubeletError, match="is not a file"):
        read(folder, Options(classes=str(tmp_path)))
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(TubeletError, match="names 2 classes, and the head has 5"):
        read(folder, Options(classes=str(tmp_path / "few.txt")))


def test_two_norms_before_the_head_have_no_place(tmp_path):
    """Our own fine-tuning keeps the encoder's last norm unless it is told not to."""
    from tubelet import registry
    from tubelet.convert.neutral import Neutral, clip_of
    from tubelet.convert.tubelet import write

    backbone = registry.build("backbones", "vit", dim=16, depth=1, heads=1, patch=8)
    learner = registry.build("methods", "supervised", backbone=backbone, classes=2)
    write(Neutral(learner, {"name": "supervised"}, clip_of(4, 16, 1), ["a", "b"], "ours"), tmp_path / "ours")
    with pytest.raises(TubeletError, match=r"one norm before the head, .* has two"):
        convert(tmp_path / "ours", tmp_path / "hf", "huggingface", Options(allow_zero=True))


def test_values_that_are_not_finite_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"][0] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TubeletError, match=r"not finite in classifier\.weight"):
        read(folder)
