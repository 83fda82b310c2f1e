"""A forward pass in which nobody is heard and nothing is said teaches nothing, and processes stay together."""

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from oracles import tiny_backbone
from pairs import RATE, pairs, part
from processes import run_processes
from tubelet import dist, registry
from tubelet.learner import Learner
from tubelet.train.step import take_step
from tubelet.types import Batch

WORDS = {"text_dim": 16, "words": 64}
SOUND = {"audio_dim": 16, "audio_depth": 1, "audio_rate": RATE}
LEARNERS = {
    "avid": {"videos": 8, "negatives": 8, "dim": 8, "agreement": 2, **SOUND},
    "xdc": {"videos": 8, "clusters": 2, **SOUND},
    "mil_nce": {"dim": 8, **WORDS},
    "clip": {"dim": 8, "text_depth": 1, **WORDS},
    "video_text_audio": {"fine": 8, "coarse": 8, **WORDS, **SOUND},
}
learners = pytest.mark.parametrize("name", LEARNERS)


def make(name: str) -> Learner:
    torch.manual_seed(0)
    learner = registry.build("methods", name, backbone=tiny_backbone(dim=16), **LEARNERS[name])
    for buffer in ("seen", "heard") if name == "xdc" else ():
        learner.get_buffer(buffer).copy_(torch.arange(8) % 2)
    if name == "avid":
        learner.get_buffer("agreeing").copy_((torch.arange(8)[:, None] + torch.tensor([1, 2])) % 8)
    return learner


def without(batch: Batch, missing: Tensor) -> Batch:
    """With neither sound nor words where something is missing, B bool."""
    batch["audio_present"] = ~missing
    batch["text"] = [["" if gone else text for gone, text in zip(missing.tolist(), batch["text"][0], strict=True)]]
    return batch


@learners
def test_where_everything_is_missing_every_gradient_is_zero(name):
    learner = make(name)
    loss = learner(without(pairs(8, seed=0), torch.ones(8, dtype=torch.bool)), "main").loss
    assert loss == 0
    loss.backward()
    for key, parameter in learner.parameters_of("main"):
        assert parameter.grad is not None and not parameter.grad.any(), key


def step_in_two_pieces(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after a step of which the last piece, of both processes, has neither sound nor words."""
    torch.set_num_threads(1)
    dist.start()
    learner = make(name)
    before = {key: parameter.detach().clone() for key, parameter in learner.parameters_of("main")}
    batch = pairs(4, seed=dist.rank())
    batch["id"] += 4 * dist.rank()
    optimiser = torch.optim.SGD([p for _, p in learner.parameters_of("main")], lr=0.1)
    batch = without(batch, torch.tensor([False, False, True, True]))
    take_step(DistributedDataParallel(learner), learner, "main", optimiser, batch, 2, 0.0, "float32")
    dist.stop()
    return before, {key: parameter.detach() for key, parameter in learner.parameters_of("main")}


@learners
def test_processes_stay_together_where_the_last_piece_teaches_nothing(name):
    """A loss of None there would leave each process with gradients of its own."""
    (before, one), (_, other) = run_processes(step_in_two_pieces, 2, name)
    assert any(not torch.equal(before[key], one[key]) for key in one)
    assert all(torch.equal(one[key], other[key]) for key in one)


@learners
def test_their_loss_is_of_a_forward_pass_together(name):
    """The mean over those that are there: in smaller passes they weigh otherwise, and the run is warned of it."""
    learner, batch = make(name), without(pairs(8, seed=0), torch.tensor([True] * 3 + [False] * 5))
    in_pieces = sum(learner(part(batch, rows), "main").loss for rows in ([0, 1, 2, 3], [4, 5, 6, 7])) / 2
    assert (learner(batch, "main").loss - in_pieces).abs() > 1e-2
    assert learner.compares_clips
