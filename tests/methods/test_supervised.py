import torch
from torch.nn import functional

from tubelet import registry
from tubelet.methods.supervised import Supervised


def learner(**options):
    torch.manual_seed(0)
    backbone = registry.build("backbones", "vit", size="tiny", dim=16, depth=1, heads=2, patch=8)
    return Supervised(backbone, 4, **options)


def batch(labels):
    return {"video": [torch.rand(len(labels), 3, 4, 16, 16)], "label": torch.tensor(labels)}


def test_the_head_starts_small_so_that_every_class_is_equally_likely():
    output = learner(smoothing=0.0)(batch([0, 1, 2, 3]), "main")
    assert abs(output.loss.item() - torch.tensor(4.0).log().item()) < 1e-3


def test_logits_are_mean_then_norm_then_head():
    model = learner(head_scale=1.0).eval()
    video = torch.rand(2, 3, 4, 16, 16)
    pooled = model.backbone(video).tokens.mean(1)
    expected = functional.layer_norm(pooled, (16,), eps=1e-6) @ model.head.weight.T
    torch.testing.assert_close(model.logits(video), expected)


def test_smoothing_against_its_definition():
    model = learner(smoothing=0.2, head_scale=50.0)
    data = batch([0, 3])
    logs = model.logits(data["video"][0]).log_softmax(1)
    target = torch.full((2, 4), 0.05)
    target[0, 0] = target[1, 3] = 0.85
    torch.testing.assert_close(model(data, "main").loss, -(target * logs).sum(1).mean())


def test_videos_without_a_label_do_not_count():
    model = learner(head_scale=50.0)
    data = batch([2, -1, 1])
    known = {"video": [data["video"][0][[0, 2]]], "label": data["label"][[0, 2]]}
    output, expected = model(data, "main"), model(known, "main")
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.metrics["accuracy"] == expected.metrics["accuracy"]
    assert model(batch([-1, -1]), "main").loss is None


def test_every_parameter_gets_a_gradient():
    model = learner(head_scale=1.0)
    model(batch([0, 1]), "main").loss.backward()
    assert all(p.grad is not None for p in model.parameters())
