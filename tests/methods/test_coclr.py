import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, moving_squares, tiny_backbone
from tubelet import draws, registry
from tubelet.checkpoint import load_learner, save_backbone, save_weights
from tubelet.learner import Learner, Now
from tubelet.methods.coclr import CoCLR
from tubelet.nn.heads import embedded
from tubelet.types import Batch, TubeletError


def save_run(folder: Path, learner: Learner, name: str, **arguments) -> str:
    """A folder as a run leaves it, as far as an oracle is read from it."""
    save_backbone(folder, learner.backbone, learner={"name": name, **arguments})
    save_weights(folder / "learner.safetensors", learner.state_dict())
    return str(folder)


@cache
def oracle() -> str:
    """The folder of a run; every process has its own, with the same weights."""
    folder = Path(tempfile.mkdtemp(prefix="oracle-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        backbone = registry.build("backbones", "vit", dim=32, depth=1, heads=2, patch=4)
        head = {"queue": 4, "dim": 8, "hidden": 16}
        return save_run(folder, registry.build("methods", "moco", backbone=backbone, **head), "moco", **head)


SMALL = {
    "coclr": {"learner": {"oracle": oracle, "dim": 8, "hidden": 16, "queue": 10, "mined": 2}},
    "coclr, of flow": {
        "learner": {"oracle": oracle, "dim": 8, "hidden": 16, "queue": 10, "mined": 2, "strength": "none"},
        "data": {"flow": "exchanged"},
    },
}


@pytest.fixture
def tiny() -> CoCLR:
    """A learner of 3 mined keys of 8 in the queue; vectors of 4."""
    torch.manual_seed(0)
    backbone = registry.build("backbones", "vit", dim=32, depth=1, heads=2, patch=4)
    return CoCLR(backbone, oracle(), mined=3, queue=8, dim=4, hidden=16)


def fill(learner: CoCLR, seed: int = 0, groups: int = 5) -> None:
    """A full queue of random keys."""
    generator = torch.Generator().manual_seed(seed)
    size = len(learner.queue.filled)
    for name in ("keys", "oracle_keys"):
        rows = learner.queue.get_buffer(name)
        rows.copy_(F.normalize(torch.randn(rows.shape, generator=generator), dim=1))
    learner.queue.get_buffer("group").copy_(torch.randint(groups, (size,), generator=generator))
    learner.queue.filled.fill_(True)


def unit(count: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_hand(learner: CoCLR, query, key, oracle_key, group: int, own: bool) -> float:
    """The loss of one query as the authors' code has it: logits, a mask over them, the softmax within the mask."""
    keys, oracles = learner.queue.get_buffer("keys"), learner.queue.get_buffer("oracle_keys")
    groups = learner.queue.get_buffer("group").tolist()
    logits = torch.stack([query @ key, *(query @ other for other in keys)]).double() / learner.temperature
    mask = [True] + [other == group for other in groups]
    strangers = [row for row, other in enumerate(groups) if other != group]
    strangers.sort(key=lambda row: -float(oracle_key @ oracles[row]))
    for row in strangers[: learner.mined]:
        mask[1 + row] = True
    if not own and sum(mask) > 1:
        mask[0] = False
    return float(-logits.softmax(dim=0)[torch.tensor(mask)].sum().log())


@pytest.mark.parametrize("own", [True, False])
def test_the_loss_equals_that_of_a_loop(tiny, own):
    fill(tiny)
    queries, keys, oracle_keys = (unit(6, dim, seed) for dim, seed in ((4, 1), (4, 2), (8, 3)))
    groups = torch.arange(6)  # the last of no video in the queue
    siblings = tiny.queue.get_buffer("group") == groups[:, None]
    mined, _ = tiny.mine(oracle_keys, siblings)
    losses = tiny.compare(queries, keys, torch.full((6, 1), own), siblings | mined)
    expected = [by_hand(tiny, *row, own) for row in zip(queries, keys, oracle_keys, groups.tolist(), strict=True)]
    torch.testing.assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_siblings_are_never_mined_but_are_positives(tiny):
    """A toy of two classes: the oracle's keys point to one of two sides, and siblings lie nearest of all."""
    side = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    fill(tiny)
    oracles = torch.zeros(8, 8)
    oracles[torch.arange(8), side] = 1.0
    tiny.queue.get_buffer("oracle_keys").copy_(oracles)
    tiny.queue.get_buffer("group").copy_(torch.tensor([9, 1, 2, 3, 9, 5, 6, 7]))
    asked = torch.zeros(1, 8)
    asked[0, 0] = 1.0
    siblings = tiny.queue.get_buffer("group") == 9  # K
    mined, likeness = tiny.mine(asked, siblings[None])
    assert mined[0].tolist() == [False, True, True, True, False, False, False, False]
    assert likeness.tolist() == [[1.0, 1.0, 1.0]]
    query = unit(1, 4, 0)
    with_siblings = tiny.compare(query, query, torch.tensor([[False]]), mined | siblings)
    without = tiny.compare(query, query, torch.tensor([[False]]), mined)
    assert with_siblings < without  # they are in the numerator, on the other side too


def test_where_all_are_siblings_nothing_is_mined(tiny):
    fill(tiny)
    mined, likeness = tiny.mine(unit(2, 8, 0), torch.ones(2, 8, dtype=torch.bool))
    assert not mined.any() and likeness.isfinite().all()


def toy(count: int = 6, seed: int = 0, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.rand(count, 3, 4, 16, 16, generator=generator) for _ in range(4)]
    keys = torch.tensor([draws.key(seed, index) for index in range(count)])
    ids = torch.arange(first, first + count)
    return Batch(video=clips[:2], flow=clips[2:], key=keys, id=ids, group=ids // 2)


def test_nothing_is_learnt_until_the_queue_is_full(tiny):
    now = Now(1, 0, False, 0.0, lambda: iter(()))
    for step in range(2):
        tiny.before_step(now)
        assert tiny(toy(4, step, 4 * step), "main").loss is None
        assert not tiny.queue.full
        tiny.after_step(now)
    assert tiny.queue.full
    assert tiny.queue.get_buffer("group").tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    found = tiny(toy(4, 2, 8), "main")
    assert found.loss is not None and found.loss.isfinite()
    expected = embedded(toy(4, 1, 4)["flow"][1], tiny.oracle.network)  # the second view, beside whose pictures keys are
    torch.testing.assert_close(tiny.queue.get_buffer("oracle_keys")[4:], expected)


def test_its_own_key_is_dropped_in_nine_of_ten_cases(tiny, monkeypatch):
    fill(tiny)
    told = []
    compare = tiny.compare
    monkeypatch.setattr(tiny, "compare", lambda q, k, own, positive: told.append(own) or compare(q, k, own, positive))
    for seed in range(40):
        with torch.no_grad():
            tiny(toy(6, seed), "main")
    assert torch.cat(told).float().mean().item() == pytest.approx(0.1, abs=0.05)
    tiny.drop_own = 0.0
    tiny(toy(6), "main")
    assert told[-1].all()


def test_the_teacher_starts_as_a_copy_and_moves_slowly(tiny):
    copied = tiny.teacher.get_submodule("backbone").state_dict()
    assert all(torch.equal(tensor, copied[name]) for name, tensor in tiny.backbone.state_dict().items())
    source = load_learner(Path(oracle()))
    other = CoCLR(registry.build("backbones", "vit", dim=32, depth=1, heads=2, patch=4), oracle(), dim=8, hidden=16,
                  layers=3, queue=8)  # fmt: skip
    other.start_from(source)
    parts = (source.head, other.head, other.teacher.get_submodule("head"))
    for one, same, copied in zip(*(part.parameters() for part in parts), strict=True):
        assert torch.equal(one, same) and torch.equal(one, copied)
    with torch.no_grad():
        next(other.head.parameters()).add_(1.0)
    other.after_step(Now(1, 0, False, 0.0, lambda: iter(())))
    moved = next(other.teacher.get_submodule("head").parameters()) - next(source.head.parameters())
    assert moved.mean().item() == pytest.approx(0.001, rel=1e-2)


def test_the_oracle_is_the_trained_network_and_stays_as_it_is(tiny):
    source = load_learner(Path(oracle()))
    video = torch.rand(2, 3, 4, 16, 16)
    torch.testing.assert_close(embedded(video, tiny.oracle.network), embedded(video, source))
    assert not any(p.requires_grad for p in tiny.oracle.parameters())
    tiny.train()
    assert not tiny.oracle.network.training and not tiny.teacher.training
    assert all(not name.startswith(("oracle", "teacher")) for name, _ in tiny.parameters_of("main"))


def test_an_oracle_without_a_head_is_looked_at_by_its_tokens(tmp_path):
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 1, "heads": 2, "patch": 4}
    other = registry.build("methods", "videomae", backbone=registry.build("backbones", "vit", **small), decoder_dim=16,
                           decoder_depth=1)  # fmt: skip
    run = save_run(tmp_path, other, "videomae", decoder_dim=16, decoder_depth=1)
    learner = CoCLR(registry.build("backbones", "vit", **small), run, queue=8)
    video = torch.rand(2, 3, 4, 16, 16)
    expected = F.normalize(other.backbone(video).tokens.mean(dim=1), dim=1)
    torch.testing.assert_close(embedded(video, learner.oracle.network), expected)
    with pytest.raises(TubeletError, match="a VideoMAE has no projection head"):
        learner.start_from(other)


def test_mistakes_are_told(tmp_path):
    backbone = registry.build("backbones", "vit", dim=32, depth=1, heads=2, patch=4)
    with pytest.raises(TubeletError, match="mined must be 1 or more and at most"):
        CoCLR(backbone, oracle(), queue=4)
    with pytest.raises(TubeletError, match=r"learner.drop_own must be in 0..1, not 2"):
        CoCLR(backbone, oracle(), drop_own=2.0)
    with pytest.raises(TubeletError, match="does not exist"):
        CoCLR(backbone, str(tmp_path / "nothing"))
    with pytest.raises(TubeletError, match="layers and dim to its"):
        CoCLR(backbone, oracle(), queue=8).start_from(load_learner(Path(oracle())))


# The synthetic task: what a clip looks like and how it moves are of different classes


GROUNDS = torch.rand(4, 3, 1, 16, 16, generator=torch.Generator().manual_seed(5))


class Videos(NamedTuple):
    """Squares that move in four directions over one of four grounds, which nothing but pictures show."""

    batch: Batch
    motion: torch.Tensor
    look: torch.Tensor


def videos(count: int, seed: int) -> Videos:
    found = moving_squares(count, seed, frames=4, size=16, side=6.0, views=2)
    batch, keys = found.batch, found.batch["key"]
    look = (draws.uniform(keys, 1, "look")[:, 0] * len(GROUNDS)).long()  # B
    pictures = [0.7 * view + 0.3 * GROUNDS[look] for view in batch["video"]]
    way = found.place[:, 1] - found.place[:, 0]  # B 2
    level = torch.cat([0.5 + way / 6, way.norm(dim=1, keepdim=True) / 5], dim=1)[:, :, None, None, None]  # B 3 1 1 1
    noise = [draws.normal(keys, pictures[0][0].numel(), f"flow {view}").view_as(pictures[0]) for view in (0, 1)]
    flow = [(level + 0.05 * one).clamp(0, 1) for one in noise]
    rows = torch.arange(count) + count * seed
    return Videos(Batch(video=pictures, flow=flow, key=keys, id=rows, group=rows), found.direction, look)


def precision(learner: CoCLR, mined: int = 5) -> tuple[float, float]:
    """Of what the network of pictures would mine for that of flow: the shares of the same motion and the same look."""
    batch, motion, look = videos(200, 10_000)
    with torch.no_grad():
        vectors = embedded(batch["video"][0], learner)
    rows = (vectors @ vectors.T).fill_diagonal_(-1).topk(mined, dim=1).indices  # B mined
    motions, looks = ((classes[rows] == classes[:, None]).float().mean().item() for classes in (motion, look))
    return motions, looks


def co_trained(folder: Path, of_others: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    """The precision of a network of pictures before and after it learnt with a look at flow, or at that of others.

    An untrained network of flow is enough of an oracle: clips that move alike have flow of the same level.
    """
    small = {"dim": 48, "patch": 4}
    eyes = registry.build("methods", "videomae", backbone=tiny_backbone(1, **small), decoder_dim=16, decoder_depth=1)
    run = save_run(folder, eyes, "videomae", decoder_dim=16, decoder_depth=1)
    learner = CoCLR(tiny_backbone(**small), run, mined=24, queue=256, momentum=0.9, dim=32, hidden=64, temperature=0.1,
                    strength="none")  # fmt: skip

    def batch(step: int) -> Batch:
        made = videos(32, step).batch
        return Batch(**{**made, "flow": [view.roll(1, dims=0) for view in made["flow"]]}) if of_others else made

    before = precision(learner)
    learn(learner, batch, 110, lr=3e-3)
    return before, precision(learner)


def test_pictures_learn_what_moves_alike_from_flow(tmp_path):
    (motion, look), (motion_then, look_then) = co_trained(tmp_path, of_others=False)
    assert motion < 0.45 and look > 0.75  # by themselves pictures are alike that have the same ground
    assert motion_then > 0.8 and look_then < 0.45


def test_with_the_flow_of_others_nothing_is_learnt_of_motion(tmp_path):
    _, (motion, _) = co_trained(tmp_path, of_others=True)
    assert motion < 0.45
