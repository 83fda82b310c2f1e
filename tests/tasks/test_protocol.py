import csv
from pathlib import Path

import pytest
import torch

from tasks import colours
from tubelet.data.listing import Manifest, Video
from tubelet.tasks import protocol as module
from tubelet.tasks.protocol import Protocol, conclude, counted, folds, labels_of
from tubelet.types import TubeletError


def manifest(*rows: tuple[str | None, str | None, str | None]) -> Manifest:
    """Label, group and split of each row."""
    return Manifest([Video(Path(f"{i}.mp4"), label=a, group=b, split=c) for i, (a, b, c) in enumerate(rows)])


def words(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "warn", said.append)
    return said


def test_takes_train_and_test_else_val():
    rows = [("a", None, "train"), ("b", None, "train"), ("a", None, "val"), ("b", None, "test")]
    assert [v.path.name for v in Protocol.from_manifest(manifest(*rows), colours.CLIP).test] == ["3.mp4"]
    assert [v.path.name for v in Protocol.from_manifest(manifest(*rows[:3]), colours.CLIP).test] == ["2.mp4"]


def test_divides_by_group_where_there_is_no_split_and_says_so(monkeypatch):
    said = words(monkeypatch)
    rows = [("ab"[i % 2], f"g{i // 4}", None) for i in range(80)] + [(None, None, None)]
    first, again = (Protocol.from_manifest(manifest(*rows), colours.CLIP, seed=seed) for seed in (0, 1))
    assert not set(first.train.groups) & set(first.test.groups)
    assert (len(first.train), len(first.test)) == (64, 16)
    assert first.test.fingerprint == again.test.fingerprint  # every seed is judged on the same videos
    assert any("64 videos to learn from, 16 to judge on" in line for line in said)
    assert any("1 of 81 videos have no label" in line for line in said)


def test_few_labels_follow_the_seed():
    rows = [("ab"[i % 2], None, "train" if i < 40 else "test") for i in range(60)]
    drawn = [
        Protocol.from_manifest(manifest(*rows), colours.CLIP, labels_per_class=3, seed=seed).train for seed in (0, 0, 1)
    ]
    assert [sorted(d.labels) for d in drawn] == [[0, 0, 0, 1, 1, 1]] * 3
    assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], ["a"], "train split is empty"),
        (["a", "b"], [], "test split is empty"),
        (["a", "a"], ["a"], "only one class, 'a'"),
        (["a", "b"], ["a", "c"], "no training video has the class 'c'"),
        (["a", None], ["a"], "1 of 2 train videos have no label"),
        (["a", "b"], [None], "1 of 1 test videos have no label"),
    ],
)
def test_mistakes_are_said_early(train, test, message):
    parts = [
        Manifest([Video(Path(f"{name} {i}.mp4"), label=label) for i, label in enumerate(labels)])
        for name, labels in (("train", train), ("test", test))
    ]
    with pytest.raises(TubeletError, match=message) as caught:
        Protocol(parts[0], parts[1], colours.CLIP)
    assert "\n" not in str(caught.value)


def test_no_labels_at_all():
    with pytest.raises(TubeletError, match="no video has a label"):
        Protocol.from_manifest(manifest((None, None, None), (None, None, None)), colours.CLIP)


def test_a_group_on_both_sides_is_said(monkeypatch):
    said = words(monkeypatch)
    Protocol.from_manifest(manifest(("a", "g", "train"), ("b", "h", "train"), ("a", "g", "test")), colours.CLIP)
    assert any("1 groups are in train and in test, such as g" in line for line in said)


def test_labels_are_numbered_by_name_when_test_comes_from_another_file():
    train, test = manifest(("b", None, None), ("c", None, None)), manifest(("c", "x", None), ("b", "y", None))
    assert labels_of(test, ["a", "b", "c"]).tolist() == [2, 1]
    assert labels_of(train, train.classes).tolist() == [0, 1]


def test_folds_keep_groups_whole_and_labels_even():
    rows = [("abc"[i % 3], None, None) for i in range(60)]
    part = folds(manifest(*rows), 5, 0)
    labels = torch.tensor(manifest(*rows).labels)
    assert all((labels[part == k].bincount(minlength=3) == 4).all() for k in range(5))
    grouped = manifest(*[("ab"[(i // 6) % 2], f"g{i // 3}", None) for i in range(90)])
    part = folds(grouped, 5, 0)
    owner = {}
    assert all(owner.setdefault(g, k) == k for g, k in zip(grouped.groups, part.tolist(), strict=True))
    assert part.bincount().tolist() == [18] * 5
    assert not torch.equal(folds(grouped, 5, 1), part)


def test_conclude_counts_what_could_not_be_read_and_writes_the_rest(protocol, tmp_path):
    readable = torch.ones(12, dtype=torch.bool)
    readable[[1, 5]] = False
    right = torch.eye(3)[labels_of(protocol.test, protocol.classes)]
    result = conclude(right[readable], readable, protocol, tmp_path, started=0.0, train_readable=torch.ones(24).bool())
    assert (result["top1"], result["videos"], result["unreadable"], result["unreadable_train"]) == (1.0, 10, 2, 0)
    assert result["missing"] == [str(protocol.test.videos[row].path) for row in (1, 5)]
    assert counted(result) == "10 of 12" and counted({**result, "unreadable": 0}) == "10"
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["path", "label", "prediction", "probability", "id"]
    assert [int(line["id"]) for line in lines] == [i for i in range(12) if i not in (1, 5)]
    assert all(line["label"] == line["prediction"] and float(line["probability"]) == 1 for line in lines)
    assert lines[0]["path"] == str(protocol.test[0].path)
