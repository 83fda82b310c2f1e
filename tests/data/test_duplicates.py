import numpy
import pytest

from tubelet.data import duplicates
from tubelet.data.duplicates import LEAST_CHANGE, NEAR_BITS, SHARE_OF_CHANGE, near, same

FRAMES = 8


def films(number: int, seed: int = 0) -> numpy.ndarray:
    """Hashes of films that have nothing in common: N K."""
    return numpy.random.default_rng(seed).integers(0, 2**64, (number, FRAMES), dtype=numpy.uint64)


def flipped(film: numpy.ndarray, bits: int, seed: int = 0) -> numpy.ndarray:
    """A film of which so many bits, over all frames, are others."""
    changed = numpy.unpackbits(film.view(numpy.uint8))
    changed[numpy.random.default_rng(seed).choice(len(changed), bits, replace=False)] ^= 1
    return numpy.packbits(changed).view(numpy.uint64)


def slow_twin(hashes, durations_s, bits=NEAR_BITS) -> list[list[int]]:
    """Every pair looked at, every bit counted."""

    def apart(a, b) -> int:
        return sum((int(x) ^ int(y)).bit_count() for x, y in zip(a, b, strict=True))

    def change(frames) -> float:
        pairs = [(x, y) for i, x in enumerate(frames) for y in frames[:i]]
        return sum((int(x) ^ int(y)).bit_count() for x, y in pairs) / len(pairs)

    groups = {row: {row} for row in range(len(hashes))}
    for a in range(len(hashes)):
        for b in range(a):
            least = min(change(hashes[a]), change(hashes[b]))
            if (
                abs(durations_s[a] - durations_s[b]) <= max(0.2, 0.03 * max(durations_s[a], durations_s[b]))
                and least >= LEAST_CHANGE
                and apart(hashes[a], hashes[b]) / FRAMES <= min(bits, SHARE_OF_CHANGE * least)
            ):
                joined = groups[a] | groups[b]
                for row in joined:
                    groups[row] = joined
    return sorted({tuple(sorted(group)) for group in groups.values() if len(group) > 1})


@pytest.mark.parametrize("seed", range(6))
def test_the_same_groups_as_looking_at_all_pairs(seed):
    draw = numpy.random.default_rng(seed)
    scenes = films(6, seed)
    scenes[1] = scenes[1, 0]  # a still picture
    scenes[2] = [flipped(scenes[2, :1], 3, k)[0] for k in range(FRAMES)]  # a camera before which little moves
    hashes = numpy.stack([
        flipped(scenes[draw.integers(6)], int(draw.integers(0, 40)), int(draw.integers(1 << 30))) for _ in range(80)
    ])  # fmt: skip
    durations_s = draw.choice([4.0, 4.1, 9.0], 80)
    found = near(hashes.tolist(), durations_s.tolist())
    assert found == [list(group) for group in slow_twin(hashes, durations_s)]
    assert found


def test_bits_that_may_differ_are_counted_over_all_frames():
    (film,) = films(1)
    most = int(NEAR_BITS * FRAMES)
    for bits, groups in ((0, 1), (1, 1), (most, 1), (most + 1, 0)):
        for seed in range(10):
            assert len(near([film.tolist(), flipped(film, bits, seed).tolist()], [5.0, 5.0])) == groups


def test_length_and_number_of_frames_must_agree():
    (film,) = films(1).tolist()
    assert near([film, film], [5.0, 5.1]) == [[0, 1]]
    assert near([film, film], [5.0, 6.0]) == []
    assert near([film, film[:-1]], [5.0, 5.0]) == []
    assert near([[], []], [5.0, 5.0]) == []


def test_a_camera_that_stands_still_makes_no_copies():
    scene = films(1)[0, 0]
    frames = [[flipped(scene[None], 2, 10 * film + k)[0] for k in range(FRAMES)] for film in range(20)]
    assert near(frames, [3.0] * 20) == []


def test_near_hashes_are_confirmed_by_pictures():
    (film,) = films(1)
    rows = [film.tolist(), flipped(film, 8).tolist(), flipped(film, 8, 1).tolist(), films(1, 7)[0].tolist()]
    asked = set()

    def confirm(a: int, b: int) -> bool:
        asked.add((min(a, b), max(a, b)))
        return {a, b} == {0, 2}

    assert near(rows, [5.0] * 4, confirm=confirm) == [[0, 2]]
    assert asked == {(0, 1), (0, 2), (1, 2)}


def test_changes_are_compared_and_nothing_else():
    draw = numpy.random.default_rng(0)
    background = draw.integers(40, 120, (16, 16))
    one, other = draw.integers(0, 40, (2, FRAMES, 16, 16))
    assert duplicates.correlation(background + one, 5 + 2 * (background + one)) == pytest.approx(1.0)
    assert abs(duplicates.correlation(background + one, background + other)) < 0.1
    assert duplicates.correlation(background[None], background[None]) == 0.0


def test_copies_of_copies_are_one_group():
    (film,) = films(1)
    chain = [film]
    for step in range(5):
        chain.append(flipped(chain[-1], 24, step))
    assert duplicates.distances(chain[0][None], chain[-1][None])[0] > NEAR_BITS * FRAMES
    assert near([c.tolist() for c in chain], [5.0] * 6) == [[0, 1, 2, 3, 4, 5]]


def test_many_videos_take_little_time():
    hashes = films(30_000)
    hashes[-1] = flipped(hashes[7], 30)
    assert near(hashes.tolist(), [10.0] * len(hashes)) == [[7, len(hashes) - 1]]


def test_same():
    assert same(["a", "b", None, "a", None, "b", "c"]) == [[0, 3], [1, 5]]
