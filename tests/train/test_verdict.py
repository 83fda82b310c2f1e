"""What runs of before looked like, in numbers; what a provoked collapse looks like is in test_health."""

from typing import Any

import pytest

from tubelet.train.verdict import verdict

HEALTHY: dict[str, list[float]] = {
    "effective_rank": [5.33, 2.23, 2.02, 1.72, 2.49, 3.30, 4.61],
    "spread": [0.172, 0.061, 0.059, 0.041, 0.119, 0.217, 0.425],
    "dead": [0.0] * 7,
    "loss": [1.252, 1.019, 0.940, 0.869, 0.844, 0.843, 0.837],
}
"""VideoMAE on 72 clips of people waving, 300 steps."""
COLLAPSED: dict[str, list[float]] = {
    "effective_rank": [5.33, 1.47, 1.35, 1.34, 1.17, 1.04, 1.03],
    "spread": [0.172, 0.041, 0.033, 0.032, 0.013, 0.002, 0.002],
    "dead": [0.0, 0.0, 0.0, 0.0, 0.0, 0.055, 0.109],
    "loss": [1.252, 0.990, 0.976, 0.905, 0.915, 0.901, 0.899],
}
"""The same with a hundred times the learning rate: the loss looks well."""


def log(looks: dict[str, list[float]], **trained: list[float | None]) -> list[dict[str, Any]]:
    """Lines as a run logs them: numbers of training, then what was examined."""
    lines: list[dict[str, Any]] = [
        {"step": 20 * index, **{name: values[index] for name, values in trained.items()}}
        for index in range(max(map(len, trained.values()), default=0))
    ]
    count = max(map(len, looks.values()), default=0)
    return lines + [{f"health/{name}": values[i] for name, values in looks.items()} for i in range(count)]


def cut(looks: dict[str, list[float]], count: int) -> dict[str, list[float]]:
    return {name: values[:count] for name, values in looks.items()}


@pytest.mark.parametrize("count", range(8))
def test_nothing_is_said_of_a_healthy_run_at_any_time(count):
    healthy = {"grad_norm": [0.14, 0.05, 0.2, 0.34, 0.31, 0.35, 0.39, 0.45, 0.74, 1.19, 0.96, 0.99, 0.9, 0.97] * 2}
    trained: Any = healthy | {"waiting": [0.3] * 28, "update_ratio": [0.003] * 28}
    assert verdict(log(cut(HEALTHY, count), **trained)) == {}


def test_a_collapse_is_said_when_two_examinations_agree():
    assert verdict(log(cut(COLLAPSED, 6))) == {}
    text = verdict(log(COLLAPSED))["collapse"]
    assert "rank 1.03, spread 0.0020; at the start 5.33 and 0.1720" in text and "train.lr" in text
    assert "collapse" in verdict(log(COLLAPSED), labelled=True)


def test_clips_that_were_one_point_from_the_start_are_not_blamed_on_training():
    still = COLLAPSED | {"spread": [0.0021, *COLLAPSED["spread"][1:-2], 0.002, 0.002]}
    assert verdict(log(still)) == {}


def test_dimensions_that_die_or_are_given_up_are_said_unless_labels_ask_for_no_more():
    dying = HEALTHY | {"dead": [0.0, 0.0, 0.0, 0.0, 0.2, 0.6, 0.7]}
    assert "70% of the embedding's" in verdict(log(dying))["collapse"]
    fading = HEALTHY | {"effective_rank": [5.0, 6.0, 12.0, 12.0, 8.0, 3.9, 3.5]}
    assert "3.5 directions where they used 12.0" in verdict(log(fading))["collapse"]
    for looks in (dying, fading):
        assert verdict(log(looks), labelled=True) == {}


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        ([1.25, 0.9, 0.85, 1.2, 1.22], True),  # nearly all that was gained is lost
        ([1.25, 0.9, 0.85, 1.06, 1.1], False),  # half of it, as against a teacher that moves
        ([1.25, 0.9, 0.85, 0.85, 1.22], False),  # once is not enough
        ([1.25, 0.9, 0.85, 1.0, 1.02], False),
        ([1.0, 1.2, 1.6, 1.7], True),  # nothing was ever gained
        ([1.0, 1.2, 1.4, 1.4], False),  # as where a method's task becomes harder
        ([-0.5, -0.9, -0.95, -0.52, -0.5], True),  # a cosine
        ([-0.02, -0.015, -0.005, -0.005], False),  # one that never moved
        ([1.0, 9.0], False),
    ],
)
def test_a_loss_that_rises_on_fixed_clips_is_said(losses, rises):
    found = verdict(log({"loss": losses}))
    assert ("divergence" in found) is rises
    if rises:
        assert f"is {losses[-1]:.4g}, after {min(losses):.4g} at its best" in found["divergence"]


def test_gradients_updates_and_embeddings_that_explode_are_said():
    usual: list[float | None] = [0.1, None, 0.2, float("nan"), *[0.15] * 10]
    assert verdict(log({}, grad_norm=[*usual, 100, 0.1, 0.1])) == {}  # one spike is no divergence
    assert "usually 0.15" in verdict(log({}, grad_norm=[*usual, 10, 20, 30]))["divergence"]
    assert verdict(log({}, update_ratio=[0.2, 0.004, 0.06, 0.004])) == {}
    assert "by 12.0% of their size" in verdict(log({}, update_ratio=[0.004, 0.06, 0.12]))["divergence"]
    assert "only 25% of the embeddings" in verdict([*log(HEALTHY), {"health/finite": 0.25}])["divergence"]


def test_a_run_that_waits_for_clips_is_said_when_it_has_started():
    assert verdict(log({}, waiting=[0.9] * 5)) == {}  # 80 steps
    assert verdict(log({}, waiting=[0.9] * 9 + [0.1] * 3)) == {}
    text = verdict(log({}, waiting=[0.1] * 9 + [0.8] * 5))["starvation"]
    assert "80% of the time" in text and "train.workers" in text


def test_a_loss_that_is_not_finite_is_said():
    """Fails when it is compared: nothing is more than what is not a number."""
    assert "is not finite" in verdict(log({"loss": [1.0, 0.3, float("nan"), float("nan")]}))["divergence"]
    assert "divergence" in verdict(log({"loss": [float("nan"), 0.3, 9e9, 9e9]}))


def test_the_loss_of_one_of_several_phases_may_rise_and_must_be_finite():
    """A critic that gets better makes its generator's loss rise: that is no divergence."""
    looks = {"loss_critic": [1.0, 0.3, 0.2, 0.2], "loss_generator": [0.7, 0.9, 5.0, 6.0]}
    assert verdict(log(looks)) == {}
    looks["loss_generator"][2:] = [float("inf")] * 2
    assert "is not finite" in verdict(log(looks))["divergence"]
