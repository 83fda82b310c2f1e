import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tasks import colours
from tubelet.tasks import features as module
from tubelet.tasks.features import features, views
from tubelet.tasks.protocol import Protocol
from tubelet.types import TubeletError


@pytest.fixture
def cached(protocol, tmp_path):
    return replace(protocol, cache=tmp_path / "cache")


@pytest.fixture
def passes(monkeypatch):
    """How often features were computed rather than read."""
    calls = []
    compute = module._compute
    monkeypatch.setattr(module, "_compute", lambda *arguments: calls.append(1) or compute(*arguments))
    return calls


def test_a_feature_is_the_mean_over_tokens_and_views(protocol):
    backbone = colours.backbone().eval()
    protocol = replace(protocol, test_clips=3, batch=5)
    found = features(backbone, protocol.test, protocol)
    assert found.values.shape == (12, 16)
    assert found.readable.all()
    with torch.no_grad():
        for batch in views(protocol.test, protocol, 3, 1).once():
            assert len(batch["video"]) == 3
            expected = torch.stack([backbone(v.float() / 255).tokens.mean(1) for v in batch["video"]]).mean(0)
            torch.testing.assert_close(found.values[batch["id"]], expected, atol=0.02, rtol=0.02)  # bf16 or float32


def test_tokens_are_those_of_all_views(protocol):
    backbone = colours.backbone().eval()
    found = features(backbone, protocol.test, replace(protocol, test_clips=2), pooled=False)
    assert found.values.shape == (12, 2 * 8, 16)
    assert found.values.dtype == torch.float16
    pooled = features(backbone, protocol.test, replace(protocol, test_clips=2))
    torch.testing.assert_close(found.values.float().mean(1), pooled.values, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pooled", [True, False])
def test_computed_once(cached, passes, pooled):
    backbone = colours.backbone()
    first, second = (features(backbone, cached.train, cached, pooled=pooled) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert len(passes) == 1
    assert {path.suffix for path in cached.cache.iterdir()} == {".npy", ".json"}


def test_computed_again_for_other_weights_clips_views_and_files(cached, passes, tmp_path):
    manifest = colours.make(tmp_path / "own", train=2, test=1)
    own = Protocol.from_manifest(manifest, colours.CLIP, cache=cached.cache)
    features(colours.backbone(), own.test, own)
    features(colours.backbone(1), own.test, own)
    features(colours.backbone(), own.test, replace(own, clip={**colours.CLIP, "stride": 2}))
    features(colours.backbone(), own.test, replace(own, test_clips=2))
    own.test[0].path.write_bytes(own.test[1].path.read_bytes() + b" ")
    features(colours.backbone(), own.test, own)
    assert len(passes) == 5


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "about"])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_damaged_cache_is_computed_again(cached, passes, damage, pooled):
    backbone = colours.backbone()
    good = features(backbone, cached.test, cached, pooled=pooled).values.clone()
    (file,) = cached.cache.glob("*.npy")
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-7])
    elif damage == "flipped":
        data[-7] ^= 1
        file.write_bytes(data)
    elif damage == "garbage":
        file.write_bytes(b"garbage")
    else:
        file.with_suffix(".json").write_text("[]")
    assert torch.equal(features(backbone, cached.test, cached, pooled=pooled).values, good)
    assert len(passes) == 2
    features(backbone, cached.test, cached, pooled=pooled)
    assert len(passes) == 2


def test_what_cannot_be_read_is_left_out_counted_and_said(broken_videos, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module, "warn", said.append)
    protocol = Protocol.from_manifest(broken_videos, colours.CLIP, cache=tmp_path / "cache")
    for _ in range(2):  # computed, then read
        found = features(colours.backbone(), protocol.test, protocol)
        assert (~found.readable).nonzero().flatten().tolist() == [2]
        assert not found.values[2].any()
        assert "1 of 12 videos cannot be read" in said[-1]
        assert "test red 0.mp4" in said[-1]
    (about,) = (tmp_path / "cache").glob("*.json")
    assert list(json.loads(about.read_text())["unreadable"]) == ["2"]


def test_nothing_can_be_read(tmp_path):
    manifest = colours.make(tmp_path / "own", train=1, test=1)
    for video in manifest:
        video.path.write_bytes(b"")
    protocol = Protocol.from_manifest(manifest, colours.CLIP)
    with pytest.raises(TubeletError, match="none of the 3 videos can be read"):
        features(colours.backbone(), protocol.train, protocol)


def test_a_network_that_diverged(protocol):
    backbone = colours.backbone()
    torch.nn.init.constant_(next(backbone.parameters()), float("nan"))
    with pytest.raises(TubeletError, match="not finite"):
        features(backbone, protocol.test, protocol)


def test_tokens_that_do_not_fit_the_disk(cached, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(TubeletError, match="use fewer videos, or the task `linear`"):
        features(colours.backbone(), cached.test, cached, pooled=False)
    assert not list(cached.cache.iterdir())


def test_the_backbone_stays_as_it_was(protocol):
    backbone = colours.backbone().train()
    features(backbone, protocol.test, protocol)
    assert backbone.training
    assert all(p.grad is None and p.requires_grad for p in backbone.parameters())
