import pytest
import torch

from report.fake_run import save_run
from tubelet.data.listing import Manifest
from tubelet.report.gather import apart, gather, nearest, project
from tubelet.types import TubeletError


def test_gathers_what_can_be_read(run, films):
    data = gather(run, films, films=2)
    assert len(data.names) == 6  # without the broken one
    assert data.labels == [0, 1, 0, 1, 0, -1]
    assert data.points.shape == (6, 2)
    assert data.thumbnails.rows * data.thumbnails.columns >= 6
    assert ["true" in film.told for film in data.films] == [True, True, False]
    for row in data.rows:
        groups = [films.videos[clip].group for clip in row]
        assert groups[0] is None or groups[0] not in groups[1:]
        assert row[0] not in row[1:]


def test_same_again_and_at_most_so_many(run, films):
    first, again = (gather(run, films, clips=4, films=0) for _ in range(2))
    assert 2 <= len(first.names) <= 4
    assert first.names == again.names
    assert (first.points == again.points).all()


def test_takes_the_test_split(run, films):
    import dataclasses

    splits = ["test", "test", "test", "train", "train", "train", "train"]
    rows = [dataclasses.replace(video, split=split) for video, split in zip(films.videos, splits, strict=True)]
    assert gather(run, Manifest(rows), films=0).names == ["0.mp4", "1.mp4", "2.mp4"]


def test_a_learner_that_cannot_reconstruct_says_so(tmp_path, films):
    save_run(tmp_path, "supervised", classes=2)
    data = gather(tmp_path, films)
    assert data.films == []
    assert "cannot reconstruct" in data.why_no_films


def test_nothing_readable(run, films):
    with pytest.raises(TubeletError, match="0 of 1 videos can be read"):
        gather(run, films.take([6]))


def test_nearest_is_sorted_and_passes_over_its_group():
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    assert nearest(vectors, [None] * 4, 2) == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert nearest(vectors, ["x", "x", None, "y"], 5)[0] == [2, 3]
    assert nearest(vectors, ["x"] * 4, 5) == [[], [], [], []]


def test_project_keeps_the_widest_directions():
    torch.manual_seed(0)
    vectors = torch.randn(9, 5) * torch.tensor([10.0, 3.0, 0.01, 0.01, 0.01])
    points, how = project(vectors)
    assert how == "PCA axis"
    centred = (vectors - vectors.mean(0)).numpy()
    assert abs(points[:, 0]) == pytest.approx(abs(centred[:, 0]), abs=0.5)
    assert project(torch.randn(3, 1))[0].shape == (3, 2)


def test_pictures_of_the_map_lie_apart():
    points = torch.rand(200, 2).numpy()
    chosen = apart(points, 0.2)
    assert 2 < len(chosen) <= 36
    assert all(abs(points[a] - points[b]).max() > 0.19 for a in chosen for b in chosen if a != b)
