"""A step that is not finite changes nothing, on no process; one that is adds up alike however it is cut and shared."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from processes import run_processes
from tubelet import dist
from tubelet.learner import Learner
from tubelet.nn.memory import Ema
from tubelet.train.step import take_step, take_steps
from tubelet.types import Output

POISONS = ["nan", "infinite", "gradient"]


class Toy(Learner):
    """All kinds of state: a batch norm, queues that forward fills (in place, and with a new tensor), a teacher.

    A sample of label 1 poisons the batch: the loss and its gradient become "nan", or the loss "infinite" and its
    gradient stays finite, or the "gradient" becomes infinite and the loss stays finite.
    """

    def __init__(self, poison: str = "nan", counts: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.poison = poison
        self.norm = nn.BatchNorm1d(6) if counts else nn.Identity()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)
        self.zero = nn.Parameter(torch.zeros(1))
        self.teacher = Ema({"first": self.first}, 0.9)
        self.register_buffer("queue", torch.zeros(3, 6))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch, phase):
        (video,) = batch["video"]
        guess = self.last(self.first(self.norm(video)).tanh())
        if self.training and isinstance(self.norm, nn.BatchNorm1d):
            self.queue.copy_(video[:3].detach())
            self.seen = self.seen + len(video)
        loss = (guess[:, 0] - video[:, 0]).square().mean() + 0 * self.zero.sum()
        if (batch["label"] == 1).any():
            loss = {
                "nan": lambda: loss * math.nan,
                "infinite": lambda: loss + math.inf,
                "gradient": lambda: loss + self.zero.sqrt().sum(),
            }[self.poison]()
        return Output(loss, {"guess": guess.detach().mean()})


class Duel(Learner):
    """Two phases; the loss of the second goes through what the first trains."""

    phases = ("critic", "generator")

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.critic, self.generator = nn.Linear(6, 1), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6) if counts else nn.Identity()

    def parameters_of(self, phase):
        return list(self.get_submodule(phase).named_parameters(prefix=phase))

    def forward(self, batch, phase):
        (video,) = batch["video"]
        loss = self.critic(self.norm(self.generator(video))).square().mean()
        if phase == "generator" and (batch["label"] == 1).any():
            loss = loss * math.nan
        return Output(loss)


def make_batch(rows: range, poisoned: tuple[int, ...] = ()) -> dict:
    draw = torch.Generator().manual_seed(7)
    video = torch.randn(16, 6, generator=draw)[list(rows)]
    ids = torch.tensor(list(rows))
    return {"video": [video], "id": ids, "label": torch.tensor([int(row in poisoned) for row in rows])}


def make_optimiser(learner: Learner, phase: str = "main") -> torch.optim.AdamW:
    return torch.optim.AdamW([p for _, p in learner.parameters_of(phase)], lr=0.1, weight_decay=0.1)


def state_of(learner: Learner, *optimisers: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Copies of every tensor that a checkpoint would have, whole where it is sharded."""
    tensors = list(learner.state_dict().values())
    for optimiser in optimisers:
        tensors += [t for entry in optimiser.state_dict()["state"].values() for t in entry.values()]
    return [(t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for t in tensors]


def same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("poison", POISONS)
def test_a_flawed_step_changes_nothing_bit_for_bit(poison, pieces):
    """Fails without `_put_back` (batch norm, queue and seen move), without its `setattr` (seen), without the question
    after the loss ("infinite") or after the norm ("gradient"), and without `zero_grad` (gradients are left).

    With two pieces the poison is in the second, after a first that has left its gradient and moved the statistics.
    """
    learner = Toy(poison)
    optimiser = make_optimiser(learner)
    take_step(learner, learner, "main", optimiser, make_batch(range(8)), pieces, 1.0, "float32")
    before = state_of(learner, optimiser)
    data = make_batch(range(8), poisoned=(7,))
    stepped = take_step(learner, learner, "main", optimiser, data, pieces, 1.0, "float32", measure=True)
    assert stepped.flaw == ("gradient" if poison == "gradient" else "loss")
    assert math.isfinite(stepped.loss) == (poison == "gradient")
    assert math.isfinite(stepped.grad_norm) == (poison == "infinite")
    assert same(before, state_of(learner, optimiser))
    assert all(p.grad is None for p in learner.parameters())
    assert "update_ratio" not in stepped.metrics


def test_a_run_with_a_flawed_step_equals_the_run_without_it():
    """Fails when anything of a skipped step is left over for the next one, such as a gradient or the batch norm."""
    plain, poisoned = Toy(), Toy()
    for learner, rows in ((plain, (0, 1)), (poisoned, (0, 9, 1))):
        optimiser = make_optimiser(learner)
        for row in rows:
            data = make_batch(range(row, row + 4), poisoned=(9,))
            take_step(learner, learner, "main", optimiser, data, 1, 1.0, "float32")
    assert same(state_of(plain), state_of(poisoned))


def test_a_good_step_moves_what_it_should():
    """So that the tests above cannot pass by nothing ever moving."""
    learner = Toy()
    before, optimiser = copy.deepcopy(learner.state_dict()), make_optimiser(learner)
    stepped = take_step(learner, learner, "main", optimiser, make_batch(range(8)), 1, 0.0, "float32")
    assert stepped.flaw is None
    assert stepped.own_loss == stepped.loss
    moved = {name.partition(".")[0] for name, t in learner.state_dict().items() if not torch.equal(before[name], t)}
    assert moved == {"norm", "first", "last", "queue", "seen"}


def test_a_flaw_of_one_phase_leaves_the_other_as_it_is():
    """Fails when the critic is not frozen (it is reached by a gradient) and thawed around the generator's step."""
    learner = Duel()
    optimisers = {phase: make_optimiser(learner, phase) for phase in learner.phases}
    data = make_batch(range(4), poisoned=(0,))
    assert take_step(learner, learner, "critic", optimisers["critic"], data, 1, 0.0, "float32").flaw is None
    before, reached = state_of(learner, *optimisers.values()), []
    learner.critic.weight.register_hook(reached.append)
    assert take_step(learner, learner, "generator", optimisers["generator"], data, 1, 0.0, "float32").flaw == "loss"
    assert same(before, state_of(learner, *optimisers.values()))
    assert all(p.requires_grad and p.grad is None for p in learner.parameters())
    assert not reached


@pytest.mark.parametrize("first", [True, False])
def test_a_flaw_of_a_later_phase_undoes_the_earlier_ones(first):
    """A step is taken by all phases or by none: critic, its optimiser's moments and the batch norm that it moved.

    Fails without the copies of `take_steps`; at the very first step there are no moments to go back to.
    """
    learner = Duel(counts=True)
    optimisers = {phase: make_optimiser(learner, phase) for phase in learner.phases}
    if not first:
        taken = take_steps(learner, learner, optimisers, make_batch(range(8)), 2, 1.0, "float32")
        assert list(taken) == ["critic", "generator"] and not any(stepped.flaw for stepped in taken.values())
    before = state_of(learner, *optimisers.values())
    taken = take_steps(learner, learner, optimisers, make_batch(range(8), poisoned=(7,)), 2, 1.0, "float32")
    assert [stepped.flaw for stepped in taken.values()] == [None, "loss"]
    assert same(before, state_of(learner, *optimisers.values()))
    assert bool(optimisers["critic"].state) != first
    assert all(p.requires_grad and p.grad is None for p in learner.parameters())


def test_a_run_of_two_phases_with_a_flawed_step_equals_the_run_without_it():
    """Fails when anything of the critic's undone step is left over for its next one."""
    plain, poisoned = Duel(counts=True), Duel(counts=True)
    for learner, rows in ((plain, (0, 1)), (poisoned, (9, 0, 9, 1))):
        optimisers = {phase: make_optimiser(learner, phase) for phase in learner.phases}
        for row in rows:
            data = make_batch(range(row, row + 4), poisoned=(9,))
            take_steps(learner, learner, optimisers, data, 1, 1.0, "float32")
    assert same(state_of(plain), state_of(poisoned))


def test_a_flaw_of_an_earlier_phase_leaves_the_later_ones_untried():
    learner = Duel()
    optimisers = {phase: make_optimiser(learner, phase) for phase in reversed(learner.phases)}
    before = state_of(learner, *optimisers.values())
    taken = take_steps(learner, learner, optimisers, make_batch(range(4), poisoned=(0,)), 1, 0.0, "float32")
    assert [(phase, stepped.flaw) for phase, stepped in taken.items()] == [("generator", "loss")]
    assert same(before, state_of(learner, *optimisers.values()))


def test_only_the_norm_before_clipping_is_judged_and_told():
    """Fails when the clipped norm is told."""
    norms = [
        take_step(learner, learner, "main", make_optimiser(learner), make_batch(range(8)), 1, clip, "float32").grad_norm
        for clip in (0.0, 0.01)
        for learner in (Toy(),)
    ]
    assert norms[0] == norms[1] > 0.01


def test_the_update_ratio_is_that_of_the_weights_of_its_phase():
    """The slow twin: from whole copies, one flat vector."""
    learner = Duel()
    flat = {phase: nn.utils.parameters_to_vector([p for _, p in learner.parameters_of(phase)]).detach() for phase in
            learner.phases}  # fmt: skip
    for phase in learner.phases:
        data = make_batch(range(4))
        found = take_step(learner, learner, phase, make_optimiser(learner, phase), data, 1, 0.0, "float32", True)
        now = nn.utils.parameters_to_vector([p for _, p in learner.parameters_of(phase)]).detach()
        ratio = (now - flat[phase]).norm() / flat[phase].norm()
        assert found.metrics["update_ratio"] == pytest.approx(float(ratio), rel=1e-5)
    without = take_step(learner, learner, phase, make_optimiser(learner, phase), data, 1, 0.0, "float32")
    assert "update_ratio" not in without.metrics


def distributed(learner: Learner, how: str) -> nn.Module:
    if how == "replicated":
        return DistributedDataParallel(learner, find_unused_parameters=len(learner.phases) > 1)
    if how == "sharded":
        return fully_shard(learner)
    return learner


def take_a_flawed_step(how: str, poison: str) -> dict:
    """The second process alone is poisoned, in the second of two pieces."""
    dist.start()
    learner = Toy(poison)
    model = distributed(learner, how)
    optimiser = make_optimiser(learner)
    rows = range(8 * dist.rank(), 8 * dist.rank() + 8)
    take_step(model, learner, "main", optimiser, make_batch(rows), 2, 1.0, "float32")
    before = state_of(learner, optimiser)
    stepped = take_step(model, learner, "main", optimiser, make_batch(rows, poisoned=(15,)), 2, 1.0, "float32")
    kept = same(before, state_of(learner, optimiser)) and all(p.grad is None for p in learner.parameters())
    after = take_step(model, learner, "main", optimiser, make_batch(rows), 2, 1.0, "float32")
    weights = [p.detach() for p in learner.parameters()]
    found = {
        "flaw": stepped.flaw, "own": math.isfinite(stepped.own_loss), "kept": kept, "after": after.loss,
        "weights": [(w.full_tensor() if hasattr(w, "full_tensor") else w).tolist() for w in weights],
    }  # fmt: skip
    dist.stop()
    return found


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("how", ["replicated", "sharded", "each for itself"])
def test_one_poisoned_process_of_two_stops_the_step_of_both(how, poison):
    """Fails when each process judges its own loss (they differ on the flaw) or, each for itself, its own gradient."""
    first, second = run_processes(take_a_flawed_step, 2, how, poison)
    assert first["flaw"] == second["flaw"] == ("gradient" if poison == "gradient" else "loss")
    assert (first["own"], second["own"]) == (True, poison == "gradient")
    assert first["kept"]
    assert second["kept"]
    assert first["after"] == second["after"]
    assert math.isfinite(first["after"])
    if how != "each for itself":
        assert first["weights"] == second["weights"]


def take_good_steps(how: str, pieces: int, kind: str) -> list:
    dist.start()
    learner = Duel() if kind == "duel" else Toy(counts=False)
    model = distributed(learner, how)
    assert isinstance(model, FSDPModule) == (how == "sharded")
    optimisers = {phase: make_optimiser(learner, phase) for phase in learner.phases}
    share = 16 // dist.world_size()
    data = make_batch(range(share * dist.rank(), share * (dist.rank() + 1)))
    told, frozen = [], {name for name, p in learner.named_parameters() if not p.requires_grad}
    for _ in range(3):
        for phase, optimiser in optimisers.items():
            stepped = take_step(model, learner, phase, optimiser, data, pieces, 0.1, "float32", measure=True)
            told.append((stepped.loss, stepped.grad_norm, stepped.metrics["update_ratio"]))
    assert {name for name, p in learner.named_parameters() if not p.requires_grad} == frozen
    assert all(p.grad is None for p in learner.parameters())
    dist.stop()
    return told


@pytest.mark.parametrize("kind", ["toy", "duel"])
@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_however_it_is_shared_and_cut_a_step_is_the_same(how, kind):
    """Loss, norm, clipping and update ratio of one process and one piece are those of two processes and two pieces.

    Fails when gradients are never shared (`_adding_up`), or when each process tells its own norm or loss.
    """
    alone = take_good_steps("each for itself", 1, kind)
    first, second = run_processes(take_good_steps, 2, how, 2, kind)
    assert first == second
    for mine, theirs in zip(alone, first, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


def take_a_step_of_two_phases_with_a_flaw() -> tuple[bool, list]:
    """The generator of the second process alone is poisoned."""
    dist.start()
    learner = Duel()
    model = distributed(learner, "replicated")
    optimisers = {phase: make_optimiser(learner, phase) for phase in learner.phases}
    rows = range(8 * dist.rank(), 8 * dist.rank() + 8)
    take_steps(model, learner, optimisers, make_batch(rows), 2, 1.0, "float32")
    before = state_of(learner, *optimisers.values())
    taken = take_steps(model, learner, optimisers, make_batch(rows, poisoned=(15,)), 2, 1.0, "float32")
    kept = same(before, state_of(learner, *optimisers.values()))
    take_steps(model, learner, optimisers, make_batch(rows), 2, 1.0, "float32")
    weights = [p.tolist() for p in learner.parameters()]
    dist.stop()
    return kept and [stepped.flaw for stepped in taken.values()] == [None, "loss"], weights


def test_one_poisoned_generator_of_two_undoes_the_critics_of_both():
    """Fails when only the process that saw the flaw goes back: their critics would differ from then on."""
    first, second = run_processes(take_a_step_of_two_phases_with_a_flaw, 2)
    assert first[0] and second[0]
    assert first[1] == second[1]


class Sums(TorchDispatchMode):
    """Counts what is reduced over the processes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "c10d" and "reduce" in str(func)
        return func(*args, **(kwargs or {}))


def count_sums(how: str, pieces: int) -> int:
    """How often gradients or numbers are summed over the processes in a step."""
    dist.start()
    learner = Toy(counts=False)
    model, optimiser = distributed(learner, how), make_optimiser(learner)
    data = make_batch(range(8 * dist.rank(), 8 * dist.rank() + 8))
    with Sums() as sums:
        take_step(model, learner, "main", optimiser, data, pieces, 0.1, "float32")
    dist.stop()
    return sums.count


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_gradients_travel_once_a_step(how):
    """Fails without `no_sync` or `set_requires_gradient_sync`. The learner's one metric is shared for each piece."""
    (one, _), (four, _) = (run_processes(count_sums, 2, how, pieces) for pieces in (1, 4))
    assert four - 3 == one > 4  # more than the metric, the loss and two votes
