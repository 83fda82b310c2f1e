import argparse
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import published
from tubelet import registry
from tubelet.convert.convert import convert, read
from tubelet.convert.load import Found
from tubelet.convert.neutral import Neutral, Options, clip_of, spread
from tubelet.convert.original import read as read_original
from tubelet.convert.original import rename
from tubelet.convert.tubelet import write
from tubelet.types import TubeletError

HEADS = Options(heads=4, decoder_heads=2)


def found(state, **more):
    return Found(Path("x.pth"), dict(state), **more)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3), width=st.integers(1, 3), depth=st.integers(1, 3), decoder_depth=st.integers(1, 2),
    patch=st.sampled_from([2, 4, 7]), tubelet=st.integers(1, 3), inner=st.integers(0, 90),
)  # fmt: skip
def test_every_size_is_read_from_the_tensors_and_written_back_equal(
    heads, width, depth, decoder_depth, patch, tubelet, inner
):
    dim = 4 * heads * width
    state = published.pretraining(dim, depth, 2 * dim, decoder_depth, patch, tubelet, dim + inner, 8 * dim)
    neutral = read_original(found(state), Options(heads=heads, decoder_heads=1))
    assert neutral.kind == "pretraining" and neutral.backbone.config["tubelet"] == tubelet
    back = spread(neutral, lambda name: rename("pretraining", name))
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_fine_tuned_file_is_read_and_written_back_equal(tmp_path, pooled):
    state = published.classifier(pooled=pooled)
    neutral = read(published.save(state, tmp_path / "x.pth"), HEADS)
    assert neutral.kind == "classifier" and neutral.classes == ["0", "1", "2", "3", "4"]
    assert neutral.backbone.config["last_norm"] is not pooled
    back = spread(neutral, lambda name: rename("classifier", name))
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_an_encoder_without_its_decoder_keeps_its_last_norm(tmp_path):
    state = {name: tensor for name, tensor in published.pretraining().items() if name.startswith("encoder.")}
    neutral = read(published.save(state, tmp_path / "x.pth"), HEADS)
    assert neutral.kind == "encoder" and neutral.backbone.config["last_norm"]


def test_the_clip_comes_from_the_settings_of_the_script(tmp_path):
    args = argparse.Namespace(num_frames=8, input_size=32, sampling_rate=2)
    neutral = read(published.save(published.pretraining(), tmp_path / "x.pth", args=args), HEADS)
    assert neutral.clip == {"frames": 8, "stride": 2, "reference_fps": 30.0, "size": 32}
    assert neutral.backbone.config["made_for"] == [8, 32, 32] and not neutral.notes
    neutral = read(published.save(published.pretraining(), tmp_path / "y.pth"), HEADS)
    assert neutral.clip["frames"] == 16 and "does not say what clips" in neutral.notes[0]


def test_heads_of_published_widths_are_known_and_others_are_asked_for(tmp_path):
    state = published.pretraining(dim=384, depth=1, decoder_dim=192)
    neutral = read(published.save(state, tmp_path / "s.pth"))
    assert neutral.backbone.blocks[0].attention.heads == 6 and neutral.options["decoder_heads"] == 3
    path = published.save(published.pretraining(), tmp_path / "x.pth")
    with pytest.raises(TubeletError, match=r"width of 48 .* give --heads"):
        read(path)
    with pytest.raises(TubeletError, match=r"width of 24 .* give --decoder-heads"):
        read(path, Options(heads=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.q_bias"), "missing blocks.1.attn.q_bias"),
        (lambda s: s.update({"blocks.0.gamma_1": torch.ones(48)}), "unexpected blocks.0.gamma_1"),
        (lambda s: s.update({"head.bias": torch.ones(3)}), r"head.bias is \(3,\), not \(5,\)"),
        (lambda s: s.update({"pos_embed": torch.ones(1, 8, 47)}), "pos_embed"),
    ],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(tmp_path, change, message):
    state = published.classifier()
    change(state)
    with pytest.raises(TubeletError, match=message):
        read(published.save(state, tmp_path / "x.pth"), HEADS)


def test_parts_that_the_published_network_has_not_are_refused(tmp_path):
    published.save(published.image(), tmp_path / "image.pth")
    convert(tmp_path / "image.pth", tmp_path / "ours", "tubelet", HEADS)
    with pytest.raises(TubeletError, match=r"no place for backbone.positions learned"):
        convert(tmp_path / "ours", tmp_path / "theirs.pth", "original")
    assert not (tmp_path / "theirs.pth").exists()


def ours(folder: Path, **options) -> Path:
    """A run's folder of a small VideoMAE with such options."""
    backbone = registry.build("backbones", "vit", dim=16, depth=1, heads=1, patch=8)
    options = {"decoder_depth": 1, "decoder_heads": 1, **options}
    learner = registry.build("methods", "videomae", backbone=backbone, **options)
    write(Neutral(learner, {"name": "videomae", **options}, clip_of(4, 16, 1), [], "ours"), folder)
    return folder


@pytest.mark.parametrize("to", ["original", "huggingface"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("target", "difference"), ("normalise", "cube")]
    + [("target_frames", frames) for frames in ("one", "centre", "denser", "double")],
)
def test_a_decoder_of_another_target_is_refused_by_its_option_and_its_encoder_goes(tmp_path, to, option, value):
    run, out = ours(tmp_path / "run", **{option: value}), tmp_path / "theirs"
    with pytest.raises(TubeletError, match=f"no place for a decoder of learner.{option} {value}: --encoder"):
        convert(run, out, to, Options(allow_zero=True))
    convert(run, out, to, Options(heads=1, allow_zero=True, encoder=True))
    assert out.exists()


@pytest.mark.parametrize("to", ["original", "huggingface"])
def test_dual_masking_is_of_training_and_left_out(tmp_path, to):
    done = convert(ours(tmp_path / "run", decoder_ratio=0.5), tmp_path / "theirs", to, Options(allow_zero=True))
    assert [note for note in done.notes if "learner.decoder_ratio 0.5 is left out" in note]


def test_cosine_attention_goes_both_ways(tmp_path):
    state = published.pretraining(cosine_heads=(4, 2))
    neutral = read(published.save(state, tmp_path / "x.pth"), Options(decoder_heads=2))
    assert neutral.backbone.config["attention"] == "cosine" and neutral.backbone.blocks[0].attention.heads == 4
    back = spread(neutral, lambda name: rename("pretraining", name))
    assert all(torch.equal(back[name], state[name]) and back[name].shape == state[name].shape for name in state)
    with pytest.raises(TubeletError, match="attention cosine"):
        convert(tmp_path / "x.pth", tmp_path / "hf", "huggingface", Options(decoder_heads=2))
