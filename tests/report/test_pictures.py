import av
import torch

from tubelet.report import pictures


def decoded(data: bytes, path):
    path.write_bytes(data)
    with av.open(str(path)) as container:
        (frame,) = container.decode(video=0)
        return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def test_png_is_exact_and_keeps_its_caption(tmp_path):
    picture = torch.randint(0, 256, (3, 17, 31), dtype=torch.uint8)
    data = pictures.png(picture, "a caption")
    assert b"tEXtDescription\0a caption" in data
    assert torch.equal(decoded(data, tmp_path / "a.png"), picture)
    assert torch.equal(decoded(pictures.png(picture), tmp_path / "b.png"), picture)


def test_jpeg_is_close(tmp_path):
    picture = (torch.arange(64).repeat(48, 1) * 3).to(torch.uint8).repeat(3, 1, 1)
    assert (decoded(pictures.jpeg(picture), tmp_path / "a.jpg").float() - picture.float()).abs().mean() < 3


def test_film_plays_at_its_rate_and_takes_odd_sizes(tmp_path):
    pictures.film(tmp_path / "new" / "a.mp4", torch.zeros(5, 3, 15, 33, dtype=torch.uint8), 7.5, "a title")
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (34, 16)
        assert float(stream.average_rate) == 7.5
        assert container.metadata["title"] == "a title"
        assert sum(1 for _ in container.decode(video=0)) == 5


def test_enlarge_repeats_whole_pixels():
    small = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    large = pictures.enlarge(small, 5)
    assert large.shape == (1, 6, 6)
    assert torch.equal(large[:, 1::3, 1::3], small)


def test_sheet_puts_frames_side_by_side(tmp_path):
    clips = torch.zeros(3, 2, 3, 16, 16, dtype=torch.uint8)
    clips[2, 1] = 255
    sheet = pictures.sheet(clips, columns=2)
    assert (sheet.rows, sheet.columns, sheet.frames, sheet.side) == (2, 2, 2, 16)
    picture = decoded(sheet.jpeg, tmp_path / "a.jpg")
    assert picture.shape == (3, 32, 64)
    assert picture[:, 18:30, 18:30].min() > 240  # row 1, the second frame of the clip in column 0
    assert picture[:, :14, :].max() < 16
    assert picture[:, 18:30, 34:].max() < 16
