import pytest
import torch

from tubelet.nn.colour import to_lab, to_rgb


def test_there_and_back_is_the_same_colour():
    colours = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(to_rgb(to_lab(colours)), colours, atol=2e-4)


def test_known_colours():
    """White, black, and the primaries as they are tabulated for sRGB and D65."""
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    known = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]
    )
    assert torch.allclose(to_lab(colours), known, atol=0.05)


def test_it_is_that_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    colours = torch.rand(300, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(to_lab(colours), torch.from_numpy(color.rgb2lab(colours.numpy())).float(), atol=0.05)


def test_gradients_are_finite_where_roots_are_steep():
    lab = to_lab(torch.zeros(3, 3)).requires_grad_()
    to_rgb(lab).sum().backward()
    assert lab.grad is not None and lab.grad.isfinite().all()
    colours = torch.zeros(3, 3, requires_grad=True)
    to_lab(colours).sum().backward()
    assert colours.grad is not None and colours.grad.isfinite().all()
