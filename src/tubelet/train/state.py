"""All that changes while a learner is trained: saved whole, restored whole, by any number of processes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
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
        """Since the last checkpoint that was written."""
        self.exported = next(name for name, module in learner.named_modules() if module is learner.exported)
        self.checkpoints = Checkpoints(out / "checkpoints", keep)
        self.saver = Saver(self.checkpoints, self._export, in_background)

    @property
    def position(self) -> int:
        """The step of the data order that comes next."""
        return self.step + self.passed_over

    def save(self) -> None:
        """Begins to write a checkpoint to go on from, and then the weights to use. Every process must call it."""
        facts = {
            "step": self.step, "passed_over": self.passed_over, "skipped": self.skipped, "in_a_row": self.in_a_row,
            "seconds": self.seconds,
            "loss": self.loss, "stretch": self.stretch, "identity": self.identity, "processes": dist.world_size(),
            "unreadable": self.unreadable, "unreadable_rows": sorted(self.unreadable_rows),
        }  # fmt: skip
        self.saver.save(self._tensors() | _random_state(), facts)
        self.roll_backs = 0

    def close(self) -> None:
        """Waits for the last checkpoint.

        Raises:
            TubeletError: it could not be written.
        """
        self.saver.wait()
        if self.saver.failure is not None:
            raise TubeletError(
                f"the state of step {self.step} could not be written ({self.saver.failure}): make room, or make "
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
        with replace_folder(self.out / "best") as fresh:
            for file in ("backbone.safetensors", "learner.safetensors", "recipe.yaml"):
                if (self.out / file).exists():
                    shutil.copy(self.out / file, fresh)
            write_json(fresh / "backbone.json", {**read_about(self.out), "chosen_by": name, "value": value})
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
        self.passed_over = facts.get("passed_over", 0)
        self.skipped, self.in_a_row = facts.get("skipped", 0), facts.get("in_a_row", 0)
        self.stretch = facts.get("stretch", {})
        self.unreadable, self.unreadable_rows = dict(facts["unreadable"]), set(facts["unreadable_rows"])
        dist.from_first(lambda: self._settle_exports(found))

    def roll_back(self) -> None:
        """Goes back to the last checkpoint, and passes over the data that came since.

        Where going back has not helped yet, to the one before it: that one is set aside.

        Raises:
            TubeletError: there is no checkpoint to go back to, or going back has not helped several times.
        """
        reached = self.position
        self.saver.wait()
        again = self.roll_backs > 0
        found = dist.from_first(lambda: self._to_go_back_to(again))
        if found is None or self.roll_backs == ROLL_BACKS:
            tried = f"going back {ROLL_BACKS} times did not help"
            why = "there is no checkpoint to go back to" if found is None else tried
            raise TubeletError(
                f"loss or gradient is not finite step after step, and {why} (step {self.step}); the videos of these "
                f"steps are listed in {self.out / 'not_finite.jsonl'}. Try a lower train.lr, train.clip_norm 1.0 or "
                "train.precision float32"
            )
        roll_backs, skipped, seconds = self.roll_backs, self.skipped, self.seconds
        self.restore()
        self.passed_over = reached - self.step
        self.roll_backs, self.skipped, self.seconds = roll_backs + 1, skipped, seconds
        say(
            f"went back to the checkpoint of step {self.step}; {self.passed_over} steps of data are passed over in all",
            style="bold yellow",
        )

    def _to_go_back_to(self, again: bool) -> Checkpoint | None:
        """The newest checkpoint (`again`: but one) from before the steps that failed; later ones have its weights."""
        found = self.checkpoints.newest()
        while found is not None and (again or found.facts.get("in_a_row")):
            again = again and found.facts.get("in_a_row", 0) > 0
            self.checkpoints.set_aside(found)
            found = self.checkpoints.newest()
        return found

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
        about = self.out / "backbone.json"
        if not about.exists() or json.loads(about.read_text(encoding="utf-8")).get("step") != found.facts["step"]:
            try:
                self._export(found)
            except Exception as error:
                warn(f"the weights of step {found.facts['step']} could not be written to {self.out}: {error}")

    def _best(self, started: bool) -> float | None:
        """What the weights in ``out/best`` were chosen by; those of an earlier run, of which no checkpoint is, go."""
        settle_folder(self.out / "best")
        if not started:
            shutil.rmtree(self.out / "best", ignore_errors=True)
        about = self.out / "best" / "backbone.json"
        return json.loads(about.read_text(encoding="utf-8"))["value"] if about.exists() else None


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
