import csv

import pytest
import torch
from torch.nn import functional

from tasks import colours
from tubelet.tasks.features import features
from tubelet.tasks.knn import NearestNeighbours
from tubelet.tasks.protocol import Protocol
from tubelet.tasks.retrieval import Retrieval, auc
from tubelet.types import TubeletError


def test_auc_is_the_chance_of_being_larger():
    torch.manual_seed(0)
    positive, negative = torch.randint(0, 6, (30,)).float(), torch.randint(0, 5, (40,)).float()
    slow = sum((p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()) / (30 * 40)
    assert auc(positive, negative) == pytest.approx(slow)


@pytest.mark.parametrize("centre", [False, True])
def test_recall_against_a_slow_twin(protocol, tmp_path, centre):
    backbone = colours.backbone()
    result = Retrieval(ks=(5, 1), centre=centre)(backbone, protocol, tmp_path)
    train, test = (features(backbone, part, protocol) for part in (protocol.train, protocol.test))
    mean = train.values.mean(dim=0) if centre else 0
    hits, alike = {1: 0, 5: 0}, []
    for query, label in zip(test.values - mean, test.labels.tolist(), strict=True):
        cosine = [float(functional.cosine_similarity(query, one, dim=0)) for one in train.values - mean]
        alike += [one for row, one in enumerate(cosine) if int(train.labels[row]) == label]
        order = sorted(range(len(cosine)), key=lambda row: -cosine[row])
        for k in hits:
            hits[k] += any(int(train.labels[row]) == label for row in order[:k])
    assert [result["recall@1"], result["recall@5"]] == pytest.approx([hits[1] / 12, hits[5] / 12])
    assert result["numbers"] == ["recall@1", "recall@5", "map"] and result["videos"] == 12
    assert result["interval"][0] <= result["recall@1"] <= result["interval"][1]
    assert result["positive"] == pytest.approx(sum(alike) / len(alike), abs=1e-4)
    other = Retrieval(centre=not centre)(backbone, protocol, tmp_path)
    assert abs(result["positive"] - other["positive"]) > 0.05
    assert result["positive"] > result["negative"] and result["auc"] > 0.6  # colours are far apart


def test_the_nearest_is_that_of_one_neighbour(protocol, tmp_path):
    result = Retrieval(centre=False)(colours.backbone(), protocol, tmp_path / "a")
    nearest = NearestNeighbours(k=1)(colours.backbone(), protocol, tmp_path / "b")
    assert result["recall@1"] == nearest["top1"]
    rows = [list(csv.DictReader((tmp_path / name / "predictions.csv").open())) for name in "ab"]
    assert [row["nearest_label"] for row in rows[0]] == [row["prediction"] for row in rows[1]]


def test_what_cannot_be_read_is_neither_asked_nor_found(broken_videos, tmp_path):
    result = Retrieval()(colours.backbone(), Protocol.from_manifest(broken_videos, colours.CLIP), tmp_path)
    counts = [result[name] for name in ("videos", "unreadable", "train_videos", "unreadable_train")]
    assert counts == [11, 1, 23, 1]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 12


@pytest.mark.parametrize("ks", [(), (0, 1)])
def test_it_needs_something_to_look_at(ks):
    with pytest.raises(TubeletError, match=r"retrieval\.ks"):
        Retrieval(ks=ks)
