"""Against slow twins of the published networks, and of what transformers lacks."""

from pathlib import Path

import pytest
import torch

import published
from tubelet.convert.convert import read
from tubelet.convert.neutral import Options
from tubelet.methods.videomae import VideoMAE
from tubelet.nn import masks

CLIP = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
KEYS = torch.tensor([11, 12])
HEADS = Options(heads=4, decoder_heads=2)


def close(ours: torch.Tensor, slow: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((ours.double() - slow).abs().max() <= tolerance * slow.abs().max())


def load(state: published.State, tmp_path: Path, options: Options = HEADS, **settings):
    from argparse import Namespace

    args = Namespace(num_frames=4, input_size=32, **settings)
    return read(published.save(state, tmp_path / "x.pth", args=args), options)


@pytest.mark.parametrize("cosine", [False, True])
def test_pre_training_of_v1_with_every_place_that_is_hidden(tmp_path, cosine):
    state = published.pretraining(cosine_heads=(4, 2) if cosine else (0, 0))
    learner = load(state, tmp_path).module
    learner.ratio = 0.75
    hidden = masks.draw("tube", KEYS, CLIP, learner.backbone.grid(4, 32, 32), 0.75)
    seen = learner.backbone(CLIP, hidden).tokens
    guess = learner.decode(learner.enter(seen), hidden, learner.backbone.grid(4, 32, 32))
    losses = []
    for clip, out, tokens, said in zip(CLIP, hidden, seen, guess, strict=True):
        assert close(tokens, published.encode(clip, state, "encoder.", 4, out))
        assert close(said, published.decode(clip, state, (4, 2), out, out))
        losses.append(published.loss(clip, state, (4, 2), out))
    loss = learner({"video": [CLIP], "key": KEYS}, "main").loss
    assert close(loss, torch.tensor(losses).double().mean())


def test_a_classifier_reads_the_mean_of_its_tokens_or_the_first(tmp_path):
    for pooled in (True, False):
        state = published.classifier(pooled=pooled)
        learner = load(state, tmp_path).module
        for clip, said in zip(CLIP, learner.logits(CLIP), strict=True):
            assert close(said, published.logits(clip, state, 4))


def test_dual_masking_of_v2_counts_hidden_places_that_are_asked_for(tmp_path):
    state = published.pretraining()
    learner = load(state, tmp_path).module
    learner.decoder_ratio, learner.ratio = 0.5, 0.75
    grid = learner.backbone.grid(4, 32, 32)
    hidden = masks.draw("tube", KEYS, CLIP, grid, 0.75)
    asked = learner.asked(hidden, KEYS, grid)
    assert asked.sum(dim=1).tolist() == [16, 16] and not torch.equal(asked, asked & hidden)
    slow = [published.loss(clip, state, (4, 2), out, want) for clip, out, want in zip(CLIP, hidden, asked, strict=True)]
    assert close(learner({"video": [CLIP], "key": KEYS}, "main").loss, torch.tensor(slow).double().mean())


RUNNING = [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
"""V2's running cell of half the places in four frames, from phase 0 on; 1 = left out by the decoder."""


def test_the_running_cell_of_v2_leaves_784_places_of_which_704_count():
    keys = torch.arange(64)
    left_out = masks.running(keys, (8, 14, 14), 0.5).view(64, 8, 14, 14)
    phases = set()
    for cell in left_out[:, :, :2, :2].int().tolist():
        phase = RUNNING.index(cell[0])
        assert cell == [RUNNING[(phase + frame) % 4] for frame in range(8)]
        phases.add(phase)
    assert phases == {0, 1, 2, 3}
    assert torch.equal(left_out, left_out[:, :, :2, :2].repeat(1, 1, 7, 7))
    hidden = masks.draw("tube", keys, torch.zeros(64, 3, 1, 1, 1), (8, 14, 14), 0.9)
    asked = ~left_out.flatten(1)
    assert set(asked.sum(dim=1).tolist()) == {784} and set(hidden.sum(dim=1).tolist()) == {1408}
    counted = (asked & hidden).sum(dim=1).double()
    assert set(counted.tolist()) == {704.0}


@pytest.mark.parametrize("class_token", [True, False])
def test_the_encoder_of_mae_st(tmp_path, class_token):
    state = published.space_time(frames=2, side=4, class_token=class_token)
    neutral = read(published.save(state, tmp_path / "x.pth", "model_state"), HEADS)
    tokens = neutral.module(CLIP).tokens
    for clip, ours in zip(CLIP, tokens, strict=True):
        slow = published.norm(published.encode_space_time(clip, state, 4), state, "norm")
        assert close(ours, slow[1:] if class_token else slow)


def test_the_classifier_of_mae_st_norms_the_mean_of_its_tokens_without_the_class_token(tmp_path):
    state = published.space_time(frames=2, side=4, classes=3)
    neutral = read(published.save(state, tmp_path / "x.pth"), HEADS)
    for clip, ours in zip(CLIP, neutral.module.logits(CLIP), strict=True):
        pooled = published.encode_space_time(clip, state, 4)[1:].mean(dim=0)
        assert close(ours, published.linear(published.norm(pooled[None], state, "norm"), state, "head")[0])


def test_joint_normalisation_of_mae_st(tmp_path):
    """Over all values of a cube, the epsilon inside the root, of normalised pixels; frames 0, 3 with `pred_t_dim` 2."""
    backbone = load(published.pretraining(), tmp_path).backbone
    for frames, chosen, length in (("seen", [0, 1, 2, 3], 2), ("one", [0, 3], 1)):
        learner = VideoMAE(backbone, normalise="cube", target_frames=frames)
        found = learner.target(CLIP, torch.ones(2, 32, dtype=torch.bool))
        pixels = (CLIP[:, :, chosen].double() - 0.45) / 0.225
        for sample in range(2):
            for place in range(32):
                f, r, c = place // 16, place // 4 % 4, place % 4
                cube = pixels[sample, :, f * length : (f + 1) * length, r * 8 : r * 8 + 8, c * 8 : c * 8 + 8]
                flat = cube.permute(1, 2, 3, 0).flatten()  # frame, row, column, channel
                mean = flat.sum() / len(flat)
                variance = (flat - mean).square().sum() / (len(flat) - 1)
                slow = (flat - mean) / (variance + 1e-6).sqrt()
                assert close(found[sample, place], slow)


@pytest.mark.parametrize("how", ["average", "central"])
@pytest.mark.parametrize("class_token", [True, False])
def test_an_image_model_says_of_a_still_clip_what_it_says_of_the_picture(tmp_path, how, class_token):
    state = published.image(side=4, class_token=class_token)
    options = Options(heads=4, inflate=how)
    neutral = read(published.save(state, tmp_path / "x.pth"), options)
    clip = CLIP[:1, :, :1].expand(-1, -1, 2, -1, -1)
    slow = published.encode_image(CLIP[0, :, 0], state, 4)
    made_for = neutral.backbone.config["made_for"]
    assert made_for == [16, 32, 32]
    assert close(neutral.module(clip).tokens[0], slow[1:] if class_token else slow)


def test_a_bias_of_the_keys_cancels_in_softmax_attention():
    draw = published.Draw(3)
    state: published.State = {}
    for which in "qkv":
        draw.linear(state, f"attn.{which}", 24, 24)
    draw.linear(state, "attn.proj", 24, 24)
    tokens = draw(9, 24, scale=1.0).double()
    before = published.attention(tokens, state, "attn", 3)
    state["attn.k.bias"] = draw(24, scale=5.0)
    assert torch.allclose(published.attention(tokens, state, "attn", 3), before, atol=1e-12)
    state["attn.q.bias"] = draw(24, scale=5.0)
    assert not torch.allclose(published.attention(tokens, state, "attn", 3), before, atol=1e-3)
