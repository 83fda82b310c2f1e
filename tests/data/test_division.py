from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tubelet.data.division import divide, few_labels
from tubelet.data.listing import Manifest, Video
from tubelet.types import TubeletError


def labelled(classes: dict[str, int], groups: int = 0) -> Manifest:
    names = [name for name, count in classes.items() for _ in range(count)]
    return Manifest(
        Video(Path(f"/v/{i}.mp4"), label=name, group=f"g{i % groups}" if groups else None)
        for i, name in enumerate(names)
    )


def test_few_labels():
    manifest = labelled({"a": 20, "b": 20, "c": 3})
    few, more = few_labels(manifest, 5, seed=0), few_labels(manifest, 10, seed=0)
    assert Counter(v.label for v in few) == {"a": 5, "b": 5, "c": 3}
    assert {v.path for v in few} < {v.path for v in more}
    assert few.classes == manifest.classes
    assert few_labels(manifest, 5, seed=1).videos != few.videos
    assert few_labels(manifest, 5, seed=0).videos == few.videos
    with pytest.raises(TubeletError, match="no labels"):
        few_labels(Manifest([Video(Path("/a.mp4"))]), 5, seed=0)
    with pytest.raises(TubeletError, match="1 or more"):
        few_labels(manifest, 0, seed=0)


def test_divide_by_class():
    manifest = labelled({"a": 50, "b": 10, "c": 2, "d": 1})
    rest, share = divide(manifest, 0.2, seed=3)
    assert Counter(v.label for v in share) == {"a": 10, "b": 2, "c": 1}
    assert sorted(str(v.path) for v in [*rest, *share]) == sorted(str(v.path) for v in manifest)
    assert divide(manifest, 0.2, seed=3)[1].videos == share.videos
    assert divide(manifest, 0.2, seed=4)[1].videos != share.videos


def test_divide_never_splits_a_group():
    manifest = labelled({"a": 60, "b": 60}, groups=8)
    rest, share = divide(manifest, 0.25, seed=0)
    assert not set(rest.groups) & set(share.groups)
    assert len(set(share.groups)) == 2
    assert {v.label for v in share} == {"a", "b"}


def test_divide_always_leaves_both_sides():
    rest, share = divide(labelled({"a": 4}, groups=2), 0.01, seed=0)
    assert rest and share
    with pytest.raises(TubeletError, match="one group only"):
        divide(labelled({"a": 4}, groups=1), 0.5, seed=0)
    with pytest.raises(TubeletError, match="between 0 and 1"):
        divide(labelled({"a": 4}), 1.0, seed=0)
