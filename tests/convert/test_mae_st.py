from argparse import Namespace

import pytest
import torch

import published
from tubelet.convert.convert import read
from tubelet.convert.neutral import Options
from tubelet.types import TubeletError

HEADS = Options(heads=4)


def joint(state: published.State, frames: int) -> published.State:
    """The same positions as one table, the class token's first."""
    state = dict(state)
    spatial, temporal = state.pop("pos_embed_spatial"), state.pop("pos_embed_temporal")
    table = (spatial[:, None] + temporal[:, :, None]).flatten(1, 2)
    state["pos_embed"] = torch.cat([state.pop("pos_embed_class"), table], dim=1)
    assert table.shape[1] == frames * spatial.shape[1]
    return state


@pytest.mark.parametrize("wrapper", ["model", "model_state"])
def test_decoders_are_left_out_and_said(tmp_path, wrapper):
    state = published.space_time(frames=8)
    state |= {"decoder_embed.weight": torch.ones(3, 48), "mask_token": torch.ones(1, 1, 3)}
    state |= {"pred_head.projections.0.weight": torch.ones(3, 48)}
    neutral = read(published.save(state, tmp_path / "x.pth", wrapper), HEADS)
    assert neutral.taken_for == "mae_st or PySlowFast, encoder" and neutral.clip["frames"] == 16
    assert "decoder_, mask_token, pred_head.* left out" in neutral.notes


def test_one_joint_table_is_taken_apart_when_it_is_a_sum(tmp_path):
    state = published.space_time(frames=8)
    apart = read(published.save(state, tmp_path / "x.pth"), HEADS)
    together = read(published.save(joint(state, 8), tmp_path / "y.pth"), HEADS)
    clip = torch.rand(1, 3, 16, 16, 16)
    assert torch.allclose(apart.module(clip).tokens, together.module(clip).tokens, atol=1e-5)
    state = joint(state, 8)
    state["pos_embed"][0, 5] += 0.1
    with pytest.raises(TubeletError, match="is no sum of one in space and one in time"):
        read(published.save(state, tmp_path / "z.pth"), HEADS)


def test_a_joint_table_of_another_length_of_clip_is_refused(tmp_path):
    state = joint(published.space_time(frames=8), 8)
    args = Namespace(num_frames=6)
    with pytest.raises(TubeletError, match=r"32 positions \(pos_embed\), which are no clip of 6 frames"):
        read(published.save(state, tmp_path / "x.pth", args=args), HEADS)


def test_queries_keys_and_values_may_be_in_one_tensor(tmp_path):
    state = published.space_time(frames=8)
    apart = read(published.save(state, tmp_path / "x.pth"), HEADS).state()
    for n in range(2):
        for part in ("weight", "bias"):
            pieces = [state.pop(f"blocks.{n}.attn.{which}.{part}") for which in "qkv"]
            state[f"blocks.{n}.attn.qkv.{part}"] = torch.cat(pieces)
    together = read(published.save(state, tmp_path / "y.pth"), HEADS).state()
    assert all(torch.equal(apart[name], tensor) for name, tensor in together.items())


def test_pixels_normalised_in_another_way_are_said_so(tmp_path):
    state = published.space_time(frames=8)
    path = published.save(state, tmp_path / "x.pth")
    said = read(path, Options(heads=4, mean=0.5, std=0.5))
    clip = torch.rand(1, 3, 16, 16, 16)
    slow = published.encode_space_time(clip[0], state, 4, 0.5, 0.5)
    assert torch.allclose(said.module(clip).tokens[0].double(), published.norm(slow, state, "norm")[1:], atol=1e-4)
    with pytest.raises(TubeletError, match="--mean and --std go together"):
        read(path, Options(heads=4, mean=0.5))
