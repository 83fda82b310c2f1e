import math

import pytest
import torch

from methods.sliding import recovered, tiles
from oracles import learn, moving_squares, tiny_backbone
from tubelet.methods.random_walk import RandomWalk, there_and_back
from tubelet.nn.affinity import transition
from tubelet.types import TubeletError

SMALL = {
    "random_walk": {"learner": {"dim": 16}},
    "random_walk, patches": {"learner": {"dim": 16, "nodes": "patches", "side": 8}},
}


def slow_walks(forth, home, turn, start: int, k: int) -> list[float]:
    """The chances of a walker that turns round after k steps, place after place."""
    turning = [] if turn is None else [turn[k - 1]]
    steps = [*(forth[t] for t in range(k)), *turning, *(home[t] for t in reversed(range(k)))]
    here = [float(n == start) for n in range(len(forth[0]))]
    for step in steps:
        here = [sum(here[n] * float(step[n, m]) for n in range(len(here))) for m in range(len(here))]
    return here


@pytest.mark.parametrize("turning", [False, True])
def test_walks_equal_their_slow_twin(turning):
    generator = torch.Generator().manual_seed(0)
    forth, home, turn = (torch.rand(1, 3, 4, 4, generator=generator).softmax(-1) for _ in range(3))
    ends = there_and_back(forth, home, turn if turning else None)
    for k in (1, 2, 3):
        for start in range(4):
            expected = slow_walks(forth[0], home[0], turn[0] if turning else None, start, k)
            assert ends[0, k - 1, start].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_the_mean_cross_entropy_of_the_way_home():
    """Patches as nodes, as published: every node is its own home."""
    learner = RandomWalk(tiny_backbone(), nodes="patches", side=16, edge_dropout=0.0)
    batch = moving_squares(2, 0, frames=3).batch
    nodes, _, target = learner.patches(batch["video"][0])
    assert nodes.shape == (2, 3, 9, 128) and target.tolist() == [list(range(9))] * 2
    losses = []
    for clip in nodes.detach():
        steps = {(a, b): transition(clip[None, a], clip[None, b], 0.05)[0] for a, b in ((0, 1), (1, 2), (2, 1), (1, 0))}
        forth, home = [steps[0, 1], steps[1, 2]], [steps[1, 0], steps[2, 1]]
        for k in (1, 2):
            losses += [-math.log(slow_walks(forth, home, None, start, k)[start] + 1e-20) for start in range(9)]
    assert learner(batch, "main").loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_loss_of_tokens_is_that_of_walks_that_turn_round_into_the_other_windows():
    """Clips whose windows have more or fewer tokens in common weigh the same."""
    learner = RandomWalk(tiny_backbone(), edge_dropout=0.0)
    batch = moving_squares(6, 0, frames=3).batch
    there, back, target = (nodes.detach() for nodes in learner.tokens(batch["video"][0], batch["key"]))
    assert len({(clip >= 0).sum().item() for clip in target}) > 1
    of_clips, came_home = [], []
    for b in range(6):
        def step(of, to):
            return transition(of[None], to[None], learner.temperature)[0]

        forth = [step(there[b, t], there[b, t + 1]) for t in (0, 1)]
        turn = [step(there[b, t], back[b, t]) for t in (1, 2)]
        home = [step(back[b, t + 1], back[b, t]) for t in (0, 1)]
        losses, ends = [], []
        for start, place in enumerate(target[b].tolist()):
            if place >= 0:
                walks = [slow_walks(forth, home, turn, start, k) for k in (1, 2)]
                losses += [-math.log(walk[place] + 1e-20) for walk in walks]
                ends.append(max(range(len(walks[1])), key=walks[1].__getitem__) == place)
        of_clips.append(sum(losses) / len(losses))
        came_home.append(sum(ends) / len(ends))
    found = learner(batch, "main")
    assert found.loss.item() == pytest.approx(sum(of_clips) / 6, rel=1e-4)
    assert found.metrics["came_home"].item() == pytest.approx(sum(came_home) / 6)


def test_home_is_where_the_first_frame_shows_the_same(monkeypatch):
    learner = RandomWalk(tiny_backbone(), shift=2)
    monkeypatch.setattr(learner, "embedded", lambda pictures: torch.nn.functional.avg_pool2d(pictures, 8).flatten(2).mT)
    video = torch.rand(20, 3, 2, 40, 48, generator=torch.Generator().manual_seed(0))
    there, back, target = learner.tokens(video, torch.arange(20))
    assert there.shape == (20, 2, 3 * 4, 3) and len(target.unique()) == 1 + 12
    for b in range(20):
        for n in range(12):
            same = [m for m in range(12) if torch.allclose(there[b, 0, n], back[b, 0, m])]
            assert same == ([target[b, n].item()] if target[b, n] >= 0 else [])
    assert (target >= 0).any(dim=1).all()


def test_a_closed_step_is_drawn_from_the_key_and_only_in_training():
    learner = RandomWalk(tiny_backbone(), edge_dropout=0.5)
    nodes = torch.rand(2, 3, 9, 16, generator=torch.Generator().manual_seed(0))
    chances = learner.step(nodes, nodes, torch.tensor([1, 2]), "forth")
    assert 0.35 < (chances == 0).float().mean() < 0.65
    assert torch.equal(chances[1:], learner.step(nodes[1:], nodes[1:], torch.tensor([2]), "forth"))
    assert (learner.eval().step(nodes, nodes, torch.tensor([1, 2]), "forth") > 0).all()


def trained(**arguments) -> float:
    backbone = tiny_backbone()
    learn(RandomWalk(backbone, **arguments), lambda step: tiles(8, 1000 + step)[0], steps=80, lr=3e-3)
    return recovered(backbone)


def test_it_recovers_a_translation_that_an_untrained_network_does_not():
    """Untrained, tokens of the same place are the most alike."""
    assert recovered(tiny_backbone()) < 0.4
    assert trained() > 0.8


def test_without_windows_that_move_a_walker_comes_home_by_keeping_to_its_place():
    """The control: no place but the own has to be found."""
    assert trained(shift=0) < 0.4


def test_wrong_arguments_are_refused():
    with pytest.raises(TubeletError, match=r"set backbone\.background to keep"):
        RandomWalk(tiny_backbone(background="remove"))
    for name, value in (("edge_dropout", 1.0), ("temperature", 0.0), ("shift", -1)):
        with pytest.raises(TubeletError, match=f"learner.{name} must be"):
            RandomWalk(tiny_backbone(), **{name: value})
    with pytest.raises(TubeletError, match=r"multiple of backbone\.patch"):
        RandomWalk(tiny_backbone(), nodes="patches", side=12)
    batch = moving_squares(2, 0, frames=2).batch
    with pytest.raises(TubeletError, match="do not fit"):
        RandomWalk(tiny_backbone(), shift=2)(batch, "main")
    with pytest.raises(TubeletError, match=r"lower learner\.side"):
        RandomWalk(tiny_backbone(), nodes="patches", side=40)(batch, "main")
    with pytest.raises(TubeletError, match="two frames or more"):
        RandomWalk(tiny_backbone())(moving_squares(2, 0, frames=1).batch, "main")
