import copy
import math

import pytest
import torch
import torch.nn.functional as F

from directions import Videos, agreement
from oracles import learn, mean, tiny_backbone
from processes import run_processes
from tubelet import dist, registry
from tubelet.learner import Learner, Now
from tubelet.methods.combined import Combined
from tubelet.types import TubeletError

MASKED = {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1}
SWAPPED = {"prototypes": 6, "dim": 8, "hidden": 16, "frozen_epochs": 0}
DENSE = {**MASKED, "target_frames": "denser"}
CLUSTERED = {"clusters": 3, "components": 4}
PARTS = {"videomae": {**MASKED, "weight": 1.0}, "swav": {**SWAPPED, "weight": 0.5}}
SMALL = {
    "combined": {"learner": {"parts": PARTS, "cosine_steps": 2}},
    "combined, with clusters and more frames": {
        "learner": {"parts": {"denser": {"name": "videomae", **DENSE}, "deepcluster": CLUSTERED}}
    },
}


def combined(parts: dict[str, dict], videos: int = 16, **options) -> Combined:
    torch.manual_seed(0)
    return Combined(tiny_backbone(background="remove"), parts, videos, **options)


def alone(model: Combined, label: str, name: str, options: dict) -> Learner:
    """The learner of a part by itself, with the weights that the part has."""
    learner = registry.build("methods", name, backbone=copy.deepcopy(model.backbone), **options)
    learner.load_state_dict(model.parts[label].state_dict(), strict=False)
    return learner


def now(step: int = 0, epoch: int = 0, batch: dict | None = None) -> Now:
    return Now(step, epoch, step == 0, 0.0, lambda: iter([batch]))


def test_loss_and_gradients_are_the_weighted_sum_of_separate_runs():
    model = combined(PARTS)
    batch = Videos(8).batch(torch.arange(8), 0, views=2)
    model.before_step(now())
    output = model(batch, "main")
    output.loss.backward()
    masked, swapped = alone(model, "videomae", "videomae", MASKED), alone(model, "swav", "swav", SWAPPED)
    first = masked({**batch, "video": batch["video"][:1]}, "main").loss
    second = swapped(batch, "main").loss
    torch.testing.assert_close(output.loss, first + 0.5 * second)
    torch.testing.assert_close(output.metrics["videomae_loss"], first.detach())
    torch.testing.assert_close(output.metrics["swav_loss"], second.detach())
    assert "swav_agreement" in output.metrics
    first.backward()
    second.backward()
    for (name, own), one, other in zip(
        model.backbone.named_parameters(), masked.backbone.parameters(), swapped.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, one.grad + 0.5 * other.grad, msg=name)
    for label, learner, weight in (("videomae", masked, 1.0), ("swav", swapped, 0.5)):
        theirs = dict(learner.named_parameters())
        for name, own in model.parts[label].named_parameters():
            torch.testing.assert_close(own.grad, weight * theirs[name].grad, msg=name)


def test_the_cosine_is_that_of_the_gradients_on_the_backbone():
    model = combined(PARTS, cosine_steps=3)
    batch = Videos(8).batch(torch.arange(8), 0, views=2)
    measured = []
    for step in range(6):
        model.before_step(now(step))
        measured.append("cosine_videomae_swav" in model(batch, "main").metrics)
    assert measured == [False, False, True] * 2
    found = model(batch, "main").metrics["cosine_videomae_swav"]
    gradients = []
    for label in PARTS:
        model.zero_grad()
        part = model.parts[label]
        part(model.given(part, batch), "main").loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.backbone.parameters()]))
    torch.testing.assert_close(found, F.cosine_similarity(*gradients, dim=0))
    with torch.no_grad():  # as when its health is looked at
        assert "cosine_videomae_swav" not in model(batch, "main").metrics


def test_measuring_changes_no_gradient_with_checkpointing_either():
    batch = Videos(8).batch(torch.arange(8), 0, views=2)
    found = []
    for cosine_steps, checkpointing in ((0, False), (1, False), (1, True)):
        torch.manual_seed(0)
        model = Combined(tiny_backbone(background="remove", checkpointing=checkpointing), PARTS, 16, cosine_steps)
        model.before_step(now())
        output = model(batch, "main")
        output.loss.backward()
        assert ("cosine_videomae_swav" in output.metrics) == bool(cosine_steps)
        found.append([p.grad for p in model.parameters()])
    for plain, measured, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, measured)
        torch.testing.assert_close(plain, checkpointed)


def test_parts_that_are_one_agree_and_opposites_conflict():
    batch = Videos(8).batch(torch.arange(8), 0)
    model = combined({"one": {"name": "videomae", **MASKED}, "other": {"name": "videomae", **MASKED}}, cosine_steps=1)
    model.parts["other"].load_state_dict(model.parts["one"].state_dict())
    model.before_step(now())
    assert model(batch, "main").metrics["cosine_one_other"] == pytest.approx(1.0, abs=1e-4)
    forward = model.parts["other"].forward
    model.parts["other"].forward = lambda batch, phase: forward(batch, phase)._replace(loss=-forward(batch, phase).loss)
    assert model(batch, "main").metrics["cosine_one_other"] == pytest.approx(-1.0, abs=1e-4)


def cosines_of(part: slice | None) -> float:
    """The cosine that a process measures, of its half of the batch."""
    torch.set_num_threads(1)
    dist.start()
    model = combined(PARTS, cosine_steps=1)
    batch = Videos(8).batch(dist.own_part(torch.arange(8)), 0, views=2)
    model.before_step(now())
    found = float(model(batch, "main").metrics["cosine_videomae_swav"])
    dist.stop()
    return found


def test_two_processes_measure_what_one_does():
    one = cosines_of(None)
    assert run_processes(cosines_of, 2, None) == pytest.approx([one, one], rel=1e-4)


def test_the_backbone_is_saved_and_trained_once():
    model = combined(PARTS)
    names = list(model.state_dict())
    assert sum(name.endswith("embed.weight") for name in names) == 1
    assert not any("backbone" in name for name in names if not name.startswith("backbone."))
    parameters = [id(p) for _, p in model.parameters_of("main")]
    assert len(parameters) == len(set(parameters))
    twin = copy.deepcopy(model)
    assert all(part.backbone is twin.backbone for part in twin.parts.values()) and twin.backbone is not model.backbone


def test_what_no_part_trains_is_not_trained():
    """The shift of the last norm is taken away by SwAV's first batch norm, and not by a decoder."""
    unseen = "backbone.norm.bias"
    assert unseen not in dict(combined({"swav": SWAPPED}).parameters_of("main"))
    assert unseen in dict(combined(PARTS).parameters_of("main"))
    assert len(combined(PARTS).parameters_of("main")) == len(list(combined(PARTS).named_parameters()))


def test_it_needs_what_its_parts_need():
    model = combined({"swav": SWAPPED, "denser": {"name": "videomae", **DENSE}})
    assert (model.views, model.density, model.modalities) == (2, 2, ("video",)) and model.compares_clips
    clip = torch.rand(4, 3, 16, 32, 32)
    times = torch.arange(16).expand(4, -1) / 8
    batch = {"video": [clip, clip + 1], "times": [times, times + 1], "id": torch.arange(4), "key": torch.arange(4)}
    batch["flow"] = [clip + 2, clip + 3]
    swapped, dense = (model.given(part, batch) for part in model.parts.values())
    assert len(swapped["video"]) == 2 and torch.equal(swapped["video"][1], clip[:, :, ::2] + 1)
    assert torch.equal(swapped["times"][1], times[:, ::2] + 1)
    assert torch.equal(swapped["flow"][1], clip[:, :, ::2] + 3) and torch.equal(dense["flow"][0], clip + 2)
    assert len(dense["video"]) == len(dense["times"]) == 1 and torch.equal(dense["video"][0], clip)
    assert torch.equal(batch["video"][0], clip)


def test_a_part_goes_through_the_videos_as_it_would_alone():
    """DeepCluster sees every second frame of clips that are as dense as another part needs."""
    videos = Videos(16)
    batch = videos.all()
    dense = {**batch, "video": [batch["video"][0].repeat_interleave(2, dim=2)]}
    model = combined({"denser": {"name": "videomae", **DENSE}, "deepcluster": CLUSTERED})
    model.before_step(now(batch=dense))
    single = alone(model, "deepcluster", "deepcluster", {**CLUSTERED, "videos": 16})
    single.before_step(now(batch=batch))
    assert torch.equal(model.parts["deepcluster"].assignment, single.assignment)
    assert (single.assignment >= 0).all() and model.training


def test_a_part_that_waits_has_a_gradient_of_zero():
    model = combined({"videomae": MASKED, "deepcluster": CLUSTERED}, cosine_steps=1)
    batch = Videos(16).batch(torch.arange(8), 0)
    model.measuring = True
    output = model(batch, "main")
    output.loss.backward()
    assert "deepcluster_loss" not in output.metrics
    assert not any("cosine" in name for name in output.metrics)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any() != name.startswith("parts.deepcluster."), name
    assert combined({"deepcluster": CLUSTERED})(batch, "main").loss is None


def test_a_part_solves_its_task_beside_another():
    videos = Videos(128)
    model = combined({**PARTS, "swav": {**SWAPPED, "prototypes": 4, "dim": 16, "hidden": 64, "strength": "none"}})
    told = learn(model, videos.batches(32, views=2), steps=60)
    swapped, batch = model.parts["swav"], videos.all()
    with torch.no_grad():
        found = swapped.encode(batch["video"][0], batch["key"], "") @ swapped.prototypes.T
    assert agreement(videos.direction, found.argmax(dim=1)) > 0.9
    assert mean(told, "videomae_loss") < told[0]["videomae_loss"]
    assert math.isfinite(told[19]["cosine_videomae_swav"])


def test_clips_too_small_for_a_part_are_refused():
    model = combined({"masked": {"name": "videomae", **MASKED}, "order": {"name": "order_verification", "length": 2}})
    model.check_clip(8, 32, 32)
    with pytest.raises(TubeletError, match=r"5 different frames cannot be taken from a clip of 4: raise data\.frames"):
        model.check_clip(4, 32, 32)


class Critic(Learner):
    phases = ("critic", "generator")


class Near(Learner):
    views, view_times = 2, "near"


class Same(Learner):
    views, view_times = 2, "same"


class Ears(Learner):
    audio_rate = 16000


class OtherEars(Learner):
    audio_rate = 8000


@pytest.fixture
def strange(monkeypatch):
    """Learners that no part can be, or no two parts together."""
    known = {"critic": Critic, "near": Near, "same": Same, "ears": Ears, "others": OtherEars}

    find, make = registry.find, registry.build

    def build(folder, name, **options):
        if name not in known:
            return make(folder, name, **options)
        learner = known[name]()
        learner.backbone = options["backbone"]
        return learner

    monkeypatch.setattr(registry, "build", build)
    monkeypatch.setattr(registry, "find", lambda folder, name: known.get(name) or find(folder, name))


def test_what_cannot_share_a_step_is_refused(strange):
    with pytest.raises(TubeletError, match=r"learner\.parts\.critic: critic learns in phases \(critic, generator\)"):
        combined({"critic": {}})
    with pytest.raises(TubeletError, match=r"near and same need views at different times \(near and same\)"):
        combined({"near": {}, "same": {}})
    assert combined({"near": {}, "again": {"name": "near"}}).view_times == "near"
    with pytest.raises(TubeletError, match=r"ears and others need sound of different rates \(16000 and 8000\)"):
        combined({"ears": {}, "others": {}})
    heard = combined({"near": {}, "ears": {}})
    assert (heard.audio_rate, heard.view_times) == (16000, "near")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, r"learner\.parts names no learner"),
        ({"videomea": {}}, r"no method is called 'videomea'; did you mean 'videomae'\?"),
        ({"videomae": {"ratoi": 0.5}}, r"videomae cannot be made of these settings"),
        ({"videomae": {"decoder_ratio": 2.0}}, r"learner\.parts\.videomae\.decoder_ratio must be in 0\.\.1"),
        ({"swav": {"weight": 0}}, r"learner\.parts\.swav\.weight must be more than 0, not 0"),
        ({"deepcluster": {"clusters": 99}}, r"learner\.parts\.deepcluster\.clusters must be in 2\.\.16"),
        ({"supervised": {}}, r"learner\.parts\.supervised: supervised learns from labels"),
        ({"combined": {"parts": {}}}, r"learner\.parts\.combined is itself combined"),
        ({"forward": {"name": "videomae"}}, r"learner\.parts cannot have the label 'forward'"),
    ],
)
def test_mistakes_are_named_with_their_part(parts, said):
    with pytest.raises(TubeletError, match=said):
        combined(parts)
