"""What a run has saved to go on from."""

from pathlib import Path

from torch import Tensor

from tubelet.train.checkpoints import Checkpoint, Checkpoints


def newest(run: Path) -> Checkpoint:
    found = Checkpoints(run / "checkpoints", keep=2).newest()
    assert found is not None
    return found


def tensors(run: Path) -> dict[str, Tensor]:
    """Learner, optimisers and random generators, whole and by name."""
    return newest(run).read("")
