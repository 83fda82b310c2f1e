import pytest

from tubelet.backbones.vit import VisionTransformer
from tubelet.methods.supervised import Supervised
from tubelet.train.optim import adamw, set_rate


def test_layer_decay_and_weight_decay_as_published():
    """The scale of layer i is d ** (L + 1 - i): patch embedding 0, block k at k + 1, final norm and head L + 1."""
    learner = Supervised(VisionTransformer("tiny", dim=32, depth=3, heads=2), classes=5)
    optimiser = adamw(learner, "main", weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5)
    set_rate(optimiser, 0.1)
    found = {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["weight_decay"], group["lr"])
    expected = {"embed.": 4, "blocks.0.": 3, "blocks.1.": 2, "blocks.2.": 1, "norm.": 0}
    for name, parameter in learner.named_parameters():
        decay, rate = found[id(parameter)]
        assert decay == (0.05 if parameter.ndim > 1 else 0.0), name
        inside = name.removeprefix("backbone.")
        power = next((p for start, p in expected.items() if name != inside and inside.startswith(start)), 0)
        assert rate == pytest.approx(0.1 * 0.5**power), name
    assert len(found) == len(list(learner.parameters()))


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("decay", [0.75, 0.9])
def test_layer_decay_against_the_published_rule(last_norm, decay):
    """d ** (L + 1 - i), where i is read off the name: embedding and positions 0, block k k + 1, all behind L + 1.

    An encoder without a last norm must not move its layers by one.
    """
    depth = 4
    backbone = VisionTransformer(
        "tiny", dim=32, depth=depth, heads=2, last_norm=last_norm, positions="learned", made_for=(4, 16, 16),
        class_token=True,
    )  # fmt: skip
    learner = Supervised(backbone, classes=5, ema=0.9)
    optimiser = adamw(learner, "main", weight_decay=0.05, betas=(0.9, 0.999), layer_decay=decay)
    scales = {id(p): group["scale"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in learner.named_parameters():
        if name.startswith("ema."):
            assert id(parameter) not in scales
            continue
        words = name.split(".")
        if words[:2] == ["backbone", "blocks"]:
            layer = int(words[2]) + 1
        elif words[:2] in (["backbone", "embed"], ["backbone", "place"], ["backbone", "class_token"]):
            layer = 0
        else:
            layer = depth + 1
        assert scales[id(parameter)] == pytest.approx(decay ** (depth + 1 - layer)), name
