"""Each silent error of other implementations that a user can carry in here, by number and name."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import published
from tubelet.convert.check import compare, set_epsilon
from tubelet.convert.convert import convert, read
from tubelet.convert.neutral import Options
from tubelet.types import TubeletError

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

HEADS = Options(heads=4, decoder_heads=2)
CLIP = torch.rand(1, 3, 4, 16, 16, generator=torch.Generator().manual_seed(2))


def folder(tmp_path, state: published.State, name: str = "hf", **config):
    """A Hugging Face folder of a published checkpoint, with a configuration that says what is given."""
    source = published.save(state, tmp_path / "source.pth", args=published.SMALL)
    convert(source, tmp_path / name, "huggingface", HEADS)
    edit(tmp_path / name / "config.json", **config)
    return tmp_path / name


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pixels(video: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in (published.MEAN, published.DEVIATION))
    return ((video - mean) / deviation).transpose(1, 2)


def test_trap_1_mean_pooling_in_the_config_takes_the_last_norm_from_pre_training(tmp_path):
    """`use_mean_pooling` true drops the encoder's norm. We write false; a folder without the norm is kept exactly."""
    state = published.pretraining()
    made = folder(tmp_path, state)
    assert json.loads((made / "config.json").read_text())["use_mean_pooling"] is False
    whole = transformers.VideoMAEForPreTraining.from_pretrained(made)
    assert whole.videomae.layernorm is not None
    trapped = transformers.VideoMAEConfig.from_pretrained(made, use_mean_pooling=True)
    model = transformers.VideoMAEForPreTraining(trapped)
    assert model.videomae.layernorm is None
    kept = {name: t for name, t in load_file(made / "model.safetensors").items() if "videomae.layernorm" not in name}
    save_file(kept, made / "model.safetensors")
    edit(made / "config.json", use_mean_pooling=True)
    neutral = read(made)
    assert neutral.backbone.config["last_norm"] is False
    assert any("encoder has no last norm" in note for note in neutral.notes)
    assert compare(neutral, made)[0].startswith("largest difference")


def test_trap_2_a_head_that_reads_the_first_token_is_seen_kept_and_corrected_on_demand(tmp_path):
    state = published.classifier(pooled=False)
    made = folder(tmp_path, state)
    assert json.loads((made / "config.json").read_text())["use_mean_pooling"] is False
    kept = read(made)
    assert any("reads the first token alone" in note and "--pooling mean" in note for note in kept.notes)
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(made).eval()
    set_epsilon(theirs, 1e-6)
    with torch.no_grad():
        assert torch.allclose(kept.module.logits(CLIP), theirs(pixels(CLIP)).logits, atol=1e-5)
        assert torch.allclose(kept.module.logits(CLIP)[0].double(), published.logits(CLIP[0], state, 4), atol=1e-5)
    corrected = read(made, Options(pooling="mean"))
    assert (corrected.options["pool"], corrected.options["head_norm"]) == ("mean", True)
    assert corrected.backbone.config["last_norm"] is False
    mean = {name.replace("norm.", "fc_norm.", 1) if name.startswith("norm.") else name: t for name, t in state.items()}
    with torch.no_grad():
        slow = published.logits(CLIP[0], mean, 4)
        assert torch.allclose(corrected.module.logits(CLIP)[0].double(), slow, atol=1e-5)
        assert not torch.allclose(corrected.module.logits(CLIP), kept.module.logits(CLIP), atol=1e-2)
    done = convert(made, tmp_path / "published.pth", "original", Options(pooling="mean"))
    assert any("trained on the first token" in note for note in done.notes)
    assert "fc_norm.weight" in torch.load(tmp_path / "published.pth", weights_only=True)["model"]


@pytest.mark.parametrize("make", [published.pretraining, published.classifier])
def test_trap_3_query_and_value_biases_that_were_dropped_are_refused(tmp_path, make):
    made = folder(tmp_path, make())
    tensors = load_file(made / "model.safetensors")
    biases = [name for name in tensors if name.endswith(("q_bias", "v_bias"))]
    assert biases and all(tensors[name].any() for name in biases)
    save_file(tensors | {name: torch.zeros_like(tensors[name]) for name in biases}, made / "model.safetensors")
    with pytest.raises(TubeletError, match=r"wholly zero in .*q_bias.*dropped them on the way.*--allow-zero"):
        read(made)
    assert not read(made, Options(allow_zero=True)).backbone.blocks[0].attention.query_bias.any()
    save_file({name: t for name, t in tensors.items() if name not in biases}, made / "model.safetensors")
    with pytest.raises(TubeletError, match=r"missing .*q_bias"):
        read(made)


def test_trap_3_transformers_here_reads_the_biases_that_we_write(tmp_path):
    model = transformers.VideoMAEForPreTraining.from_pretrained(folder(tmp_path, published.pretraining()))
    biases = [p for name, p in model.named_parameters() if name.endswith(("query.bias", "value.bias"))]
    assert len(biases) == 6 and all(bias.abs().sum() > 0 for bias in biases)


def test_trap_4_sixteen_heads_for_the_width_of_six_are_said(tmp_path):
    """The script that converts the published S file writes 16 heads: other answers, and no error."""
    state = published.pretraining(dim=384, depth=1, decoder_dim=192, patch=8)
    source = published.save(state, tmp_path / "s.pth", args=published.SMALL)
    convert(source, tmp_path / "hf", "huggingface")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["num_attention_heads"], config["decoder_num_attention_heads"]) == (6, 3)
    assert not read(tmp_path / "hf").notes
    edit(tmp_path / "hf" / "config.json", num_attention_heads=16)
    trapped = read(tmp_path / "hf")
    assert any("16 attention heads" in n and "published with 6" in n and "--heads 6" in n for n in trapped.notes)
    assert compare(trapped, tmp_path / "hf")[0].startswith("largest difference")  # it is read as it says
    right = read(tmp_path / "hf", Options(heads=6))
    with torch.no_grad():
        assert not torch.allclose(trapped.backbone(CLIP).tokens, right.backbone(CLIP).tokens, atol=1e-3)


def test_trap_5_the_processor_has_the_mean_of_imagenet_and_another_one_is_said(tmp_path):
    made = folder(tmp_path, published.classifier())
    processor = transformers.AutoImageProcessor.from_pretrained(made)
    assert [*processor.image_mean, *processor.image_std] == [*published.MEAN, *published.DEVIATION]
    assert list(transformers.VideoMAEImageProcessor().image_mean) == [0.5, 0.5, 0.5]
    video = (CLIP * 255).round().byte()
    frames = [frame.permute(1, 2, 0).numpy() for frame in video[0].transpose(0, 1)]
    prepared = processor(frames, return_tensors="pt").pixel_values
    assert torch.allclose(prepared, pixels(video.float() / 255), atol=1e-5)
    edit(made / "preprocessor_config.json", image_mean=[0.5] * 3, image_std=[0.5] * 3)
    neutral = read(made)
    assert any("image_mean [0.5, 0.5, 0.5]" in note and "--mean 0.5 --std 0.5" in note for note in neutral.notes)
    changed = read(made, Options(mean=0.5, std=0.5))
    theirs = transformers.VideoMAEForVideoClassification.from_pretrained(made).eval()
    set_epsilon(theirs, 1e-6)
    with torch.no_grad():
        answer = theirs(((CLIP - 0.5) / 0.5).transpose(1, 2)).logits
        assert torch.allclose(changed.module.logits(CLIP), answer, atol=1e-4)


@pytest.mark.parametrize(("width", "blocks", "count"), [(640, 3, "V1"), (512, 1, "V2")])
def test_trap_6_the_decoders_of_v1_and_v2_h_are_read_as_they_are(tmp_path, width, blocks, count):
    """640 wide and 512 wide, both of 8 heads: read from the tensors, and one does not load into the other."""
    state = published.pretraining(dim=1280, depth=1, decoder_dim=width, decoder_depth=blocks, patch=4)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    args = Namespace(num_frames=2, input_size=8)
    neutral = read(published.save(compiled, tmp_path / "h.pth", args=args))
    assert neutral.options["decoder_dim"] == width and neutral.options["decoder_depth"] == blocks
    assert neutral.decoder_heads == 8 and neutral.heads == 16
    other = published.pretraining(dim=1280, depth=1, decoder_dim=1152 - width, decoder_depth=blocks, patch=4)
    learner = read(published.save(other, tmp_path / "other.pth", args=args)).module
    with pytest.raises(RuntimeError, match="size mismatch"):
        learner.load_state_dict(neutral.module.state_dict())
    convert(tmp_path / "h.pth", tmp_path / "back.pth", "original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
