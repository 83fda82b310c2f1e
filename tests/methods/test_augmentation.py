import pytest
import torch
from torch import Tensor

from oracles import learn, mean, moving_squares, tiny_backbone
from tubelet import draws
from tubelet.methods.augmentation import Augmentation
from tubelet.types import Batch, TubeletError

ALL = ("rotation", "colour", "blur", "noise")
SMALL = {"augmentation": {}, "augmentation, all": {"learner": {"operations": ALL, "severities": 3}}}


def squares(count=128, seed=0):
    return moving_squares(count, seed, frames=2, side=14.0).batch


def some(pool: Batch, step: int, count: int = 32) -> Batch:
    """Clips of the pool, with severities that are drawn anew."""
    rows = torch.arange(count * step, count * (step + 1)) % len(pool["key"])
    keys = torch.tensor([draws.key(step, place) for place in range(count)])
    return Batch(video=[pool["video"][0][rows]], key=keys)


def test_the_loss_against_its_definition():
    learner = Augmentation(tiny_backbone(), ALL, severities=3).eval()
    batch = squares(count=5)
    losses, right = [], 0
    for clip, key in zip(batch["video"][0], batch["key"][:, None], strict=True):
        severity = {
            name: int(draws.uniform(key, 1, f"augmentation {name}") * count)
            for name, count in zip(ALL, (4, 3, 3, 3), strict=True)
        }
        changed = learner.changed(clip[None], key, {name: torch.tensor([level]) for name, level in severity.items()})
        pooled = learner.backbone(changed).tokens.mean(dim=1)
        for name, level in severity.items():
            logits = learner.heads[name](pooled)[0]
            losses.append(logits.exp().sum().log() - logits[level])
            right += int(logits.argmax() == level)
    output = learner(batch, "main")
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-6, rtol=0)
    assert output.metrics["accuracy"] == pytest.approx(right / 20)


def done(name: str, level: int, video: Tensor) -> Tensor:
    learner = Augmentation(tiny_backbone(), (name,), severities=4)
    keys = torch.arange(len(video))
    return learner.changed(video, keys, {name: torch.full((len(video),), level)})


def test_each_operation_against_its_definition():
    video = 0.2 + 0.2 * torch.rand(2, 3, 4, 16, 16)
    for name in ALL:
        torch.testing.assert_close(done(name, 0, video), video, atol=1e-6, rtol=0)
    torch.testing.assert_close(done("rotation", 1, video), video.transpose(3, 4).flip(3))
    torch.testing.assert_close(done("rotation", 2, video), video.flip(3, 4))
    gain = torch.tensor([1.4, 1.0, 0.6]).view(3, 1, 1, 1)
    torch.testing.assert_close(done("colour", 2, video), gain * video)
    added = done("noise", 1, 0.5 * torch.ones(4, 3, 8, 32, 32)) - 0.5
    assert abs(added.std() - 0.1) < 0.001
    assert abs(added[:, :, 1:].flatten() @ added[:, :, :-1].flatten()) / added.square().sum() < 0.02  # fresh
    point = torch.zeros(1, 3, 2, 24, 24)
    point[..., 12, 12] = 1
    away = torch.arange(24) - 12.0
    bell = torch.exp(-(away / 2).square() / 2)  # the strongest: a deviation of a twelfth of the side
    bell[away.abs() > 6] = 0
    expected = (bell[:, None] * bell / bell.sum() ** 2).expand(1, 3, 2, 24, 24)
    torch.testing.assert_close(done("blur", 3, point), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("operations", "severities"), [(("colour", "noise"), 3), (("blur",), 2)], ids=["colour and noise", "blur"]
)
def test_it_learns_what_was_done(operations, severities):
    learner, pool = Augmentation(tiny_backbone(), operations, severities), squares()
    told = learn(learner, lambda step: some(pool, step), 200)
    for name in operations:
        assert mean(told, f"accuracy_{name}") > 0.95, name
    with torch.no_grad():
        assert learner(squares(seed=1), "main").metrics["accuracy"] > 0.95


def test_where_there_is_nothing_to_see_only_noise_can_be_told():
    """The control: a still clip shows colour and blur as well as a moving one, but a black one shows neither."""
    pool = squares()
    pool["video"] = [torch.zeros_like(pool["video"][0])]
    learner = Augmentation(tiny_backbone())
    learn(learner, lambda step: some(pool, step), 60)
    with torch.no_grad():
        metrics = learner(some(pool, 1000, count=512), "main").metrics
    assert metrics["accuracy_colour"] == pytest.approx(1 / 3, abs=0.065)
    assert metrics["accuracy_blur"] == pytest.approx(1 / 3, abs=0.065)
    assert metrics["accuracy_noise"] > 0.5  # far above chance; 60 steps are too few to learn all of it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operations": ()}, "not none"),
        ({"operations": ("blur", "blur")}, "each once, not blur, blur"),
        ({"operations": ("sharpen",)}, "must name some of rotation, colour, blur and noise, .* not sharpen"),
        ({"severities": 1}, "severities must be 2 or more, not 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(TubeletError, match=words):
        Augmentation(tiny_backbone(), **options)


def test_only_squares_can_be_turned():
    learner = Augmentation(tiny_backbone(), ("rotation",))
    with pytest.raises(TubeletError, match="square clips, not 16 x 32"):
        learner({"video": [torch.rand(2, 3, 8, 16, 32)], "key": torch.arange(2)}, "main")
