import math

import pytest
import torch
from torch import Tensor

from tubelet.metrics.representation import consistency, dead_share, effective_rank, spread


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_rank(features: Tensor) -> float:
    """RankMe (equation 1), with singular values as square roots of the eigenvalues of the matrix times itself."""
    values = torch.linalg.eigvalsh(features.double() @ features.double().T).clamp(min=0).sqrt().tolist()
    values = sorted(values, reverse=True)[: min(features.shape)]
    shares = [value / sum(values) + 1e-7 for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("shape", [(20, 7), (7, 20)])
def test_rank_is_that_of_its_slow_twin(shape):
    features = normal(*shape)
    assert effective_rank(features) == pytest.approx(slow_rank(features), rel=1e-5)
    centred = features - features.mean(dim=0)
    assert effective_rank(features, centre=True) == pytest.approx(slow_rank(centred), rel=1e-5)


def test_rank_counts_directions():
    assert effective_rank(torch.eye(9)) == pytest.approx(9, rel=1e-4)
    assert effective_rank(normal(30, 1) @ normal(1, 12)) == pytest.approx(1, abs=1e-3)
    three = torch.linalg.qr(normal(12, 3))[0]  # 12 3
    assert effective_rank(torch.eye(3).repeat(10, 1) @ three.T) == pytest.approx(3, rel=1e-3)


def test_vectors_that_all_agree_have_rank_one_unless_their_noise_is_looked_at():
    same = torch.ones(40, 16) + 1e-6 * normal(40, 16)
    assert effective_rank(same) == pytest.approx(1, abs=1e-3)
    assert effective_rank(same, centre=True) > 10
    assert effective_rank(torch.zeros(4, 3)) < 1.01  # nothing at all is no error


def test_spread_is_a_share_of_the_length():
    features = normal(50, 8) + 3
    columns = features.double().T.tolist()
    apart = sum((value - sum(column) / 50) ** 2 for column in columns for value in column)
    assert spread(features) == pytest.approx(math.sqrt(apart / sum(v * v for column in columns for v in column)))
    assert spread(torch.full((6, 5), 0.5)) == spread(torch.zeros(6, 5)) == 0
    assert spread(torch.cat([features, -features])) == pytest.approx(1)


def slow_dead(features: Tensor) -> float:
    columns = features.double().T.tolist()
    deviations = []
    for column in columns:
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)))
    size = math.sqrt(sum(value * value for column in columns for value in column) / features.numel())
    dead = [d <= 0.01 * max(deviations) or d <= 1e-5 * size for d in deviations]
    return sum(dead) / len(dead)


def test_dead_dimensions_are_counted_as_by_the_slow_twin():
    scales = torch.tensor([1.0, 0.5, 0.05, 0.005, 1e-4, 0.0, 0.0, 2.0])
    features = normal(50, 8) * scales + 3
    assert dead_share(features) == slow_dead(features) == 4 / 8


def test_vectors_that_agree_up_to_rounding_are_dead_in_every_dimension():
    assert dead_share(torch.full((6, 5), 0.1)) == 1
    assert dead_share(100 + 1e-4 * normal(6, 5)) == 1
    assert dead_share(normal(6, 5)) == 0


def slow_consistency(first: Tensor, second: Tensor) -> dict[str, float]:
    rows = torch.cat([first, second]).double()
    rows = [row - rows.mean(dim=0) for row in rows]
    count = len(first)

    def cosine(a: int, b: int) -> float:
        return float(rows[a] @ rows[b] / (rows[a].norm() * rows[b].norm()))

    same = [cosine(i, count + i) for i in range(count)]
    other = [cosine(i, count + j) for i in range(count) for j in range(count) if i != j]
    hits = 0
    for row in range(2 * count):
        best = max((other for other in range(2 * count) if other != row), key=lambda other: cosine(row, other))
        hits += best == (row + count) % (2 * count)
    return {
        "same": sum(same) / len(same), "other": sum(other) / len(other), "nearest": hits / (2 * count)
    }  # fmt: skip


def test_consistency_is_that_of_its_slow_twin():
    first = normal(9, 5)
    second = first + normal(9, 5, seed=1)
    found = consistency(first, second)
    assert found == pytest.approx(slow_consistency(first, second))
    assert 0 < found["nearest"] < 1 and found["same"] > found["other"]


def test_consistency_of_clips_that_are_the_same_and_of_clips_that_have_nothing_in_common():
    first = normal(30, 20) + 10  # a common mean does not make clips alike
    assert consistency(first, first) == pytest.approx({"same": 1, "other": -1 / 29, "nearest": 1}, abs=0.02)
    unrelated = consistency(first, normal(30, 20, seed=1) + 10)
    assert abs(unrelated["same"]) < 0.15 and unrelated["nearest"] < 0.2
