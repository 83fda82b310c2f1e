"""All that changes while a learner is trained: saved whole, restored whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import dist
from tubelet.checkpoint import latest_state, replace_folder, save_backbone, save_state, save_weights, settle_folder
from tubelet.learner import Learner
from tubelet.log import say
from tubelet.types import TubeletError


class RunState:
    """A learner, its optimisers and how far they are, tied to the folder that they are saved in.

    Args:
        identity: what makes two runs the same; a checkpoint with another identity is refused.
        about: written into backbone.json.
    """

    def __init__(
        self,
        out: Path,
        learner: Learner,
        optimisers: dict[str, torch.optim.AdamW],
        identity: dict[str, Any],
        about: dict[str, Any],
    ) -> None:
        self.out, self.learner, self.optimisers = out, learner, optimisers
        self.identity, self.about = identity, about
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.unreadable: dict[str, str] = {}
        self.unreadable_rows: set[int] = set()
        self.best: float | None = None
        """The number that the weights in ``out/best`` were chosen by."""

    def save(self) -> None:
        """Writes a checkpoint to go on from, and the weights to use. Every process must call it."""
        random_states = dist.gather(_random_state())
        if dist.is_main():
            self._write(random_states)
        dist.barrier()  # a process that leaves earlier may have the first one killed while it writes

    def _write(self, random_states: list[dict[str, Tensor]]) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "optimisers": {phase: optimiser.state_dict() for phase, optimiser in self.optimisers.items()},
            "random": random_states,
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "unreadable": self.unreadable,
            "unreadable_rows": sorted(self.unreadable_rows),
        }
        save_state(self.out / "checkpoint.pt", state)
        self._write_weights(self.out)

    def _write_weights(self, folder: Path, **about: Any) -> None:
        averaged = self.learner.exported is not self.learner.backbone
        about = {"step": self.step, "weights": "moving average" if averaged else "as trained", **about, **self.about}
        save_backbone(folder, self.learner.exported, **about)
        save_weights(folder / "learner.safetensors", self.learner)

    def keep_best(self, name: str, value: float) -> None:
        """Keeps the weights of now in ``out/best`` when `value` is higher than theirs. For the first process alone.

        What they were chosen by stands in their backbone.json, and is read from there when the run goes on: so it
        is never older than the weights that it belongs to, and never newer.
        """
        if self.best is not None and not value > self.best:
            return
        with replace_folder(self.out / "best") as fresh:
            self._write_weights(fresh, chosen_by=name, value=value)
            if (self.out / "recipe.yaml").exists():
                shutil.copy(self.out / "recipe.yaml", fresh)
        self.best = value
        say(f"best so far: {name} {value:.4f} at step {self.step}, kept in {self.out / 'best'}")

    def restore(self) -> None:
        """Goes back to the newest readable checkpoint, if there is one.

        Raises:
            TubeletError: the checkpoint is of a run with other settings or data.
        """
        state = latest_state(self.out)
        if dist.is_main():
            self.best = self._best(started=state is not None)
        if state is None:
            return
        for name, value in self.identity.items():
            theirs = state["identity"].get(name)
            if theirs != value:
                change = "other videos in its manifest" if name == "data" else f"{name} {theirs}, not {value}"
                raise TubeletError(
                    f"{self.out} holds a run with {change}: choose another folder with --out, "
                    "or go back to the settings and data that it was started with"
                )
        self.learner.load_state_dict(state["learner"])
        for phase, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][phase])
        self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]
        self.unreadable = dict(state["unreadable"])
        self.unreadable_rows = set(state.get("unreadable_rows", ()))  # a checkpoint of before has none
        random_states = state["random"]
        _restore_random(random_states[dist.rank() % len(random_states)])

    def _best(self, started: bool) -> float | None:
        """What the weights in ``out/best`` were chosen by; those of an earlier run, of which no checkpoint is, go."""
        settle_folder(self.out / "best")
        if not started:
            shutil.rmtree(self.out / "best", ignore_errors=True)
        about = self.out / "best" / "backbone.json"
        return json.loads(about.read_text(encoding="utf-8"))["value"] if about.exists() else None


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
