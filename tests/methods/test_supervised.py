import pytest
import torch
from torch import nn
from torch.nn import functional

from tubelet import draws, registry
from tubelet.learner import Now
from tubelet.methods.supervised import Supervised
from tubelet.nn.mixing import erase, mix
from tubelet.types import TubeletError

NOW = Now(1, 0, False, 0.1, lambda: iter(()))

SMALL = {
    "supervised": {"learner": {"classes": 2}},
    "supervised, all on": {
        "learner": {"classes": 2, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "ema": 0.9, "dropout": 0.1},
        "data": {"randaugment": "m7-n4-mstd0.5", "repeats": 2, "scale": (0.08, 1.0)},
    },
    "supervised, without mixing": {"learner": {"classes": 2, "erasing": 0.5, "ema": 0.9}},
}


def learner(backbone=None, **options):
    torch.manual_seed(0)
    shape = {"size": "tiny", "dim": 16, "depth": 1, "heads": 2, "patch": 8, **(backbone or {})}
    return Supervised(registry.build("backbones", "vit", **shape), 4, **options)


def batch(labels):
    keys = torch.tensor([draws.key("sample", i) for i in range(len(labels))])
    return {"video": [torch.rand(len(labels), 3, 4, 16, 16)], "label": torch.tensor(labels), "key": keys}


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


def test_the_published_head_mean_then_norm_without_one_in_the_encoder():
    model = learner({"last_norm": False}, head_scale=1.0).eval()
    assert not any(name.startswith("backbone.norm") for name in model.state_dict())
    video = torch.rand(2, 3, 4, 16, 16)
    pooled = model.backbone(video).tokens.mean(1)
    expected = functional.layer_norm(pooled, (16,), eps=1e-6) @ model.head.weight.T
    torch.testing.assert_close(model.logits(video), expected)


def test_pooling_and_norm_are_a_choice():
    """Hugging Face's configuration of published weights reads the first token; that must be asked for."""
    model = learner(pool="first", head_norm=False, head_scale=1.0).eval()
    video = torch.rand(2, 3, 4, 16, 16)
    torch.testing.assert_close(model.logits(video), model.backbone(video).tokens[:, 0] @ model.head.weight.T)
    assert isinstance(model.fc_norm, nn.Identity)
    assert not any(name.startswith("fc_norm") for name in model.state_dict())


def test_the_head_starts_as_published():
    """Normal of deviation .02 cut at 2 (a hundred deviations), times .001; biases 0."""
    model = learner({"dim": 512}, head_scale=0.001)
    weight = model.head.weight / 0.001
    assert weight.std().item() == pytest.approx(0.02, rel=0.05) and weight.abs().max() < 0.1
    assert not model.head.bias.any()


def test_dropout_is_before_the_head_and_for_training_only():
    model = learner(dropout=0.5, head_scale=1.0)
    video = torch.rand(2, 3, 4, 16, 16)
    assert not torch.equal(model.logits(video), model.logits(video))
    model.eval()
    assert torch.equal(model.logits(video), model.logits(video))


def soft_targets(labels, share, smoothing, classes=4):
    """As published: smoothed one-hot vectors of the clip and of its partner from the other end, in shares."""
    off = smoothing / classes
    hot = torch.full((len(labels), classes), off)
    hot[range(len(labels)), labels] = 1 - smoothing + off
    return share * hot + (1 - share) * hot.flip(0)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "erasing": 1.0}])
def test_mixed_loss_is_cross_entropy_with_soft_targets(options):
    model = learner(head_scale=50.0, smoothing=0.1, **options)
    data = batch([0, 1, 2, 2])
    video = data["video"][0]
    if "erasing" in options:
        video = erase(video, data["key"], 1.0, model.backbone.mean, model.backbone.deviation)
    mixed, share = mix(video, data["key"], options.get("mixup", 0), options.get("cutmix", 0))
    targets = soft_targets(data["label"], share, 0.1)
    logits = model.logits(mixed)
    output = model(data, "main")
    torch.testing.assert_close(output.loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    right = share * (logits.argmax(1) == data["label"]) + (1 - share) * (logits.argmax(1) == data["label"].flip(0))
    torch.testing.assert_close(output.metrics["accuracy"], right.float().mean())
    model.eval()
    plain = functional.cross_entropy(model.logits(data["video"][0]), data["label"], label_smoothing=0.1)
    torch.testing.assert_close(model(data, "main").loss, plain)  # judged on clips as they are


def test_unlabelled_videos_take_no_part_in_mixing():
    model = learner(head_scale=50.0, mixup=0.8)
    data = batch([2, -1, 1])
    known = {"video": [data["video"][0][[0, 2]]], "label": data["label"][[0, 2]], "key": data["key"][[0, 2]]}
    torch.testing.assert_close(model(data, "main").loss, model(known, "main").loss)


def test_the_average_is_what_is_evaluated_and_exported():
    """Published training keeps an average and never looks at it."""
    model = learner(ema=0.5, head_scale=1.0)
    video = torch.rand(2, 3, 4, 16, 16)
    torch.testing.assert_close(model.eval().logits(video), model.train().logits(video))
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.head.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.after_step(NOW)
    judged, trained = model.eval().logits(video), model.train().logits(video)
    assert not torch.allclose(judged, trained)
    twin = learner(head_scale=1.0).eval()
    average = {k.removeprefix("ema."): v for k, v in model.state_dict().items() if k.startswith("ema.")}
    twin.load_state_dict(average)
    torch.testing.assert_close(judged, twin.logits(video))
    theirs = twin.backbone.state_dict()
    assert all(torch.equal(mine, theirs[name]) for name, mine in model.exported.state_dict().items())
    torch.testing.assert_close(model.embed({"video": [video]}), twin.embed({"video": [video]}))
    assert learner().exported is not model.exported and learner().ema is None


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"ema": 1.0}, r"learner\.ema must be in 0\.\.1 \(1 excluded\)"),
        ({"erasing": 1.5}, r"learner\.erasing must be in 0\.\.1"),
        ({"mixup": -0.1}, r"learner\.mixup must be 0 \(off\) or more"),
        ({"cutmix": -1.0}, r"learner\.cutmix"),
        ({"dropout": 1.0}, r"learner\.dropout"),
    ],
)
def test_shares_that_make_no_sense_are_refused(option, said):
    with pytest.raises(TubeletError, match=said):
        learner(**option)
