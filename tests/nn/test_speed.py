import torch

from tubelet import draws
from tubelet.nn.speed import at_speed


def keys(count):
    return torch.tensor([draws.key("speed", index) for index in range(count)])


def numbered(count, frames):
    """Clips whose pixels are the number of their frame, and the times of the frames."""
    numbers = torch.arange(frames, dtype=torch.float32)
    return numbers.view(1, 1, -1, 1, 1).expand(count, 3, -1, 2, 2), (numbers / 30).expand(count, -1)


def test_every_so_many_frames_from_every_start_that_fits():
    clip, times = numbered(900, 12)
    speed = torch.arange(900) % 3 + 1
    taken = at_speed(clip, times, speed, 4, keys(900), "start")[:, 0, :, 0, 0].long()  # B T
    for one in (1, 2, 3):
        mine = taken[speed == one]
        assert (mine.diff(dim=1) == one).all()
        assert mine[:, 0].unique().tolist() == list(range(12 - 3 * one))
        counts = mine[:, 0].bincount() / len(mine)
        assert (counts - 1 / (12 - 3 * one)).abs().max() < 0.06


def test_a_file_that_is_too_short_begins_again():
    clip, times = numbered(4, 12)
    times = times.clamp(max=times[0, 4])  # five frames, the last repeated by the loader
    taken = at_speed(clip, times, torch.tensor([1, 2, 3, 4]), 4, keys(4), "start")[:, 0, :, 0, 0]
    assert taken[0].diff().tolist() == [1, 1, 1]
    assert taken[1:].tolist() == [[0, 2, 4, 1], [0, 3, 1, 4], [0, 4, 3, 2]]
    one = torch.zeros_like(times)  # a picture
    assert not at_speed(clip, one, torch.tensor([1, 2, 3, 4]), 4, keys(4), "start").any()


def test_each_clip_is_drawn_by_itself():
    clip, times = numbered(6, 12)
    speed = torch.ones(6, dtype=torch.long)
    whole = at_speed(clip, times, speed, 4, keys(6), "start")
    assert torch.equal(at_speed(clip[4:], times[4:], speed[4:], 4, keys(6)[4:], "start"), whole[4:])
    assert not torch.equal(at_speed(clip, times, speed, 4, keys(6), "another"), whole)
