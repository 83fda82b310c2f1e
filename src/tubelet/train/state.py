"""All that changes while a learner is trained: saved whole, restored whole, by any number of processes."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor

from tubelet import dist, draws
from tubelet.checkpoint import read_about, replace_folder, save_weights, settle_folder, tensors_hash, write_json
from tubelet.learner import Learner
from tubelet.log import say, warn
from tubelet.train.checkpoints import Checkpoint, Checkpoints
from tubelet.train.migrate import has_old, migrate
from tubelet.train.saving import Saver
from tubelet.types import TubeletError

ROLL_BACKS = 3
"""How often in a row a run goes back before it gives up."""
_WENT_BACK = "went-back.json"
"""Beside the checkpoints: where the last roll-back went, until the checkpoint after it is there."""


class RunState:
    """A learner, its optimisers and how far they are, tied to the folder that they are saved in.

    Args:
        identity: what makes two runs the same; a checkpoint with another identity is refused.
        about: written into backbone.json.
        keep: how many checkpoints stay.
        in_background: write them while training goes on.
    """

    def __init__(
        self,
        out: Path,
        learner: Learner,
        optimisers: dict[str, torch.optim.Optimizer],
        identity: dict[str, Any],
        about: dict[str, Any],
        keep: int = 2,
        in_background: bool = True,
    ) -> None:
        self.out, self.learner, self.optimisers = out, learner, optimisers
        self.identity, self.about = identity, about
        self.step = 0
        """Steps tried; those that were skipped count."""
        self.passed_over = 0
        """Steps of data that roll-backs have passed over: step s trains on the data of step s + passed_over."""
        self.skipped = self.in_a_row = 0
        """Steps that were not taken since something was not finite: in all, and the last ones."""
        self.seconds = 0.0
        self.loss = math.nan
        self.stretch: dict[str, list[float]] = {}
        """What was measured since the last line of the log."""
        self.unreadable: dict[str, str] = {}
        self.unreadable_rows: set[int] = set()
        self.best: float | None = None
        """The number that the weights in ``out/best`` were chosen by."""
        self.roll_backs = 0
        """In a row: since the last checkpoint with a good step behind it."""
        self.exported = next(name for name, module in learner.named_modules() if module is learner.exported)
        self.checkpoints = Checkpoints(out / "checkpoints", keep)
        self.saver = Saver(self.checkpoints, self._export, in_background)

    @property
    def position(self) -> int:
        """The step of the data order that comes next."""
        return self.step + self.passed_over

    def save(self) -> None:
        """Begins to write a checkpoint to go on from, and then the weights to use. Every process must call it."""
        if not self.in_a_row:
            self.roll_backs = 0
        facts = {
            "step": self.step, "passed_over": self.passed_over, "skipped": self.skipped, "in_a_row": self.in_a_row,
            "roll_backs": self.roll_backs, "seconds": self.seconds, "loss": self.loss, "stretch": self.stretch,
            "identity": self.identity, "processes": dist.world_size(), "unreadable": self.unreadable,
            "unreadable_rows": sorted(self.unreadable_rows),
        }  # fmt: skip
        self.saver.save(self._tensors() | _random_state(), facts)

    def close(self) -> None:
        """Waits for the last checkpoint.

        Raises:
            TubeletError: it could not be written.
        """
        self.saver.wait()
        if self.saver.failure is not None:
            raise TubeletError(
                f"step {self.step} could not be saved ({self.saver.failure}): make room, or make "
                f"{self.out} writable, and give the same command again; it goes on from the last checkpoint there"
            )

    def _tensors(self) -> dict[str, Tensor]:
        """The live tensors of learner and optimisers, by the names that they are saved under."""
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        for phase, optimiser in self.optimisers.items():
            for name, parameter in self.learner.parameters_of(phase):
                for key, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"optimisers.{phase}.{name}.{key}"] = value
        return tensors

    def _export(self, checkpoint: Checkpoint) -> None:
        """Writes the weights to use, of a checkpoint that is on the disk: for the first process alone."""
        weights = checkpoint.read("learner.")
        prefix = f"{self.exported}."
        save_weights(self.out / "learner.safetensors", weights)
        backbone = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        save_weights(self.out / "backbone.safetensors", backbone)
        averaged = self.learner.exported is not self.learner.backbone
        write_json(
            self.out / "backbone.json",
            {
                "backbone": self.learner.exported.config, "step": checkpoint.facts["step"],
                "weights": "moving average" if averaged else "as trained", "weights_hash": tensors_hash(backbone),
                **self.about,
            },
        )  # fmt: skip

    def keep_best(self, name: str, value: float) -> None:
        """Keeps the weights of now in ``out/best`` when `value` is higher than theirs. For the first process alone.

        They are those of the checkpoint of now. What they were chosen by stands in their backbone.json, and is read
        from there when the run goes on: so it is never older than the weights that it belongs to, and never newer.
        """
        if self.best is not None and not value > self.best:
            return
        self.saver.wait()
        if self.saver.failure is not None or read_about(self.out)["step"] != self.step:
            warn(f"{name} {value:.4f} is the best so far, and its weights could not be kept")
            return
        try:
            with replace_folder(self.out / "best") as fresh:
                for file in ("backbone.safetensors", "learner.safetensors", "recipe.yaml"):
                    if (self.out / file).exists():
                        shutil.copy(self.out / file, fresh)
                write_json(fresh / "backbone.json", {**read_about(self.out), "chosen_by": name, "value": value})
        except OSError as error:
            settle_folder(self.out / "best")
            warn(f"{name} {value:.4f} is the best so far, and its weights could not be kept: {error}")
            return
        self.best = value
        say(f"best so far: {name} {value:.4f} at step {self.step}, kept in {self.out / 'best'}")

    def restore(self) -> None:
        """Goes back to the newest readable checkpoint, if there is one.

        Raises:
            TubeletError: the checkpoint is of a run with other settings or data.
        """
        found = dist.from_first(self._newest)
        if dist.is_main():
            self.best = self._best(started=found is not None)
        if found is None:
            return
        facts = found.facts
        for name, value in self.identity.items():
            theirs = facts["identity"].get(name)
            if theirs != value:
                change = "other videos in its manifest" if name == "data" else f"{name} {theirs}, not {value}"
                raise TubeletError(
                    f"{self.out} holds a run with {change}: choose another folder with --out, "
                    "or go back to the settings and data that it was started with"
                )
        self._read(found)
        self.saver.written = facts["step"]
        self.step, self.seconds, self.loss = facts["step"], facts["seconds"], facts["loss"]
        # format 1 had none of these
        self.passed_over, self.roll_backs = facts.get("passed_over", 0), facts.get("roll_backs", 0)
        self.skipped, self.in_a_row = facts.get("skipped", 0), facts.get("in_a_row", 0)
        self.stretch = facts.get("stretch", {})
        self.unreadable, self.unreadable_rows = dict(facts["unreadable"]), set(facts["unreadable_rows"])
        went_back = dist.from_first(self._last_roll_back)
        if went_back.get("step") == self.step:  # a kill came before the checkpoint after it
            self.passed_over, self.roll_backs = went_back["passed_over"], went_back["roll_backs"]
            self.skipped = went_back["skipped"]
        dist.from_first(lambda: self._settle_exports(found))

    def roll_back(self) -> None:
        """Goes back to the last checkpoint from before the steps that failed, and passes over the data that came since.

        Where going back has just been tried, to the one before it, where there is one.

        Raises:
            TubeletError: there is no checkpoint to go back to, or going back has not helped several times.
        """
        reached, skipped, seconds, roll_backs = self.position, self.skipped, self.seconds, self.roll_backs + 1
        self.saver.wait()
        if roll_backs > ROLL_BACKS:
            self._give_up(f"going back {ROLL_BACKS} times did not help")
        step = dist.from_first(partial(self._make_newest, another=roll_backs > 1))
        if step is None:
            self._give_up("there is no checkpoint to go back to")
        told = {"step": step, "passed_over": reached - step, "roll_backs": roll_backs, "skipped": skipped}
        dist.from_first(lambda: self._tell_roll_back(told))
        self.restore()
        self.passed_over, self.roll_backs, self.skipped, self.seconds = reached - step, roll_backs, skipped, seconds
        say(
            f"went back to the checkpoint of step {step}; {self.passed_over} steps of data are passed over in all. "
            f"Checkpoints of later steps, if there were any, are in {self.checkpoints.folder / 'aside'}",
            style="bold yellow",
        )

    def _give_up(self, why: str) -> NoReturn:
        raise TubeletError(
            f"loss or gradient is not finite step after step, and {why} (step {self.step}); the videos of these steps "
            f"are listed in {self.out / 'not_finite.jsonl'}. Try a lower train.lr, train.clip_norm 1.0 or "
            "train.precision float32, in another folder"
        )

    def _make_newest(self, another: bool) -> int | None:
        """Sets aside what is newer than the checkpoint to go back to; answers its step, or None where there is none.

        Those that were written among failing steps have the weights of the one before, and are not worth going back to.
        """
        whole = list(self.checkpoints.whole())
        good = [checkpoint for checkpoint in whole if not checkpoint.facts.get("in_a_row")]
        if not good:
            return None
        chosen = good[1] if another and len(good) > 1 else good[0]
        for newer in whole[: whole.index(chosen)]:
            self.checkpoints.set_aside(newer)
        return chosen.facts["step"]

    def _tell_roll_back(self, told: dict[str, int]) -> None:
        """Writes down what a kill before the next checkpoint would make forgotten."""
        try:
            write_json(self.checkpoints.folder / _WENT_BACK, told)
        except OSError as error:
            warn(f"{self.checkpoints.folder / _WENT_BACK} cannot be written: {error}")

    def _last_roll_back(self) -> dict[str, int]:
        """Empty where there was none."""
        path = self.checkpoints.folder / _WENT_BACK
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _newest(self) -> Checkpoint | None:
        found = self.checkpoints.newest()
        if found is None and has_old(self.out):
            return migrate(self.out, self.checkpoints, self._parameter_names())
        return found

    def _parameter_names(self) -> dict[str, list[str]]:
        """Phase -> the names of its parameters, in the order in which its optimiser has them."""
        names = {}
        for phase, optimiser in self.optimisers.items():
            called = {id(parameter): name for name, parameter in self.learner.parameters_of(phase)}
            names[phase] = [called[id(p)] for group in optimiser.param_groups for p in group["params"]]
        return names

    def _read(self, found: Checkpoint) -> None:
        """Fills learner, optimisers and random generators."""
        saved = found.tensors()
        for phase, optimiser in self.optimisers.items():
            optimiser.state.clear()
            for name, parameter in self.learner.parameters_of(phase):
                prefix = f"optimisers.{phase}.{name}."
                for full in (key for key in saved if key.startswith(prefix) and "." not in key[len(prefix) :]):
                    empty = torch.zeros_like(parameter) if saved[full] == parameter.shape else torch.zeros(saved[full])
                    optimiser.state[parameter][full[len(prefix) :]] = empty.detach().to(parameter.device)
        state = self._tensors()
        generators = _random_state() if found.facts["processes"] == dist.world_size() else {}
        problems = [f"missing {name}" for name in sorted(state.keys() - saved.keys())]
        problems += [f"unexpected {n}" for n in sorted(saved.keys() - state.keys()) if not n.startswith("random.")]
        problems += [
            f"{name} is {tuple(saved[name])}, not {tuple(tensor.shape)}"
            for name, tensor in state.items()
            if name in saved and saved[name] != tensor.shape
        ]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise TubeletError(f"{found.folder} does not fit this learner: {'; '.join(problems[:3])}{more}")
        generators = {name: tensor for name, tensor in generators.items() if name in saved}
        found.read_into(state | generators)
        if generators:
            _restore_random(generators)
        else:  # another number of processes: each draws anew, and none like another
            torch.manual_seed(draws.key(self.identity["seed"], "process", dist.rank(), found.facts["step"]))

    def _settle_exports(self, found: Checkpoint) -> None:
        """A kill may have come between a checkpoint and the weights to use: then they are written now."""
        if _about(self.out).get("step") != found.facts["step"]:
            try:
                self._export(found)
            except (OSError, TubeletError, SafetensorError) as error:
                warn(f"the weights of step {found.facts['step']} could not be written to {self.out}: {error}")

    def _best(self, started: bool) -> float | None:
        """What the weights in ``out/best`` were chosen by; those of an earlier run, of which no checkpoint is, go."""
        settle_folder(self.out / "best")
        if not started:
            shutil.rmtree(self.out / "best", ignore_errors=True)
        return _about(self.out / "best").get("value")


def _about(folder: Path) -> dict[str, Any]:
    """What stands beside the weights in a folder: nothing where there are none, or where that is damaged."""
    try:
        return json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _random_state() -> dict[str, Tensor]:
    """The generators of this process, by the names that they are saved under."""
    states = {f"random.{dist.rank()}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random.{dist.rank()}.cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states[f"random.{dist.rank()}.cpu"])
    cuda = states.get(f"random.{dist.rank()}.cuda")
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
