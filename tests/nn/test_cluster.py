import math

import pytest
import torch

from processes import run_processes
from tubelet import dist
from tubelet.nn.cluster import encode_all, kmeans, sinkhorn, whitened


def slow_sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """The paper's algorithm in its own words: clusters are rows, clips are columns."""
    shares = [[math.exp(row[k] / epsilon) for row in scores] for k in range(len(scores[0]))]
    whole = sum(map(sum, shares))
    shares = [[share / whole for share in row] for row in shares]
    for _ in range(iterations):
        shares = [[share / sum(row) / len(shares) for share in row] for row in shares]
        sums = [sum(row[b] for row in shares) for b in range(len(scores))]
        shares = [[share / total / len(scores) for share, total in zip(row, sums, strict=True)] for row in shares]
    return [[row[b] * len(scores) for row in shares] for b in range(len(scores))]


@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_sinkhorn_is_the_papers(iterations):
    torch.manual_seed(0)
    scores = torch.randn(8, 4)
    found = sinkhorn(scores, 0.5, iterations)
    torch.testing.assert_close(found, torch.tensor(slow_sinkhorn(scores.tolist(), 0.5, iterations)))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(8))
    if iterations == 50:
        torch.testing.assert_close(found.sum(dim=0), torch.full((4,), 2.0))


def test_sinkhorn_survives_large_scores():
    assert sinkhorn(1000 * torch.randn(8, 4), 0.05).isfinite().all()


def part(scores: torch.Tensor) -> torch.Tensor:
    dist.start()
    found = sinkhorn(dist.own_part(scores))
    dist.stop()
    return found


def test_two_processes_share_their_clusters():
    torch.manual_seed(0)
    scores = torch.randn(6, 3)
    torch.testing.assert_close(torch.cat(run_processes(part, 2, scores)), sinkhorn(scores))


def test_earlier_clips_are_divided_up_with_those_of_the_batch():
    torch.manual_seed(0)
    scores = torch.randn(12, 4)
    torch.testing.assert_close(sinkhorn(scores[:8], 0.5, 3, scores[8:]), sinkhorn(scores, 0.5, 3)[:8])


def together(scores: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    dist.start()
    found = sinkhorn(dist.own_part(scores), earlier=earlier)
    dist.stop()
    return found


def test_two_processes_count_earlier_clips_once():
    torch.manual_seed(0)
    scores, earlier = torch.randn(6, 3), torch.randn(5, 3)
    found = torch.cat(run_processes(together, 2, scores, earlier))
    torch.testing.assert_close(found, sinkhorn(scores, earlier=earlier))


def passed(count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two batches of the first process and one of the second, of bytes that say which video they are."""
    dist.start()
    rows = torch.arange(count, dtype=torch.uint8).tensor_split(dist.world_size())[dist.rank()]
    batches = [{"video": [part], "readable": part != 3} for part in rows.split(2)]
    passes = []

    def encode(batch):
        assert not network.training
        passes.append(batch)
        return 255 * batch["video"][0][:, None]

    network = torch.nn.Linear(1, 1)
    vectors, readable = encode_all(batches, network, encode)
    assert network.training
    dist.stop()
    return vectors, readable, len(passes)


def test_all_processes_get_all_vectors_by_as_many_passes():
    for vectors, readable, passes in run_processes(passed, 2, 5):
        torch.testing.assert_close(vectors[:, 0], torch.arange(5.0))
        assert readable.tolist() == [True, True, True, False, True] and passes == 2


def test_whitened_points_are_uncorrelated_unit_vectors_along_the_widest_axes():
    torch.manual_seed(0)
    points = torch.randn(500, 6) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.1, 0.01, 0.0])) + 7
    found = whitened(points, 3)
    assert found.shape == (500, 3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(500))
    axes = torch.linalg.svd(points.double() - points.double().mean(dim=0), full_matrices=False)
    slow = torch.nn.functional.normalize(axes.U[:, :3], dim=1).float()
    torch.testing.assert_close(found @ found.T, slow @ slow.T, atol=1e-4, rtol=1e-3)
    assert whitened(points, 6).shape == (500, 5)  # along the last nothing varies


def test_kmeans_finds_what_is_there_and_is_a_fixed_point():
    torch.manual_seed(0)
    truth = torch.arange(5).repeat_interleave(40)
    points = torch.randn(200, 8) + 8 * torch.eye(8)[truth]
    centres, found = kmeans(points, 5, seed=0)
    assert all(len(found[truth == k].unique()) == 1 for k in range(5))
    assert len(found.unique()) == 5
    for k in range(5):
        torch.testing.assert_close(centres[k], points[found == k].mean(dim=0), atol=1e-4, rtol=1e-4)
    assert torch.equal(kmeans(points, 5, seed=0)[1], found)


def test_an_empty_cluster_gets_a_part_of_the_largest():
    points = torch.cat([torch.zeros(50, 2), torch.ones(1, 2)]) + 1e-3 * torch.randn(51, 2)
    _, found = kmeans(points, 6, seed=1)
    assert len(found.unique()) == 6
    assert kmeans(torch.ones(6, 2), 3, seed=0)[1].shape == (6,)  # nothing to tell apart: no error
