import pytest
import torch

import published
from tubelet.convert.convert import convert, read
from tubelet.convert.neutral import Options
from tubelet.types import TubeletError


def test_positions_are_those_of_the_picture_in_every_frame_and_go_on_to_a_run(tmp_path):
    state = published.image(side=4)
    convert(published.save(state, tmp_path / "x.pth"), tmp_path / "ours", "tubelet", Options(heads=4, tubelet=4))
    backbone = read(tmp_path / "ours").backbone
    assert backbone.config["made_for"] == [16, 32, 32] and backbone.config["tubelet"] == 4
    place = backbone.place((4, 4, 4), torch.device("cpu")).view(4, 16, 48)
    assert all(torch.equal(frame, state["pos_embed"][0, 1:]) for frame in place)
    assert torch.equal(backbone.class_token, (state["cls_token"] + state["pos_embed"][:, :1])[0, 0])


def test_heads_and_decoders_of_pictures_are_left_out_and_said(tmp_path):
    state = published.image()
    state |= {"head.weight": torch.ones(9, 48), "head.bias": torch.ones(9), "decoder_pred.weight": torch.ones(3, 3)}
    neutral = read(published.save(state, tmp_path / "x.pth"), Options(heads=4))
    assert neutral.kind == "encoder" and neutral.notes == ["decoder_, head.* left out"]


@pytest.mark.parametrize("name", ["blocks.0.ls1.gamma", "dist_token", "blocks.0.attn.q_norm.weight", "reg_token"])
def test_parts_of_other_image_models_are_named(tmp_path, name):
    state = published.image() | {name: torch.ones(48)}
    with pytest.raises(TubeletError, match=f"unexpected {name}"):
        read(published.save(state, tmp_path / "x.pth"), Options(heads=4))


def test_positions_that_make_no_square_are_refused(tmp_path):
    state = published.image() | {"pos_embed": torch.ones(1, 8, 48)}
    with pytest.raises(TubeletError, match="8 positions, which make no square picture"):
        read(published.save(state, tmp_path / "x.pth"), Options(heads=4))


def test_cubes_that_do_not_fill_a_clip_are_refused(tmp_path):
    with pytest.raises(TubeletError, match="--tubelet 3 must divide the 16 frames"):
        read(published.save(published.image(), tmp_path / "x.pth"), Options(heads=4, tubelet=3))


def test_a_network_without_biases_in_its_attention_has_zeros_there(tmp_path):
    state = {name: tensor for name, tensor in published.image().items() if not name.endswith("qkv.bias")}
    neutral = read(published.save(state, tmp_path / "x.pth"), Options(heads=4))
    assert not neutral.backbone.blocks[0].attention.query_bias.any()
