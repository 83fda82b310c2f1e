import pytest
import torch

from tubelet import checkpoint
from tubelet.backbones.vit import VisionTransformer
from tubelet.methods.videomae import VideoMAE, nearest_visible
from tubelet.nn import masks
from tubelet.types import TubeletError

SMALL = {"videomae": {"learner": {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1}}}


def make(normalise="channel", **options):
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
                        if normalise == "cube":
                            deviation = (cube.var() + 1e-6 * 0.225**2).sqrt()
                            cube = (cube - cube.mean()) / deviation
                        if normalise == "channel":
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


@pytest.mark.parametrize("normalise", ["channel", "cube", "none"])
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
    target = slow_target(video, hidden, 4, "channel")
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


def batch(frames=4, size=8, count=2):
    video = torch.rand(count, 3, frames, size, size, generator=torch.Generator().manual_seed(3))
    return {"video": [video], "key": torch.arange(count) * 5 + 1}


def make_on(options, **backbone):
    torch.manual_seed(0)
    vit = VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=4, **backbone)
    return VideoMAE(vit, **{"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1, **options})


EVERYTHING = [
    {"mask": "random"}, {"mask": "frame"}, {"mask": "block"}, {"mask": "running"}, {"mask": "motion"},
    {"decoder_ratio": 0.5}, {"decoder_ratio": 0.3}, {"target": "difference"}, {"target": "hog"},
    {"normalise": "cube"}, {"normalise": "none"}, {"loss": "l1"}, {"loss": "smooth_l1"},
    {"target_frames": "centre"}, {"target_frames": "one"}, {"target_frames": "centre", "decoder_ratio": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("options", EVERYTHING, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_every_setting_learns_and_every_weight_has_a_gradient(options):
    learner = make_on(options)
    loss = learner(batch(frames=8, size=16), "main").loss
    loss.backward()
    assert loss.isfinite()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("target_frames", ["denser", "double"])
def test_targets_between_the_frames_that_are_seen(target_frames):
    learner = make_on({"target_frames": target_frames, "normalise": "none"})
    given = batch(frames=16, size=8)
    loss = learner(given, "main").loss
    assert loss.isfinite() and learner.density == 2
    video = given["video"][0]
    hidden = masks.tube(given["key"], (4, 2, 2), 0.5)
    target = learner.target(video, hidden)  # B A P
    rows = []
    for b in range(2):
        for n in hidden[b].nonzero().flatten().tolist():
            t, y, x = n // 4, n // 2 % 2 * 4, n % 2 * 4
            first, count = (4 * t, 4) if target_frames == "double" else (4 + 2 * t, 2)
            rows.append(video[b, :, first : first + count, y : y + 4, x : x + 4].permute(1, 2, 3, 0).flatten())
    assert torch.equal(target.flatten(0, 1), torch.stack(rows))


def test_the_encoder_sees_every_second_frame_of_a_dense_clip():
    learner = make_on({"target_frames": "double"})
    given = batch(frames=16)
    seen = []
    learner.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learner(given, "main")
    assert torch.equal(seen[0], given["video"][0][:, :, ::2])


def test_the_centre_frame_is_asked_of_its_own_time():
    learner = make_on({"target_frames": "centre", "normalise": "none"})
    given = batch(frames=8)
    hidden = masks.tube(given["key"], (4, 2, 2), 0.5)
    asked = learner.asked(hidden, given["key"], (4, 2, 2))
    assert asked.view(2, 4, 4).any(dim=2).tolist() == [[False, False, True, False]] * 2
    target = learner.target(given["video"][0], asked).view(2, 2, 2, 4, 4, 3)
    torch.testing.assert_close(
        target.permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 8, 8), given["video"][0][:, :, 4], atol=0, rtol=0
    )


def test_one_frame_of_each_cube_is_that_of_mae_st():
    learner = make_on({"target_frames": "one", "normalise": "none"})
    video = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 3, 16, 4, 4)
    target = learner.target(video, torch.ones(1, 8, dtype=torch.bool))
    assert target[0, :, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 15]


def test_dual_masking_against_its_slow_twin():
    """The loss over cubes that are both decoded and hidden, divided by their number."""
    learner = make_on({"decoder_ratio": 0.5, "ratio": 0.75})
    given = batch(frames=8, size=16)
    grid = (4, 4, 4)
    hidden = masks.tube(given["key"], grid, 0.75)
    decoded = ~masks.running(given["key"], grid, 0.5, "decoder")
    guess = learner.decode(learner.enter(learner.backbone(given["video"][0], hidden).tokens), hidden, grid, decoded)
    everything = slow_target(given["video"][0], torch.ones_like(hidden), 4, "channel")
    total, count = 0.0, 0
    for b in range(2):
        for a, n in enumerate(decoded[b].nonzero().flatten().tolist()):
            if hidden[b, n]:
                total += ((guess[b, a] - everything[b, n]) ** 2).mean().item()
                count += 1
    assert learner(given, "main").loss.item() == pytest.approx(total / count, rel=1e-4)


def test_a_teacher_is_predicted_and_never_trained(tmp_path):
    torch.manual_seed(1)
    teacher = VisionTransformer("tiny", dim=48, depth=1, heads=2, patch=4, drop_path=0.5)
    checkpoint.save_backbone(tmp_path, teacher)
    learner = make_on({"target": "teacher", "teacher": str(tmp_path)}).train()
    given = batch()
    loss = learner(given, "main").loss
    loss.backward()
    assert not learner.teacher.network.training and torch.equal(learner(given, "main").loss, loss)
    assert all(p.grad is None for p in learner.teacher.parameters())
    hidden = masks.tube(given["key"], (2, 2, 2), 0.5)
    tokens = teacher.eval()(given["video"][0]).tokens
    expected = (tokens - tokens.mean(2, keepdim=True)) / (tokens.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(learner.target(given["video"][0], hidden), masks.masked(expected, hidden))


@pytest.mark.parametrize(
    ("options", "backbone", "said"),
    [
        ({"target": "teacher"}, {}, "needs learner.teacher"),
        ({"target": "hog", "target_frames": "centre"}, {}, "set learner.target_frames to seen"),
        ({"decoder_ratio": 1.0}, {}, "decoder_ratio must be in 0..1"),
        ({"mask": "block"}, {"background": "remove"}, "would show what is hidden"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, backbone, said):
    with pytest.raises(TubeletError, match=said):
        make_on(options, **backbone)


def test_only_pixels_of_the_frames_seen_make_a_picture():
    with pytest.raises(TubeletError, match="gives no picture"):
        make_on({"target": "hog"}).reconstruct(batch()["video"][0])


@pytest.mark.parametrize(
    ("size", "patch", "decoder", "millions"),
    [
        ("small", 16, (192, 4, 3), 24.03), ("base", 16, (384, 4, 6), 94.21), ("large", 16, (512, 12, 8), 343.00),
        ("huge", 16, (640, 12, 8), 692.49), ("large", 16, (512, 4, 8), 317.78), ("huge", 16, (512, 4, 8), 645.66),
        ("giant", 14, (512, 4, 8), 1026.31),
    ],
)  # fmt: skip
def test_published_numbers_of_weights_of_every_size_and_decoder(size, patch, decoder, millions):
    dim, depth, heads = decoder
    with torch.device("meta"):
        backbone = VisionTransformer(size, patch=patch)
        mlp = 48 / 11 if size == "giant" else 4.0  # V2 gives its decoder the encoder's
        learner = VideoMAE(backbone, decoder_dim=dim, decoder_depth=depth, decoder_heads=heads, decoder_mlp=mlp)
    assert sum(p.numel() for p in learner.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_an_encoder_and_a_decoder_of_running_cells_learn():
    given = batch(frames=8, size=16, count=16)
    assert make_on({"mask": "running", "ratio": 0.5, "decoder_ratio": 0.5})(given, "main").loss > 0.1


def test_the_centre_frame_is_no_target_where_it_may_be_seen():
    with pytest.raises(TubeletError, match="another mask"):
        make_on({"mask": "frame", "target_frames": "centre"})
