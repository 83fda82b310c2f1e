import pytest
import torch

from tubelet.backbones.vit import VisionTransformer
from tubelet.methods.videomae import VideoMAE, nearest_visible
from tubelet.nn import masks


def make(normalise=True, **options):
    torch.manual_seed(0)
    backbone = VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=4)
    return VideoMAE(backbone, ratio=0.5, decoder_dim=16, decoder_depth=1, normalise=normalise, **options)


def slow_target(video, hidden, patch, normalise):
    """Cube by cube, in the published order: frame in the cube, row, column, channel."""
    rows = []
    for b in range(video.shape[0]):
        cells = []
        index = 0
        for t in range(0, video.shape[2], 2):
            for y in range(0, video.shape[3], patch):
                for x in range(0, video.shape[4], patch):
                    if hidden[b, index]:
                        cube = video[b, :, t : t + 2, y : y + patch, x : x + patch].double()
                        if normalise:
                            for c in range(3):
                                values = cube[c].flatten()
                                deviation = ((values - values.mean()) ** 2).sum().div(len(values) - 1).sqrt()
                                cube[c] = (cube[c] - values.mean()) / (deviation + 1e-6)
                        cells.append([
                            cube[c, f, i, j].item()
                            for f in range(2) for i in range(patch) for j in range(patch) for c in range(3)
                        ])  # fmt: skip
                    index += 1
        rows.append(cells)
    return torch.tensor(rows)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_target_against_its_slow_twin(normalise):
    learner = make(normalise)
    video = torch.rand(2, 3, 4, 8, 12)
    hidden = masks.random(torch.tensor([5, 6]), (2, 2, 3), 0.5)
    fast = learner.target(video, hidden)
    torch.testing.assert_close(fast, slow_target(video, hidden, 4, normalise), atol=2e-5, rtol=1e-4)


def test_the_loss_is_the_mean_square_over_hidden_cubes_only():
    learner = make()
    video, keys = torch.rand(2, 3, 4, 8, 8), torch.tensor([1, 2])
    loss = learner({"video": [video], "key": keys}, "main").loss
    hidden = masks.tube(keys, (2, 2, 2), 0.5)
    seen = learner.enter(learner.backbone(video, hidden).tokens)
    guess = learner.decode(seen, hidden, (2, 2, 2))
    target = slow_target(video, hidden, 4, True)
    total = sum(
        (guess[b, m, p].item() - target[b, m, p].item()) ** 2
        for b in range(2) for m in range(guess.shape[1]) for p in range(guess.shape[2])
    )  # fmt: skip
    assert loss.item() == pytest.approx(total / guess.numel(), rel=1e-4)


def test_a_constant_cube_does_not_divide_by_zero():
    learner = make()
    loss = learner({"video": [torch.full((1, 3, 4, 8, 8), 0.3)], "key": torch.tensor([1])}, "main").loss
    assert loss.isfinite()


def test_published_number_of_weights():
    """VideoMAE-B with its decoder of 384 x 4: 94.21 M."""
    with torch.device("meta"):
        learner = VideoMAE(VisionTransformer("base"))
    assert sum(p.numel() for p in learner.parameters()) / 1e6 == pytest.approx(94.21, abs=0.005)


def test_reconstruction_keeps_what_is_visible_and_says_what_was_hidden():
    learner = make().eval()
    video = torch.rand(2, 3, 4, 8, 8)
    picture = learner.reconstruct(video, keys=torch.tensor([3, 4]))
    hidden = picture.hidden.view(2, 1, 2, 2, 2)
    hidden = hidden.repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4).expand_as(video)
    for shown in (picture.masked, picture.reconstructed):
        assert torch.equal(shown[~hidden], video[~hidden])
    assert (picture.masked[hidden] == 0.5).all()
    assert not torch.equal(picture.reconstructed[hidden], video[hidden])


def test_a_perfect_guess_with_true_statistics_gives_the_original_back(monkeypatch):
    learner = make().eval()
    video = torch.rand(2, 3, 4, 8, 8)
    hidden = masks.tube(torch.tensor([3, 4]), (2, 2, 2), 0.5)
    monkeypatch.setattr(learner, "decode", lambda *_: learner.target(video, hidden))
    torch.testing.assert_close(learner.reconstruct(video, hidden).reconstructed, video, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(learner.reconstruct(video, hidden, true_statistics=False).reconstructed, video, atol=1e-2)


def test_without_true_statistics_nothing_of_the_hidden_pixels_is_used():
    learner = make().eval()
    video = torch.rand(1, 3, 4, 8, 8)
    hidden = masks.tube(torch.tensor([3]), (2, 2, 2), 0.5)
    other = video.clone()
    shown = learner.reconstruct(video, hidden, true_statistics=False)
    other[learner.reconstruct(video, hidden).masked == 0.5] = 0.9
    again = learner.reconstruct(other, hidden, true_statistics=False)
    assert torch.equal(again.reconstructed, shown.reconstructed)


def test_the_nearest_visible_cube_is_of_the_same_frame_where_there_is_one():
    hidden = masks.random(torch.arange(20), (3, 4, 4), 0.6)
    nearest = nearest_visible(hidden, (3, 4, 4))
    assert not hidden.gather(1, nearest).any()
    frame = torch.arange(48) // 16
    visible_frames = (~hidden).view(20, 3, 16).any(dim=2)
    for b in range(20):
        for n in range(48):
            if visible_frames[b, frame[n]]:
                assert nearest[b, n] // 16 == frame[n]
    own = torch.arange(48).expand(20, -1)
    assert torch.equal(nearest[~hidden], own[~hidden])


def test_a_background_that_is_removed_is_neither_input_nor_target_and_is_owned_up_to():
    torch.manual_seed(0)
    backbone = VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=4, background="remove")
    learner = VideoMAE(backbone, ratio=0.5, decoder_dim=16, decoder_depth=1).eval()
    video, keys = torch.rand(1, 3, 4, 8, 8) * 0.5, torch.tensor([1])
    brighter = video + torch.rand(1, 3, 1, 8, 8) * 0.4
    loss = learner({"video": [video], "key": keys}, "main").loss
    torch.testing.assert_close(learner({"video": [brighter], "key": keys}, "main").loss, loss, atol=1e-4, rtol=1e-4)
    assert "background is that of the original" in learner.reconstruct(video, keys=keys).told
    assert "background" not in make().reconstruct(video, keys=keys).told
