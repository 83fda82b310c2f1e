import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet.methods.dense_prediction import ConvGRU, DensePrediction
from tubelet.types import TubeletError

SMALL = {
    "dense_prediction": {
        "learner": {"blocks": 4, "predicted": 2, "dropout": 0.0},
        # a channel that is negative everywhere stops at the ReLU: its gradient would be rounding errors, which differ
        "backbone": {"depth": 1, "positions": "learned", "made_for": (4, 16, 16)},
    }
}


def make(blocks: int = 4, predicted: int = 2, dropout: float = 0.0) -> DensePrediction:
    return DensePrediction(tiny_backbone(depth=1), blocks, predicted, dropout)


def squares(seed: int, count: int = 8):
    """Four blocks of four frames; the square goes on all the while."""
    return moving_squares(count, seed, frames=16, speed=(1.0, 1.6)).batch


def test_the_loss_against_its_slow_twin():
    """Each kind of negative by its definition: of another video, of another place, of another time."""
    learner = make().eval()
    batch = squares(0, count=3)
    output = learner(batch, "main")
    guess, truth = (part.double().tolist() for part in learner.predict(batch["video"][0]))
    videos, times, rows, columns = range(3), range(2), range(4), range(4)
    kinds = {"easy": 0, "spatial": 0, "temporal": 0}
    total, right, count = 0.0, 0, 0
    for b in videos:
        for p in times:
            for y in rows:
                for x in columns:
                    own, others = 0.0, []
                    for b2 in videos:
                        for p2 in times:
                            for y2 in rows:
                                for x2 in columns:
                                    product = sum(
                                        g * t for g, t in zip(guess[b][p][y][x], truth[b2][p2][y2][x2], strict=True)
                                    )
                                    if (b2, p2, y2, x2) == (b, p, y, x):
                                        own = product
                                        continue
                                    kinds["easy" if b2 != b else "spatial" if (y2, x2) != (y, x) else "temporal"] += 1
                                    others.append(product)
                    largest = max(own, *others)
                    total += largest - own + math.log(
                        math.exp(own - largest) + sum(math.exp(other - largest) for other in others)
                    )
                    right += own == largest
                    count += 1
    assert kinds == {"easy": 96 * 64, "spatial": 96 * 30, "temporal": 96 * 1}
    assert output.loss.item() == pytest.approx(total / count, rel=1e-6)
    assert output.metrics["accuracy"].item() == pytest.approx(right / count)


def test_the_recurrent_unit_against_its_slow_twin():
    torch.manual_seed(0)
    unit = ConvGRU(3).double()
    maps, state = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        for gate in (unit.reset, unit.update, unit.new):
            gate.bias.normal_()
        found = unit(maps, state)

    def gate(module, values: list[float], out: int) -> float:
        weight = module.weight[out, :, 0, 0].tolist()
        return module.bias[out].item() + sum(w * v for w, v in zip(weight, values, strict=True))

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    for b in range(2):
        for y in range(2):
            for x in range(2):
                new, old = maps[b, :, y, x].tolist(), state[b, :, y, x].tolist()
                reset = [sigmoid(gate(unit.reset, new + old, d)) for d in range(3)]
                for d in range(3):
                    update = sigmoid(gate(unit.update, new + old, d))
                    kept = [r * h for r, h in zip(reset, old, strict=True)]
                    candidate = math.tanh(gate(unit.new, new + kept, d))
                    expected = (1 - update) * old[d] + update * candidate
                    assert found[b, d, y, x].item() == pytest.approx(expected, rel=1e-9)


def test_blocks_are_encoded_each_by_itself_and_the_future_is_not_seen():
    learner = make().eval()
    clip = squares(0, count=2)["video"][0]
    guess, truth = learner.predict(clip)
    changed = clip.clone()
    changed[:, :, 12:] = torch.rand_like(clip[:, :, 12:])  # the last block
    again, other = learner.predict(changed)
    assert torch.equal(guess, again)
    torch.testing.assert_close(truth[:, 0], other[:, 0])
    assert not torch.allclose(truth[:, 1], other[:, 1])
    tokens = learner.backbone(clip[:, :, 8:12]).tokens.view(2, 2, 4, 4, 64).mean(dim=1)  # the first that is predicted
    torch.testing.assert_close(truth[:, 0], tokens)


def which_time(learner: DensePrediction, clip: torch.Tensor) -> float:
    """How often a guess is nearer to the truth of its own time than to that of the other one, at its place.

    Of places where the two times look different, if there are any.
    """
    with torch.no_grad():
        guess, truth = learner.predict(clip)  # B P h w D
    scores = torch.einsum("bphwd,bqhwd->bhwpq", guess, truth)
    own, other = scores.diagonal(dim1=-2, dim2=-1), scores.flip(-1).diagonal(dim1=-2, dim2=-1)  # B h w P
    won = (own > other).float() + 0.5 * (own == other).float()
    one, two = clip[:, :, 8:12].mean(dim=2), clip[:, :, 12:].mean(dim=2)  # B C H W
    differs = avg_pool2d((one - two).abs().mean(dim=1), 8) > 0.05  # B h w
    return won[differs if differs.any() else torch.ones_like(differs)].mean().item()


def test_it_foresees_where_a_square_goes_and_of_still_clips_not_when():
    """The oracle: the right one of 256 candidates (chance .004). The control: still clips are alike at all times."""
    learner = make()
    told = learn(learner, squares, 70, lr=2e-3)
    assert mean(told, "accuracy") > 0.1
    fresh = squares(10_000, count=64)
    assert which_time(learner, fresh["video"][0]) > 0.62
    assert which_time(learner, still(fresh)["video"][0]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predicted": 4}, "leave some of learner.blocks"),
        ({"predicted": 0}, "must be 1 or more"),
        ({"dropout": 1.0}, "learner.dropout must be in 0..1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(TubeletError, match=said):
        make(**options)
