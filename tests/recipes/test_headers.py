"""What every packaged recipe says of itself before its settings: the commands, the cost, the numbers."""

import tomllib
from pathlib import Path

import pytest

from headers import NAMES, PUBLISHED, commands, facts, header
from tubelet import chain, cli, command, recipe
from tubelet.train import schedule


@pytest.fixture
def parsed(monkeypatch) -> list[tuple]:
    """What the commands `train` and `evaluate` were asked, in place of doing it."""
    asked: list[tuple] = []
    for name in ("train", "evaluate"):
        known = command.COMMANDS[name]
        monkeypatch.setitem(
            command.COMMANDS, name, known._replace(action=lambda args, dotted, n=name: asked.append((n, args, dotted)))
        )
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_the_header_has_a_title_commands_cost_and_both_numbers(name):
    title, *rest = header(name)
    assert title.endswith(".") and rest[0] == "" and len(title) < 117
    assert all(word in " ".join(rest) for word in ("Cost: ", "Published: ", "Ours: "))
    assert any(f"train {name}" in " ".join(words) for words in commands(name))
    if "/" in name:
        ours = "docs/RESULTS.md, section Comparison of methods." if name.startswith("tiny/") else "not run here."
        assert facts(name)["Ours"] == ours and "Source" in facts(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_header_are_understood(name, parsed, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "backbone.json").write_text('{"backbone": {"name": "vit"}, "clip": {"frames": 16}}')
    for words in commands(name):
        words = words[words.index("tubelet") + 1 :]
        if words[0] not in ("train", "evaluate"):
            continue
        command.dispatch(words)
        asked, args, dotted = parsed.pop()
        if asked == "evaluate":
            assert args.test_clips > 1 and (args.run.as_posix() == default_folder(name) or "/" not in name)
            continue
        there = ["--backbone.init", str(run)] if "--backbone.init" in dotted else []  # the last of two wins
        path = chain.find(args.recipe)
        resolved = chain.load(path, dotted) if path else recipe.load(args.recipe, [*dotted, *there])
        runs = resolved.preview() if isinstance(resolved, chain.Chain) else [resolved]
        assert args.recipe == resolved.source == name and not any(run.missing() for run in runs)
        assert f"runs/{resolved.name}" == default_folder(name)


def default_folder(name: str) -> str:
    """Of a run whose --out is not given: one level below runs."""
    return f"runs/{name.replace('/', '-')}"


@pytest.mark.parametrize("name", [name for name in NAMES if "/finetune" in name])
def test_what_a_fine_tuning_starts_from_is_the_folder_of_another_recipe(name):
    words = next(words for words in commands(name) if "train" in words)
    start = words[words.index("--backbone.init") + 1]
    if name == "v1/finetune_ssv2_large_30e":  # its pre-training was not published
        assert start == "runs/v1-pretrain_ssv2_large_2400e"
    else:  # as it is, or converted on the way
        converted = {words[3]: words[2] for words in commands(name) if words[1] == "convert"}
        assert converted.get(start, start) in {default_folder(other) for other in NAMES}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("presets/")])
def test_a_preset_says_what_a_step_is_and_its_passes_are_whole(name):
    made = recipe.load(name)
    batch, repeats = made.train["batch"], made.data["repeats"]
    step = schedule.StepSize(batch, repeats, 8 if name.endswith("8gpu") else 1, made.train["micro_batch"])
    said = facts(name)["Step"]
    assert said.startswith(f"{batch} clips a step = {step.videos} videos x {repeats}; peak rate ")
    assert said.endswith(f" x {step.videos} / 256 = {step.rate(made.train['lr']):g}.")
    in_one_pass = batch // step.processes // step.passes
    assert f": {in_one_pass} clips x " in facts(name)["Memory"]


def test_every_file_is_packed_and_listed_with_its_folder(capsys):
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tubelet"]
    package = recipe.FOLDER.parent
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    assert {recipe.find(name) for name in NAMES} <= packed and len(PUBLISHED) > 40
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"recipes:", "recipes in v1:", "recipes in v2:", "recipes in presets:"} <= set(lines)
    lines = lines[lines.index("recipes:") + 1 : lines.index("ablations:")]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == NAMES
