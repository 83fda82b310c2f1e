import pytest
import torch

import published
from tubelet.convert.convert import read
from tubelet.convert.neutral import Options
from tubelet.types import TubeletError

HEADS = Options(heads=4)


def recogniser(**how) -> published.State:
    """The tensors of a recogniser of mmaction2, with its table of positions."""
    words = {"patch_embed.proj": "patch_embed.projection", "mlp.fc1": "mlp.layers.0.0", "mlp.fc2": "mlp.layers.1"}
    state = {}
    for name, tensor in published.classifier(**how).items():
        for ours, theirs in words.items():
            name = name.replace(ours, theirs)
        state[name.replace("head.", "cls_head.fc_cls.") if name.startswith("head.") else f"backbone.{name}"] = tensor
    state["backbone.pos_embed"] = published.sine_table(8 * 4, 48).float()[None]
    return state


def test_a_recogniser_answers_as_the_original(tmp_path):
    neutral = read(published.save(recogniser(), tmp_path / "x.pth", "state_dict", meta={"epoch": 3}), HEADS)
    assert neutral.taken_for == "mmaction2, classifier" and neutral.clip["size"] == 16
    original = read(published.save(published.classifier(), tmp_path / "y.pth"), HEADS)
    assert all(torch.equal(tensor, original.state()[name]) for name, tensor in neutral.state().items())


def test_a_detector_gives_its_encoder(tmp_path):
    state = {name: tensor for name, tensor in recogniser().items() if not name.startswith("cls_head.")}
    state |= {"roi_head.bbox_head.fc_cls.weight": torch.ones(3, 48), "backbone.norm.weight": torch.ones(48)}
    state |= {"backbone.norm.bias": torch.ones(48)}
    neutral = read(published.save(state, tmp_path / "x.pth", "state_dict"), HEADS)
    assert neutral.kind == "encoder" and "left out" in " ".join(neutral.notes)


def test_learnt_positions_are_refused(tmp_path):
    state = recogniser()
    state["backbone.pos_embed"] = state["backbone.pos_embed"] + 0.1
    with pytest.raises(TubeletError, match="has learned positions"):
        read(published.save(state, tmp_path / "x.pth", "state_dict"), HEADS)


@pytest.mark.parametrize("frames", [8, 32])
def test_a_table_of_another_length_of_clip_is_refused_and_not_read_as_another_size(tmp_path, frames):
    """32 frames of 224 x 224 have 3136 positions, which 16 of 320 x 320 nearly have."""
    state = recogniser()
    state["backbone.pos_embed"] = published.sine_table(frames // 2 * 14 * 14, 48).float()[None]
    with pytest.raises(TubeletError, match=rf"{frames * 98} positions .* no square clip of 16 frames"):
        read(published.save(state, tmp_path / "x.pth", "state_dict"), HEADS)


def test_a_missing_tensor_is_named(tmp_path):
    state = recogniser()
    del state["backbone.blocks.1.mlp.layers.1.weight"]
    with pytest.raises(TubeletError, match=r"missing blocks\.1\.mlp\.fc2\.weight"):
        read(published.save(state, tmp_path / "x.pth", "state_dict"), HEADS)
