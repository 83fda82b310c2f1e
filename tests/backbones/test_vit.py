import pytest
import torch

from tubelet import registry
from tubelet.backbones.vit import VisionTransformer
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
