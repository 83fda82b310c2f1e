import av
import numpy
import pytest

from report.fake_run import CLIP, save_run
from tubelet.data.read import read
from tubelet.report.reconstruct import GAP, HEIGHT, STRIP, read_clip, reconstruct
from tubelet.types import TubeletError


def frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


@pytest.mark.parametrize("true_statistics", [True, False])
def test_writes_a_film_of_three_panels_and_a_strip(run, films, tmp_path, true_statistics):
    video = films.videos[0].path
    files = reconstruct(run, video, tmp_path / "out", true_statistics=true_statistics)
    assert ("true brightness" in files.told) is true_statistics
    assert ("true" in files.mp4.name) is true_statistics
    film = frames(files.mp4)
    assert len(film) == 4
    assert film[0].shape == (HEIGHT, 3 * HEIGHT + 2 * GAP, 3)
    original, masked, made = (film[0][:, k * (HEIGHT + GAP) : k * (HEIGHT + GAP) + HEIGHT] for k in range(3))
    changed = [abs(panel - original).mean(axis=(1, 2)) > 6 for panel in (masked, made)]
    assert changed[0].any()
    assert changed[1].any()
    assert (abs(film[0][:, HEIGHT + 1 : HEIGHT + GAP - 1] - 255) < 12).all()  # the white line between panels
    (strip,) = frames(files.png)
    assert strip.shape == (3 * STRIP + 2 * GAP, 4 * STRIP + 3 * GAP, 3)
    clip, _ = read_clip(video, CLIP)
    assert (strip[:STRIP:6, :STRIP:6] == clip[0].permute(1, 2, 0).numpy()).all()  # the original, to the bit
    hidden = (strip[STRIP + GAP : 2 * STRIP + GAP, :STRIP] == 128).all(axis=2)
    assert hidden.mean() == pytest.approx(0.5, abs=0.02)
    words = "true brightness" if true_statistics else "brightness and contrast of the nearest visible cube"
    assert words.encode() in files.png.read_bytes()


def test_ratio_and_seed_choose_what_is_hidden(run, films, tmp_path):
    video = films.videos[0].path
    masks = []
    for name, options in (("a", {"ratio": 0.75}), ("b", {}), ("c", {"seed": 1}), ("d", {"seed": 2})):
        (strip,) = frames(reconstruct(run, video, tmp_path / name, **options).png)
        masks.append((strip[STRIP + GAP : 2 * STRIP + GAP, :STRIP] == 128).all(axis=2))
    assert masks[0].mean() == pytest.approx(0.75, abs=0.02)
    assert len({mask.tobytes() for mask in masks[1:]}) > 1


def test_clip_starts_where_it_is_told(films):
    video = films.videos[0].path
    clip, gap_s = read_clip(video, CLIP, start_s=0.3)
    assert gap_s == pytest.approx(0.2)
    expected = read(video, numpy.array([0.35, 0.55, 0.75, 0.95]), short_side=16)
    assert (clip == expected[..., 4:20]).all()  # 24 x 16, its middle


def test_mistakes_have_one_line(run, films, tmp_path):
    video = films.videos[0].path
    with pytest.raises(TubeletError, match=r"start_s must lie in it"):
        reconstruct(run, video, tmp_path, start_s=9)
    with pytest.raises(TubeletError, match="mask ratio"):
        reconstruct(run, video, tmp_path, ratio=1.0)
    with pytest.raises(TubeletError, match=r"broken\.mp4"):
        reconstruct(run, films.videos[-1].path, tmp_path)
    other = tmp_path / "supervised"
    other.mkdir()
    save_run(other, "supervised", classes=2)
    with pytest.raises(TubeletError, match="'supervised', which cannot reconstruct"):
        reconstruct(other, video, tmp_path)
