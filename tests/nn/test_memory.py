import pytest
import torch
from torch import nn

from processes import run_processes
from tubelet import dist
from tubelet.nn.memory import Bank, Ema, Queue, rising


def test_the_average_against_a_slow_twin():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    modules = {"body": body, "head": nn.Linear(3, 2), "none": nn.Identity()}
    ema = Ema(modules, 0.9)
    slow = {f"{name}.{key}": p.detach().clone() for name, m in modules.items() for key, p in m.named_parameters()}
    for _ in range(5):
        modules["head"](body(torch.randn(8, 4)))
        with torch.no_grad():
            for name, module in modules.items():
                for key, parameter in module.named_parameters():
                    parameter.add_(torch.randn_like(parameter))
                    slow[f"{name}.{key}"] = 0.9 * slow[f"{name}.{key}"] + 0.1 * parameter
        ema.move(modules)
    for key, value in slow.items():
        torch.testing.assert_close(ema.state_dict()[key], value)
    assert torch.equal(ema.state_dict()["body.1.running_mean"], body[1].running_mean)


def test_it_is_saved_learns_nothing_and_never_trains():
    ema = Ema({"net": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))}, 0.5)
    assert set(ema.state_dict()) == {"net.0.weight", "net.0.bias"}
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.train().training and not ema.net.training


def test_what_it_follows_is_left_alone():
    net = nn.Linear(2, 2)
    ema = Ema({"net": net}, 0.5)
    before = net.weight.clone()
    ema.net.weight.zero_()
    assert torch.equal(net.weight, before) and net.weight.requires_grad
    with pytest.raises(AttributeError):
        ema.move({"other": net})


def test_the_decay_may_follow_a_schedule():
    net = nn.Linear(2, 2)
    ema = Ema({"net": net}, 0.5)
    start = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    ema.move({"net": net}, decay=0.9)
    torch.testing.assert_close(ema.net.weight, start + 0.1)


def test_a_decay_rises_along_half_a_cosine():
    assert [rising(0.9, done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert rising(0.9, 0.25) == pytest.approx(0.9 + 0.1 * (1 - 0.5**0.5) / 2)


def test_a_queue_keeps_the_newest_rows_of_each_column():
    queue = Queue(5, key=2, video=0)
    assert not queue.full and queue.video.dtype == torch.int64
    rows = torch.arange(14.0).view(7, 2)
    for first, last in ((0, 2), (2, 4), (4, 7)):
        queue.remember(key=rows[first:last], video=torch.arange(first, last))
        assert queue.filled.sum() == min(first, 5)  # nothing moves before it is pushed
        queue.push()
    assert queue.full and queue.video.tolist() == [5, 6, 2, 3, 4]
    assert torch.equal(queue.key, rows[queue.video])
    queue.remember(key=rows, video=torch.arange(7))  # more than it holds
    queue.push()
    assert sorted(queue.video.tolist()) == [2, 3, 4, 5, 6] and torch.equal(queue.key, rows[queue.video])


def test_what_a_skipped_step_left_is_forgotten():
    queue, bank = Queue(4, key=2), Bank(3, 2)
    before = bank.values.clone()
    queue.remember(key=torch.ones(2, 2))
    bank.remember(torch.tensor([0]), torch.ones(1, 2))
    for memory in (queue, bank):
        memory.forget()
        memory.push()
    assert not queue.filled.any() and torch.equal(bank.values, before)


def test_a_queue_takes_the_kind_of_its_columns():
    queue = Queue(2, key=2)
    queue.remember(key=torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True))
    queue.push()
    assert queue.key.dtype == torch.float32 and not queue.key.requires_grad


def test_a_bank_mixes_old_and_new_on_the_sphere():
    torch.manual_seed(0)
    bank = Bank(4, 3, momentum=0.25)
    before, values = bank.values.clone(), torch.randn(3, 3)
    bank.remember(torch.tensor([2, 0]), values[:2])
    bank.remember(torch.tensor([2]), values[2:])  # another clip of the same video
    assert torch.equal(bank.values, before)
    bank.remember(torch.tensor([3]), torch.randn(1, 3), present=torch.tensor([False]))
    bank.push()
    assert torch.equal(bank.values[[1, 3]], before[[1, 3]])
    assert bank.known.tolist() == [True, False, True, False]
    for row, value in ((0, values[1]), (2, values[2])):
        mixed = 0.25 * before[row] + 0.75 * value / value.norm()
        torch.testing.assert_close(bank.values[row], mixed / mixed.norm())


def enter(rows: torch.Tensor) -> tuple[dict, dict]:
    dist.start()
    torch.manual_seed(0)
    queue, bank = Queue(6, key=2, video=0), Bank(8, 2)
    for part in rows.chunk(2):  # two forward passes
        mine = dist.own_part(part)
        queue.remember(key=mine, video=mine[:, 0].long())
        bank.remember(mine[:, 0].long(), mine, mine[:, 0] % 3 > 0)
        queue.push()
        bank.push()
    dist.stop()
    return queue.state_dict(), bank.state_dict()


def test_two_processes_keep_the_same_rows_in_the_same_order():
    rows = torch.stack([torch.arange(8.0), torch.randn(8)], dim=1)
    one = enter(rows)
    for two in run_processes(enter, 2, rows):
        for mine, theirs in zip(one, two, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
