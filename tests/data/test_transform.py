import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from tubelet.data import transform

SIDES = st.integers(4, 60)
SEEDS = st.integers(0, 2**32)


def random_resized_crop(clip, size, scale, ratio, draw):
    box = transform.random_resized_box(*clip.shape[-2:], scale, ratio, draw)
    return transform.fit(transform.cut(clip, box), size, size)


def multi_scale_crop(clip, size, draw):
    return transform.fit(transform.cut(clip, transform.multi_scale_box(*clip.shape[-2:], size, draw)), size, size)



def noise(frames, height, width, seed=0):
    """T C H W as the decoder hands it over: channels last in memory."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=numpy.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def every_crop(clip, size, seed):
    draw = numpy.random.default_rng(seed)
    return [
        random_resized_crop(clip, size, (0.3, 1.0), (0.75, 1.3333), draw),
        multi_scale_crop(clip, size, draw),
        transform.center_crop(clip, size),
        *transform.crops(clip, size, 3),
    ]


@settings(deadline=None)
@given(SIDES, SIDES, st.integers(1, 40), SEEDS)
def test_crops_give_squares_and_treat_all_frames_alike(height, width, size, seed):
    still = noise(1, height, width, seed).expand(3, -1, -1, -1)
    for clip in every_crop(still, size, seed):
        assert clip.shape == (3, 3, size, size) and clip.dtype == torch.uint8
        assert torch.equal(clip[0], clip[1]) and torch.equal(clip[0], clip[2])


def test_the_same_draws_give_the_same_crop():
    clip = noise(2, 30, 40)
    for one, other in zip(every_crop(clip, 16, 7), every_crop(clip, 16, 7), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(every_crop(clip, 16, 7)[0], every_crop(clip, 16, 8)[0])


def test_a_clip_that_fits_is_not_touched():
    clip = noise(2, 32, 32)
    draw = numpy.random.default_rng(0)
    for same in (
        random_resized_crop(clip, 32, (1.0, 1.0), (1.0, 1.0), draw),
        transform.center_crop(clip, 32),
        *transform.crops(clip, 32, 3),
        transform.resize(clip, 32),
    ):
        assert same.data_ptr() == clip.data_ptr() and torch.equal(same, clip)


@given(st.sampled_from([(20, 33), (33, 20)]), st.integers(1, 6))
def test_crops_without_resizing_are_slices_along_the_long_side(shape, count):
    clip = noise(2, *shape)
    squares = transform.crops(clip, 20, count)
    starts = [6] if count == 1 else [k * 13 // (count - 1) for k in range(count)]
    for square, start in zip(squares, starts, strict=True):
        part = slice(start, start + 20)
        slow = clip.numpy()[..., part] if shape == (20, 33) else clip.numpy()[..., part, :]
        assert numpy.array_equal(square.numpy(), slow)


@pytest.mark.parametrize("scale", [(0.25, 0.25), (0.5, 1.0)])
def test_random_resized_crop_takes_the_area_and_shape_it_says(scale):
    draw = numpy.random.default_rng(0)
    taken = [transform.random_resized_box(90, 120, scale, (0.75, 1.3333), draw) for _ in range(500)]
    top, left, height, width = numpy.array(taken).T
    shares = height * width / (90 * 120)
    assert scale[0] - 0.02 <= shares.min() and shares.max() <= scale[1] + 0.02
    assert (width / height).min() >= 0.73 and (width / height).max() <= 1.36
    assert top.min() >= 0 and (top + height).max() <= 90 and left.min() >= 0 and (left + width).max() <= 120
    assert len(set(left)) > 20 and len(set(top)) > 20


def test_random_resized_crop_of_a_strip_takes_the_middle():
    draw = numpy.random.default_rng(0)
    assert transform.random_resized_box(10, 200, (1.0, 1.0), (0.75, 1.25), draw) == (0, 94, 10, 12)
    assert transform.random_resized_box(200, 10, (1.0, 1.0), (0.75, 1.25), draw) == (93, 0, 13, 10)


def test_multi_scale_crop_has_ten_shapes_at_thirteen_places():
    draw = numpy.random.default_rng(0)
    boxes = [transform.multi_scale_box(240, 320, 224, draw) for _ in range(4000)]
    sides = [240, 210, 180, 158]
    shapes = {(h, w) for h in sides for w in sides if abs(sides.index(h) - sides.index(w)) <= 1}
    assert {box[2:4] for box in boxes} == shapes and len(shapes) == 10
    of_one_shape = [box for box in boxes if box[2:4] == (180, 180)]
    y, x = (240 - 180) // 4, (320 - 180) // 4
    on_the_rim_and_centre = {(row, column) for row in (0, 2, 4) for column in (0, 2, 4)}
    quarters = on_the_rim_and_centre | {(1, 1), (1, 3), (3, 1), (3, 3)}
    assert {box[:2] for box in of_one_shape} == {(row * y, column * x) for row, column in quarters}


def test_multi_scale_crop_near_the_size_does_not_resize():
    clip = noise(1, 66, 66)
    slices = [clip[..., top : top + 64, left : left + 64] for top in range(3) for left in range(3)]
    draw = numpy.random.default_rng(0)
    found = [multi_scale_crop(clip, 64, draw) for _ in range(200)]
    assert any(torch.equal(square, part) for square in found for part in slices)


@pytest.mark.parametrize(("height", "width"), [(30, 50), (50, 30), (21, 21)])
def test_resize_keeps_the_shape_and_agrees_with_floats(height, width):
    clip = noise(2, height, width)
    small = transform.resize(clip, 16)
    expected = (16, round(width * 16 / height)) if height <= width else (round(height * 16 / width), 16)
    assert tuple(small.shape[-2:]) == expected
    slow = interpolate(clip.float(), expected, mode="bilinear", antialias=True)
    assert (small.float() - slow).abs().max() <= 1.0


def test_flip_mirrors():
    clip = noise(2, 5, 7)
    assert numpy.array_equal(transform.flip(clip).numpy(), clip.numpy()[..., ::-1])
