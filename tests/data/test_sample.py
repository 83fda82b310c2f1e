import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet import draws
from tubelet.data import sample

SECONDS = st.floats(0.01, 60)
RATES = st.sampled_from([1.0, 12.5, 15.0, 23.976, 25.0, 29.97, 30.0, 50.0, 60.0])
FRAMES = st.integers(1, 40)
GAPS = st.sampled_from([1 / 60, 1 / 30, 2 / 30, 4 / 30, 0.04, 0.5])
SEEDS = st.integers(0, 2**32)


def shown(times, fps):
    """The numbers of the frames on display, and how far from their middles the times are."""
    return numpy.floor(times * fps).astype(int).tolist()


def all_samplers(duration_s, fps, frames, gap_s, seed):
    generator = numpy.random.default_rng(seed)
    return [
        sample.random_clip(duration_s, fps, frames, gap_s, generator),
        sample.dense(duration_s, fps, frames, gap_s, generator),
        sample.segments(duration_s, fps, frames, generator),
        sample.segments(duration_s, fps, frames),
        *sample.grid(duration_s, fps, frames, gap_s, 1),
        *sample.grid(duration_s, fps, frames, gap_s, 3),
    ]


@given(SECONDS, RATES, FRAMES, GAPS, SEEDS)
def test_times_rise_and_lie_within_the_video(duration_s, fps, frames, gap_s, seed):
    for times in all_samplers(duration_s, fps, frames, gap_s, seed):
        assert times.shape == (frames,) and times.dtype == numpy.float64
        assert (numpy.diff(times) >= 0).all()
        assert times[0] >= 0 and times[-1] <= duration_s


@given(st.integers(1, 500), RATES, FRAMES, GAPS, SEEDS)
def test_times_are_the_middles_of_frames(count, fps, frames, gap_s, seed):
    for times in all_samplers(count / fps, fps, frames, gap_s, seed):
        places = times * fps
        assert numpy.allclose(places - numpy.floor(places), 0.5, atol=1e-6)
        assert shown(times, fps)[-1] < count


@given(st.integers(1, 500), RATES, FRAMES, st.integers(1, 8), SEEDS)
def test_a_random_clip_is_videomae_s(count, fps, frames, stride, seed):
    """`off + i * stride` with `off` in 0..N - T * stride; in short files from 0, and then the last frame again."""
    chosen = shown(sample.random_clip(count / fps, fps, frames, stride / fps, numpy.random.default_rng(seed)), fps)
    room = max(0, count - frames * stride)
    assert 0 <= chosen[0] <= room
    assert chosen == [min(chosen[0] + i * stride, count - 1) for i in range(frames)]


def test_every_start_that_fits_is_drawn():
    generator = numpy.random.default_rng(0)
    starts = [shown(sample.random_clip(20 / 30, 30, 4, 4 / 30, generator), 30)[0] for _ in range(500)]
    counts = numpy.bincount(starts)
    assert len(counts) == 5 and counts.min() > 60


@given(st.integers(1, 500), FRAMES, st.integers(1, 8), SEEDS)
def test_dense_is_videomae_s(count, frames, stride, seed):
    chosen = shown(sample.dense(count / 25, 25, frames, stride / 25, numpy.random.default_rng(seed)), 25)
    window = frames * stride
    if count > window:
        end = chosen[0] + window
        exact = numpy.linspace(end - window, end, frames).clip(0, end - 1)
        # where a position is a whole number, rounding decides between it and the frame before
        assert all(math.floor(p - 1e-6) <= c <= math.floor(p + 1e-6) for p, c in zip(exact, chosen, strict=True))
        assert end <= count
    else:
        spread = numpy.linspace(0, count, max(1, count // stride))
        padded = numpy.concatenate([spread, numpy.full(frames - len(spread), count)])
        assert chosen == padded.clip(0, count - 1).astype(int).tolist()


@given(st.integers(1, 500), FRAMES, SEEDS)
def test_segments_take_one_frame_of_each_part(count, frames, seed):
    drawn = shown(sample.segments(count / 30, 30, frames, numpy.random.default_rng(seed)), 30)
    centres = shown(sample.segments(count / 30, 30, frames), 30)
    for k in range(frames):
        first, last = math.floor(k * count / frames), math.ceil((k + 1) * count / frames)
        assert first <= drawn[k] <= last
        assert centres[k] == min(math.floor((k + 0.5) * count / frames + 1e-6), count - 1)


@given(st.integers(1, 500), FRAMES, st.integers(1, 6))
def test_segments_of_a_test_are_the_published_ones(count, frames, clips):
    """SSv2: both sets of indices sorted and dealt out in turn (V1), or ``int(t * tick / K + tick * x)`` (V2)."""
    tick = count / frames
    taken = [
        shown(sample.segments(count / 30, 30, frames, at=at), 30) for at in sample.segment_shares(clips)
    ]

    def near(chosen, positions):  # where a position is a whole number, rounding decides between it and the one before
        return all(int(p + 1e-6) >= c >= int(p - 1e-6) for p, c in zip(positions, chosen, strict=True))

    if clips == 1:
        assert near(taken[0], [tick / 2 + tick * x for x in range(frames)])
        return
    for k, chosen in enumerate(taken):
        assert near(chosen, [k * tick / clips + tick * x for x in range(frames)])
    if clips == 2:
        both = sorted([tick / 2 + tick * x for x in range(frames)] + [tick * x for x in range(frames)])
        assert near(taken[0], both[0::2]) and near(taken[1], both[1::2])


@given(st.integers(1, 500), FRAMES, st.integers(1, 8), st.integers(1, 6))
def test_a_grid_spans_the_video(count, frames, stride, clips):
    grid = [shown(times, 30) for times in sample.grid(count / 30, 30, frames, stride / 30, clips)]
    room = max(0, count - frames * stride)
    starts = [chosen[0] for chosen in grid]
    if clips == 1:
        assert starts == [room // 2]
    else:
        assert starts[0] == 0 and starts[-1] == room
        gaps = numpy.diff(starts)
        assert gaps.max() - gaps.min() <= 1
    for chosen in grid:
        assert chosen == [min(chosen[0] + i * stride, count - 1) for i in range(frames)]


@pytest.mark.parametrize(("fps", "expected"), [(30, [0, 4, 8, 12]), (15, [0, 2, 4, 6]), (60, [0, 8, 16, 24])])
def test_a_clip_lasts_equally_long_at_any_frame_rate(fps, expected):
    gap_s = sample.step_s(4, 30.0, fps)
    assert shown(sample.grid(16 / 30, fps, 4, gap_s)[0], fps) == expected


def test_reference_rate_0_counts_the_files_own_frames():
    assert sample.step_s(4, 0, 50.0) == pytest.approx(0.08)


def test_a_gap_that_is_no_whole_number_of_frames_takes_what_is_on_display():
    gap_s = sample.step_s(1, 30.0, 25.0)  # 0.833 frames
    assert shown(sample.grid(1.0, 25.0, 6, gap_s, 2)[0], 25.0) == [0, 0, 1, 2, 3, 4]


def test_a_short_video_repeats_its_last_frame():
    generator = numpy.random.default_rng(0)
    assert shown(sample.random_clip(10 / 30, 30, 6, 4 / 30, generator), 30) == [0, 4, 8, 9, 9, 9]
    assert shown(sample.segments(2 / 30, 30, 4), 30) == [0, 0, 1, 1]


def test_near_clips_lie_near_each_other_the_more_the_likelier():
    """Against the distribution itself: of gaps up to half of the longest there are three quarters."""
    gaps, firsts = [], []
    for index in range(2000):
        streams = [draws.generator(0, index, view) for view in range(2)]
        one, other = sample.near_clips(10.0, 10.0, 4, 0.1, streams)
        assert len(one) == len(other) == 4 and min(one[0], other[0]) >= 0 and max(one[-1], other[-1]) <= 10
        gaps.append(round((other[0] - one[0]) * 10))
        firsts.append(one[0])
    sizes = numpy.abs(gaps)
    assert (sizes <= 48).mean() == pytest.approx(0.75, abs=0.03)  # 96 frames of room
    assert sizes.max() > 80 and numpy.mean(numpy.array(gaps) > 0) == pytest.approx(0.5, abs=0.05)
    assert numpy.mean(firsts) == pytest.approx(4.8, abs=0.2)


def test_near_clips_of_a_file_as_long_as_one_are_the_same_and_three_fit():
    streams = [draws.generator(1, view) for view in range(3)]
    short = sample.near_clips(0.4, 10.0, 4, 0.1, streams)
    assert all(numpy.array_equal(times, short[0]) for times in short)
    for index in range(300):
        three = sample.near_clips(3.0, 10.0, 4, 0.1, [draws.generator(2, index, view) for view in range(3)])
        assert all(times[0] >= 0 and times[-1] <= 3 for times in three)
        assert all(times[-1] - times[0] == pytest.approx(0.3) for times in three)  # none is cut short
