import time
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from tasks import colours
from tubelet.data.listing import Manifest
from tubelet.tasks.linear import PENALTIES, LinearProbe, path, slices
from tubelet.tasks.protocol import Protocol
from tubelet.types import TubeletError


def clouds(rows: int, dim: int, classes: int, noise: float = 3.0):
    """Classes as clouds around random centres, with collinear features of very different variance."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, dim, generator=generator)
    spread = centres[labels] + noise * torch.randn(rows, dim, generator=generator)
    mix = torch.randn(dim, dim, generator=generator) * torch.logspace(0, -3, dim)
    return (spread @ mix + 10).double(), labels


@pytest.mark.parametrize("penalty", [0.1, 1e-2, 1e-4])
@pytest.mark.parametrize(("rows", "dim"), [(400, 30), (40, 60)])
def test_finds_the_optimum_that_scikit_learn_finds(penalty, rows, dim):
    x, y = clouds(rows, dim, 4)
    probe = path(x, y, 4, [1.0, penalty])[-1]
    scaler = StandardScaler().fit(x.numpy())
    oracle = LogisticRegression(C=1 / (penalty * rows), tol=1e-8, max_iter=20_000).fit(scaler.transform(x.numpy()), y)

    def objective(logits, weights):
        return functional.cross_entropy(logits, y).item() + penalty / 2 * float((weights**2).sum())

    expected = objective(torch.from_numpy(oracle.decision_function(scaler.transform(x.numpy()))), oracle.coef_)
    assert objective(probe.logits(x), probe.weight) == pytest.approx(expected, rel=0.01, abs=1e-6)
    other, _ = clouds(200, dim, 4, noise=5.0)
    agree = probe.logits(other).argmax(1).numpy() == oracle.predict(scaler.transform(other.numpy()))
    assert agree.mean() > 0.95


def test_a_feature_that_never_varies_is_harmless():
    x, y = clouds(100, 5, 2)
    wider = torch.cat([x, torch.full((100, 1), 7.0)], dim=1)
    torch.testing.assert_close(path(wider, y, 2, [0.01])[0].logits(wider), path(x, y, 2, [0.01])[0].logits(x))


def test_a_fifth_is_kept_apart_and_with_few_rows_each_fifth_in_turn():
    parts = torch.arange(1000) % 5
    ((fit, kept),) = slices(parts)
    assert (len(fit), len(kept)) == (800, 200)
    assert sorted(torch.cat([kept for _, kept in slices(parts[:50])]).tolist()) == list(range(50))
    assert list(slices(torch.zeros(50))) == []


def test_the_whole_grid_is_quick():
    x, y = clouds(2000, 192, 10)
    started = time.process_time()
    penalty, tried = LinearProbe().choose(x, y, torch.arange(2000) % 5, 10)
    path(x, y, 10, [p for p in sorted(PENALTIES, reverse=True) if p >= penalty])
    assert time.process_time() - started < 8  # about 1 s on one core; room for a loaded machine
    assert len(tried) == len(PENALTIES)


def test_tells_colours_apart_and_says_what_it_chose(protocol, tmp_path):
    result = LinearProbe()(colours.backbone(), protocol, tmp_path)
    assert result["top1"] > 0.9
    assert result["penalty"] in PENALTIES
    assert result["tried"][f"{result['penalty']:g}"] == max(result["tried"].values())


def test_test_labels_have_no_part_in_the_choice(protocol, tmp_path):
    honest, cheated = (LinearProbe()(colours.backbone(), p, tmp_path) for p in (protocol, colours.poisoned(protocol)))
    assert honest["top1"] > 0.9
    assert cheated["top1"] < 0.1  # the very same predictions, judged by wrong labels
    assert (cheated["penalty"], cheated["tried"]) == (honest["penalty"], honest["tried"])


def test_unreadable_videos_are_left_out(broken_videos, tmp_path):
    protocol = Protocol.from_manifest(broken_videos, colours.CLIP)
    result = LinearProbe()(colours.backbone(), protocol, tmp_path)
    assert (result["videos"], result["unreadable"], result["train_videos"], result["unreadable_train"]) == (
        11,
        1,
        23,
        1,
    )


def test_one_group_only_leaves_nothing_to_choose_by(protocol, tmp_path):
    one = Manifest([replace(v, group="all") for v in protocol.train], protocol.classes)
    result = LinearProbe()(colours.backbone(), replace(protocol, train=one), tmp_path)
    assert result["tried"] == {}
    assert result["top1"] > 0.5


def test_penalties_that_make_no_sense():
    with pytest.raises(TubeletError, match="above 0"):
        LinearProbe(penalties=[0.0])
