import pytest
import torch
from torch import nn

from tubelet.nn.memory import Ema


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
