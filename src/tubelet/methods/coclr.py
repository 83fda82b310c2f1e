"""CoCLR: a network of pictures and one of optical flow say in turn to each other which videos are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet import draws
from tubelet.checkpoint import load_learner
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.heads import Projector, embedded
from tubelet.nn.losses import contrast, products
from tubelet.nn.memory import Ema, Frozen, Queue
from tubelet.nn.settings import check_positive, check_share
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("coclr")
class CoCLR(Learner):
    """Self-supervised co-training (Han, Xie, Zisserman, NeurIPS 2020, arXiv 2010.09709, section 2.3).

    Two networks, of pictures and of flow, are first trained alone by InfoNCE with a queue (`moco`). Then one of them
    learns while the other, the oracle, is frozen: of the clips in the queue those nearest to a query in the *oracle's*
    eyes are its positives besides its own key, and MIL-NCE tells positives from the rest in its own. Then they change
    places: a chain of runs (recipe tiny/coclr). This learner trains the network of ``batch["video"]``, and the oracle
    looks at ``batch["flow"]``; `data.flow` exchanged lets the network of flow learn.

    As in the authors' code: videos of the same source are never mined, since they would take all the places, but count
    as positives; a query's own key, which is nearest anyway after the first stage, is in nine of ten cases no positive
    of its, but one of the rest; nothing is learnt until the queue is full; the teacher begins as a copy of the network.
    There one draw decides on all own keys of a step, here each clip has its own. The oracle sees the clips of the
    second view as they are loaded, cropped and mirrored alike; pictures are not changed in colour for it.

    Args:
        backbone: what turns clips into tokens.
        oracle: folder of the run of the other network; its projection head is used where it has one.
        mined: how many of the queue are made positives of a query.
        drop_own: how often a query's own key is not among its positives.
        queue: how many keys are kept.
        momentum: share of the teacher that is kept at a step.
        dim: width of the vectors that are compared.
        hidden: width of the head's inner layers.
        layers: linear maps of the head.
        temperature: the cosines are divided by it.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    modalities = ("video", "flow")
    views = 2

    def __init__(
        self,
        backbone: Backbone,
        oracle: str,
        mined: int = 5,
        drop_own: float = 0.9,
        queue: int = 2048,
        momentum: float = 0.999,
        dim: int = 128,
        hidden: int = 1024,
        layers: int = 2,
        temperature: float = 0.07,
        strength: Literal["none", "moco", "slowfast"] = "moco",
    ) -> None:
        super().__init__()
        if not 1 <= mined <= queue:
            raise TubeletError(f"learner.mined must be 1 or more and at most learner.queue, {queue}, not {mined}")
        check_share(drop_own=drop_own, momentum=momentum)
        check_positive(temperature=temperature)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, layers, norm=False)
        self.teacher = Ema(self.parts, momentum)
        known = load_learner(Path(oracle))
        projector = getattr(known, "head", None)
        head = projector if isinstance(projector, Projector) else nn.Identity()
        self.oracle = Frozen(nn.ModuleDict({"backbone": known.backbone, "head": head}))
        self.queue = Queue(queue, keys=dim, oracle_keys=_width(head, known.backbone), group=0)
        self.mined, self.drop_own, self.temperature, self.strength = mined, drop_own, temperature, strength

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What the teacher is an average of."""
        return {"backbone": self.backbone, "head": self.head}

    def forward(self, batch: Batch, phase: str) -> Output:
        first, second = (
            augmented(video, batch["key"], f"view {view}", self.strength) for view, video in enumerate(batch["video"])
        )
        with torch.no_grad():
            keys = embedded(second, self.teacher)  # B D
            oracle_keys = embedded(batch["flow"][1], self.oracle.network)  # B E
        self.queue.remember(keys=keys, oracle_keys=oracle_keys, group=batch["group"])
        if not self.queue.full:
            return Output(None)
        siblings = self.queue.get_buffer("group") == batch["group"][:, None]  # B K
        mined, likeness = self.mine(oracle_keys, siblings)
        own = draws.uniform(batch["key"], 1, "own key") >= self.drop_own  # B 1
        losses = self.compare(embedded(first, self), keys, own, siblings | mined)
        return Output(losses.mean(), {"likeness": likeness.mean()})

    def mine(self, oracle_keys: Tensor, siblings: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of the queue that are nearest in the oracle's eyes, siblings aside: B K bool; and their cosines."""
        cosines = products(oracle_keys, self.queue.get_buffer("oracle_keys"))  # B K
        values, rows = cosines.masked_fill(siblings, -torch.inf).topk(self.mined, dim=1)  # B mined
        found = torch.zeros_like(siblings).scatter(1, rows, values > -torch.inf)
        return found, values.clamp(min=-1)

    def compare(self, queries: Tensor, keys: Tensor, own: Tensor, positive: Tensor) -> Tensor:
        """MIL-NCE of queries (B D) with their own keys (B D) and the queue: B.

        Args:
            own: B 1 bool, whether its own key is a positive of a query. Where there is no other, it is.
            positive: B K bool, of the queue.
        """
        mine = torch.eye(len(keys), dtype=torch.bool, device=keys.device)  # B B
        wanted = own | ~positive.any(dim=1, keepdim=True)  # B 1
        return contrast(
            queries,
            torch.cat([keys, self.queue.get_buffer("keys")]),
            torch.cat([mine & wanted, positive], dim=1),
            self.temperature,
            ignored=torch.cat([~mine, torch.zeros_like(positive)], dim=1),
        )

    def start_from(self, source: Learner) -> None:
        """Takes the projection head of any learner that has one like it, such as `moco`; the teacher is a copy again.

        Raises:
            TubeletError: it has none, or one of another shape.
        """
        head = getattr(source, "head", None)
        if not isinstance(head, Projector):
            raise TubeletError(f"a {type(source).__name__} has no projection head")
        theirs, ours = ([tuple(p.shape) for p in one.parameters()] for one in (head, self.head))
        if theirs != ours:
            raise TubeletError(
                f"its head has weights {theirs}, and the recipe's {ours}: set learner.hidden, layers and dim to its"
            )
        self.head.load_state_dict(head.state_dict())
        self.teacher.move(self.parts, decay=0.0)

    def before_step(self, now: Now) -> None:
        self.queue.forget()  # what a skipped step left

    def after_step(self, now: Now) -> None:
        self.teacher.move(self.parts)
        self.queue.push()


def _width(head: nn.Module, backbone: Backbone) -> int:
    """Of what an oracle answers."""
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else backbone.dim
