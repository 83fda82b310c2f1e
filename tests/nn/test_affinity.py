import math

import pytest
import torch

from tubelet.nn import affinity
from tubelet.nn.affinity import copy, neighbours, transition


def slow_copy(values, queries, keys, temperature, allowed, top):
    """One query and key after the other."""
    found = torch.zeros(len(queries), values.shape[1])
    for n, query in enumerate(queries):
        places = [m for m in range(len(keys)) if allowed is None or allowed[n, m]]
        cosines = {m: float(query @ keys[m] / (query.norm() * keys[m].norm())) for m in places}
        kept = sorted(places, key=lambda m: -cosines[m])[:top]
        weights = {m: math.exp(cosines[m] / temperature) for m in kept}
        for m in kept:
            found[n] += weights[m] / sum(weights.values()) * values[m]
    return found


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 12, 5, generator=generator), torch.randn(2, 12, 5, generator=generator)


@pytest.mark.parametrize("top", [None, 1, 3, 100])
@pytest.mark.parametrize("near", [False, True])
def test_copying_equals_its_slow_twin(tokens, top, near, monkeypatch):
    queries, keys = tokens
    values = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(1))
    allowed = neighbours((3, 4), 1) if near else None
    monkeypatch.setattr(affinity, "BLOCK", 30)  # two queries at a time
    found = copy(values, queries, keys, 0.2, allowed, top)
    for b in range(2):
        expected = slow_copy(values[b], queries[b], keys[b], 0.2, allowed, top)
        torch.testing.assert_close(found[b], expected, atol=1e-5, rtol=1e-5)


def test_steps_are_chances_and_closed_ones_are_not_taken(tokens):
    dropped = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    dropped[0, 3] = True  # all ways are closed: then none is
    chances = transition(*tokens, 0.1, dropped=dropped)
    assert torch.allclose(chances.sum(-1), torch.ones(2, 12))
    closed = dropped.clone()
    closed[0, 3] = False
    assert (chances[closed] == 0).all() and (chances[~closed] > 0).all()
    assert torch.equal(chances[0, 3], transition(*tokens, 0.1)[0, 3])


def test_neighbours_are_so_many_rows_and_columns_away():
    near = neighbours((3, 4), 1)
    for n in range(12):
        for m in range(12):
            assert near[n, m] == (abs(n // 4 - m // 4) <= 1 and abs(n % 4 - m % 4) <= 1)
    assert neighbours((3, 4), 3).all()
