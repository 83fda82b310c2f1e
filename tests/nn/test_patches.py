import pytest
import torch
import torch.nn.functional as F

from tubelet.nn.patches import CubeEmbedding, cube_grid, cubes, join
from tubelet.types import TubeletError


def test_cubes_are_numbered_time_first_then_rows_then_columns():
    video = torch.rand(2, 3, 4, 8, 12)
    pieces = cubes(video, tubelet=2, patch=4)
    assert pieces.shape == (2, 2 * 2 * 3, 3, 2, 4, 4)
    for t in range(2):
        for row in range(2):
            for column in range(3):
                cut = video[:, :, t * 2 : t * 2 + 2, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
                assert torch.equal(pieces[:, t * 6 + row * 3 + column], cut)


def test_join_is_the_inverse_of_cubes():
    video = torch.rand(2, 3, 4, 8, 12)
    assert torch.equal(join(cubes(video, 2, 4), (2, 2, 3)), video)


def test_the_embedding_is_the_published_convolution():
    video = torch.rand(2, 3, 4, 8, 12)
    embedding = CubeEmbedding(dim=16, tubelet=2, patch=4)
    convolved = F.conv3d(video, embedding.weight, embedding.bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(cubes(video, 2, 4)), convolved)


def test_the_embedding_starts_like_that_convolution():
    torch.manual_seed(0)
    ours, theirs = CubeEmbedding(64, 2, 8), torch.nn.Conv3d(3, 64, (2, 8, 8))
    for name in ("weight", "bias"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape
        assert abs(a.std() - b.std()) < 0.1 * b.std()
        assert abs(a.abs().max() - b.abs().max()) < 0.1 * b.abs().max()


@pytest.mark.parametrize(
    ("frames", "height", "word"), [(15, 32, "data.frames"), (16, 30, "data.size to 32"), (16, 5, "data.size to 8")]
)
def test_cubes_that_do_not_divide_the_clip_are_refused(frames, height, word):
    with pytest.raises(TubeletError, match=word):
        cube_grid(frames, height, height, tubelet=2, patch=8)
