import pytest
import torch

from tubelet import registry
from tubelet.backbones.vit import VisionTransformer, inflate
from tubelet.nn import masks
from tubelet.nn.patches import cubes, join
from tubelet.types import TubeletError


@pytest.mark.parametrize(
    ("size", "patch", "millions"),
    [("small", 16, 22.03), ("base", 16, 86.53), ("large", 16, 304.27), ("huge", 16, 632.12), ("giant", 14, 1012.17)],
)
def test_published_numbers_of_weights(size, patch, millions):
    """The published counts are of fine-tuned networks: a head of 400 classes instead of nothing."""
    with torch.device("meta"):
        backbone = VisionTransformer(size, patch=patch)
    head = backbone.dim * 400 + 400
    assert (sum(p.numel() for p in backbone.parameters()) + head) / 1e6 == pytest.approx(millions, abs=0.005)


def test_hidden_cubes_do_not_reach_the_tokens():
    torch.manual_seed(0)
    backbone = VisionTransformer("tiny", dim=32, depth=2, heads=2, patch=8).eval()
    video = torch.rand(2, 3, 4, 16, 16)
    hidden = masks.random(torch.tensor([1, 2]), (2, 2, 2), 0.5)
    tokens, grid = backbone(video, hidden)
    assert grid == (2, 2, 2)
    assert tokens.shape == (2, 4, 32)
    pieces = cubes(video, 2, 8)
    pieces[hidden] = torch.rand(8, 3, 2, 8, 8)
    other = join(pieces, grid)
    assert torch.equal(backbone(other, hidden).tokens, tokens)
    assert not torch.equal(backbone(other).tokens, backbone(video).tokens)


def test_with_nothing_hidden_the_order_is_that_of_the_cubes():
    torch.manual_seed(0)
    backbone = VisionTransformer("tiny", dim=32, depth=0, heads=2, patch=8)
    video = torch.rand(1, 3, 4, 16, 16)
    everything, _ = backbone(video)
    hidden = torch.tensor([[True, False, False, True, False, True, True, False]])
    assert torch.equal(backbone(video, hidden).tokens, everything[:, [1, 2, 4, 7]])


def test_pixels_are_normalised_inside():
    backbone = VisionTransformer("tiny", dim=32, depth=0, heads=2, patch=8)
    torch.nn.init.zeros_(backbone.embed.bias)
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 8, 8)
    place = backbone.norm(torch.tensor([[0.0, 1.0] * 16]))
    torch.testing.assert_close(backbone(grey).tokens[0], place)


@pytest.mark.parametrize("positions", ["flat", "separable"])
@pytest.mark.parametrize(("frames", "size"), [(8, 16), (16, 24), (2, 8)])
def test_any_clip_length_and_picture_size(positions, frames, size):
    backbone = VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=8, positions=positions)
    tokens, grid = backbone(torch.rand(1, 3, frames, size, size))
    assert grid == (frames // 2, size // 8, size // 8)
    assert tokens.shape == (1, grid[0] * grid[1] * grid[2], 32)
    assert tokens.isfinite().all()


def test_layers_hold_every_parameter_once():
    backbone = VisionTransformer("tiny", depth=3)
    layers = backbone.layers()
    assert len(layers) == 5
    flat = [id(p) for layer in layers for p in layer]
    assert sorted(flat) == sorted(id(p) for p in backbone.parameters())


def test_the_configuration_builds_it_again():
    backbone = VisionTransformer("small", depth=2, patch=8, drop_path=0.1)
    config = dict(backbone.config)
    again = registry.build("backbones", config.pop("name"), **config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in backbone.state_dict().items()}
    assert again.config == backbone.config


def test_heads_must_divide_the_width():
    with pytest.raises(TubeletError, match=r"backbone\.heads"):
        VisionTransformer("tiny", dim=30, heads=4)


SMALL = {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 8}


def slow_cosine_attention(attention, tokens):
    """Head by head and query by query (VideoMAE V2's option): cosines times a factor of at most 100."""
    batch, count, dim = tokens.shape
    width = dim // attention.heads
    zeros = torch.zeros_like(attention.query_bias)
    qkv = tokens @ attention.qkv.weight.T + torch.cat([attention.query_bias, zeros, attention.value_bias])
    out = torch.zeros(batch, count, dim)
    for b in range(batch):
        for h in range(attention.heads):
            q, k, v = (qkv[b, :, i * dim + h * width : i * dim + (h + 1) * width] for i in range(3))
            factor = min(attention.scale[h].exp().item(), 100.0)
            for n in range(count):
                scores = torch.stack([q[n] @ k[m] / (q[n].norm() * k[m].norm()) * factor for m in range(count)])
                out[b, n, h * width : (h + 1) * width] = scores.softmax(0) @ v
    return out @ attention.out.weight.T + attention.out.bias


def test_cosine_attention_against_its_slow_twin():
    torch.manual_seed(0)
    attention = VisionTransformer(**SMALL, attention="cosine").blocks[0].attention
    with torch.no_grad():
        attention.query_bias.normal_()
        attention.value_bias.normal_()
        attention.scale.copy_(torch.tensor([0.3, 7.0]))  # the second is past the most there may be
    tokens = torch.randn(2, 5, 32)
    torch.testing.assert_close(attention(tokens), slow_cosine_attention(attention, tokens), atol=1e-5, rtol=1e-4)


def test_a_class_token_takes_part_and_does_not_come_out():
    torch.manual_seed(0)
    backbone = VisionTransformer(**SMALL, class_token=True).eval()
    video = torch.rand(1, 3, 4, 16, 16)
    tokens, grid = backbone(video)
    assert tokens.shape == (1, 8, 32) and grid == (2, 2, 2)
    with torch.no_grad():
        backbone.class_token.add_(1.0)
    assert not torch.allclose(backbone(video).tokens, tokens)


def test_checkpointing_changes_memory_and_nothing_else():
    torch.manual_seed(0)
    plain = VisionTransformer(**SMALL, drop_path=0.5)
    frugal = VisionTransformer(**SMALL, drop_path=0.5, checkpointing=True)
    frugal.load_state_dict(plain.state_dict())
    video = torch.rand(3, 3, 4, 16, 16)
    for backbone in (plain, frugal):
        torch.manual_seed(7)
        backbone(video).tokens.square().mean().backward()
    for ours, theirs in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_less_is_kept_for_the_backward_pass_with_checkpointing():
    def kept(checkpointing: bool) -> int:
        backbone = VisionTransformer(**{**SMALL, "depth": 4}, checkpointing=checkpointing)
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backbone(torch.rand(2, 3, 8, 32, 32))
        return numbers

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.parametrize("how", ["average", "central"])
def test_an_inflated_image_network_sees_in_a_still_clip_what_it_saw_in_the_picture(how):
    torch.manual_seed(0)
    image = VisionTransformer(**{**SMALL, "depth": 0}, tubelet=1).eval()
    video = inflate(image, 4, how)
    picture = torch.rand(2, 3, 1, 16, 16)
    torch.testing.assert_close(video(picture.expand(-1, -1, 4, -1, -1)).tokens, image(picture).tokens)
    assert video.tubelet == 4 and inflate(video, 4) is video


def test_a_network_starts_from_another_that_is_fitted_to_it():
    torch.manual_seed(0)
    learned = {**SMALL, "positions": "learned"}
    source = VisionTransformer(**learned, made_for=(4, 16, 16))
    ours = VisionTransformer(**learned, made_for=(8, 32, 32), last_norm=False, drop_path=0.1)
    ours.start_from(source)
    assert torch.equal(ours.blocks[1].mlp.into.weight, source.blocks[1].mlp.into.weight)
    assert ours.place.spatial.shape == (16, 32) and ours.place.temporal.shape == (4, 32)
    corner = source.place.spatial.view(2, 2, 32)[0, 0]
    assert (ours.place.spatial.view(4, 4, 32)[0, 0] - corner).norm() < 0.5 * corner.norm()
    image = VisionTransformer(**SMALL, tubelet=1)
    video = VisionTransformer(**{**SMALL, "size": "small", "mlp": 4.0})  # the same numbers in other words
    video.start_from(image)
    torch.testing.assert_close(video.embed.weight.sum(dim=2), image.embed.weight[:, :, 0])


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"patch": 16}, r"backbone\.patch is 16 there and 8 here"),
        ({"tubelet": 4}, r"backbone\.tubelet is 4 there"),
        ({"last_norm": False}, "set backbone.last_norm false"),
        ({"dim": 64}, r"backbone\.dim is 64 there"),
    ],
)
def test_weights_that_cannot_be_fitted_are_refused(theirs, said):
    with pytest.raises(TubeletError, match=said):
        VisionTransformer(**SMALL).start_from(VisionTransformer(**{**SMALL, **theirs}))


def test_interpolated_positions_are_what_the_network_uses():
    torch.manual_seed(0)
    published = VisionTransformer(**SMALL, made_for=(4, 16, 16)).eval()
    anew = VisionTransformer(**SMALL).eval()
    anew.load_state_dict(published.state_dict())
    small, large = torch.rand(1, 3, 4, 16, 16), torch.rand(1, 3, 8, 32, 32)
    assert torch.equal(published(small).tokens, anew(small).tokens)
    assert not torch.allclose(published(large).tokens, anew(large).tokens)
