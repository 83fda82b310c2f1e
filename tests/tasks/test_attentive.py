from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tasks import colours
from tubelet.tasks.attentive import AttentiveHead, AttentiveProbe, normalised
from tubelet.tasks.protocol import Protocol
from tubelet.types import TubeletError


def test_pooling_is_ordinary_cross_attention():
    torch.manual_seed(0)
    head = AttentiveHead(tokens=6, dim=8, classes=3, heads=2)
    torch.nn.init.normal_(head.place)
    ordinary = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    query = torch.randn(1, 1, 8)
    for parameter in (head.query, head.value, head.bias):
        parameter.data.normal_()
    _, key, value = ordinary.in_proj_weight.data.chunk(3)
    with torch.no_grad():  # query and key projection together are one vector a head
        projected = functional.linear(query, ordinary.in_proj_weight[:8], ordinary.in_proj_bias[:8]).view(2, 4)
        head.query.copy_(torch.stack([key.view(2, 4, 8)[h].T @ projected[h] / 2 for h in range(2)], dim=1))  # sqrt(4)
        value.copy_(head.value.transpose(1, 2).reshape(8, 8))
        ordinary.in_proj_bias[16:].copy_(head.bias)
        ordinary.out_proj.weight.copy_(torch.eye(8))
        ordinary.out_proj.bias.zero_()
    tokens = torch.randn(4, 6, 8)
    placed = tokens + head.place
    expected, _ = ordinary(query.expand(4, 1, 8), placed, placed)
    torch.testing.assert_close(head.pool(tokens), expected[:, 0])


def test_reads_where_things_are(protocol):
    """Tokens know their place and one of them is marked: the class is where, which their mean does not tell."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    tokens = torch.randn(6, 64, generator=generator) + 0.1 * torch.randn(120, 6, 64, generator=generator)
    tokens[torch.arange(120), labels * 2] += 2 * torch.randn(64, generator=generator)
    (head,) = AttentiveProbe(heads=4).train(tokens.half(), labels, torch.arange(60), protocol, [(3e-3, 0.1)], 100)
    seen = normalised(tokens.half(), torch.arange(60, 120), torch.device("cpu"))
    assert (head(seen).argmax(1) == labels[60:]).float().mean() > 0.9


def test_settings_learn_as_they_would_alone(protocol):
    tokens, labels, rows = torch.randn(20, 4, 16).half(), torch.arange(20) % 3, torch.arange(20)
    probe = AttentiveProbe(heads=2, batch=8)
    settings = [(1e-3, 0.1), (1e-2, 1.0)]
    together = probe.train(tokens, labels, rows, protocol, settings, 5)
    for setting, head in zip(settings, together, strict=True):
        (alone,) = probe.train(tokens, labels, rows, protocol, [setting], 5)
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), head.parameters(), strict=True))


def test_tells_colours_apart_from_cached_tokens(protocol, tmp_path):
    probe = AttentiveProbe(heads=2, least_steps=60, lrs=[1e-5, 3e-3], weight_decays=[0.1])
    result = probe(colours.backbone(), replace(protocol, cache=tmp_path / "cache", test_clips=2), tmp_path)
    assert result["top1"] > 0.9
    assert result["lr"] == 3e-3
    assert len(result["tried"]) == 2
    assert len(list((tmp_path / "cache").glob("tokens-*.npy"))) == 2


def test_test_labels_have_no_part_in_the_choice(protocol, tmp_path):
    probe = AttentiveProbe(heads=2, least_steps=40, lrs=[1e-4, 3e-3], weight_decays=[0.1])
    honest, cheated = (probe(colours.backbone(), p, tmp_path) for p in (protocol, colours.poisoned(protocol)))
    assert (cheated["lr"], cheated["tried"]) == (honest["lr"], honest["tried"])
    assert cheated["top1"] < honest["top1"]


def test_unreadable_videos_are_left_out(broken_videos, tmp_path):
    protocol = Protocol.from_manifest(broken_videos, colours.CLIP)
    result = AttentiveProbe(heads=2, least_steps=5)(colours.backbone(), protocol, tmp_path)
    assert (result["videos"], result["unreadable"]) == (11, 1)
    assert (result["train_videos"], result["unreadable_train"]) == (23, 1)


def test_heads_must_divide_the_width(protocol, tmp_path):
    with pytest.raises(TubeletError, match="must divide the backbone's width"):
        AttentiveProbe(heads=3)(colours.backbone(), protocol, tmp_path)
