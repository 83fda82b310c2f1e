import math

import pytest
import torch

from tubelet.nn import targets
from tubelet.types import TubeletError


def test_the_difference_is_from_the_frame_before():
    video = torch.rand(2, 3, 5, 4, 4)
    change = targets.difference(video)
    assert (change[:, :, 0] == 0).all()
    for t in range(1, 5):
        torch.testing.assert_close(change[:, :, t], video[:, :, t] - video[:, :, t - 1])


def slow_hog(picture, cell, bins):
    """Pixel by pixel: votes of the gradients, cell by cell."""
    channels, height, width = picture.shape
    cells = torch.zeros(channels, height // cell, width // cell, bins, dtype=torch.float64)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                right, left = picture[c, y, min(x + 1, width - 1)], picture[c, y, max(x - 1, 0)]
                below, above = picture[c, min(y + 1, height - 1), x], picture[c, max(y - 1, 0), x]
                gx, gy = (right - left).item(), (below - above).item()
                angle = math.atan2(gy, gx) % math.pi
                cells[c, y // cell, x // cell, int(angle / math.pi * bins) % bins] += math.hypot(gx, gy)
    return cells / cells.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def test_histograms_of_gradients_against_their_slow_twin():
    picture = torch.rand(1, 2, 8, 12, generator=torch.Generator().manual_seed(1))
    fast = targets.hog(picture, 4)
    assert fast.shape == (1, 2, 2, 3, 9)
    torch.testing.assert_close(fast[0].double(), slow_hog(picture[0], 4, 9), atol=1e-5, rtol=1e-4)


def test_a_flat_picture_has_no_gradients_and_no_nan():
    assert (targets.hog(torch.full((1, 3, 8, 8), 0.4), 4) == 0).all()


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(TubeletError, match="channel, cube or none"):
        targets.statistics(torch.rand(1, 1, 3, 2, 4, 4), True)  # type: ignore[arg-type]
