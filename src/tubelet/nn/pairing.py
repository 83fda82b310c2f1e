"""Losses that bring what belongs together in two modalities together, where either may be missing.

The other clips of the batch, over all processes, are what a clip is told from. A clip of which one side is missing
takes no part: it has no loss, it is not among the negatives, and no gradient reaches it. Where nobody is left the loss
is zero, and so is its gradient for every weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet import dist
from tubelet.nn.losses import contrast, products


def mean_present(losses: Tensor, present: Tensor) -> Tensor:
    """The mean of the losses of those that are present, over all processes.

    It is scaled such that the mean of all processes' answers is that mean.

    Args:
        losses: one for each True of ``present``.
        present: B bool.
    """
    count = dist.total(present.sum().float()).clamp(min=1)
    return losses.sum() * dist.peers() / count


def symmetric(one: Tensor, other: Tensor, present: Tensor, names: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE in both directions, their mean: from one side each clip's other side is to be found, and the reverse.

    CLIP's loss (Radford et al. 2021, figure 3), but for clips of one name, which are right for each other.

    Args:
        one: B D, normalised by the caller where similarity is a cosine.
        other: B D, likewise.
        present: B bool: which clips have both.
        names: B int64: what a clip is called.
    """
    everyone, called = dist.gather_rows(present), dist.gather_rows(names)
    same = names[present][:, None] == called  # P K
    absent = ~everyone.expand_as(same)
    positive = same & ~absent
    ways = ((one, other), (other, one))
    losses = [contrast(a[present], dist.gather_rows(b), positive, temperature, absent) for a, b in ways]  # P each
    return mean_present((losses[0] + losses[1]) / 2, present)


def mil_nce(video: Tensor, texts: Tensor, said: Tensor, names: Tensor, temperature: float = 1.0) -> Tensor:
    """MIL-NCE (Miech et al. 2020, equation 1): of a clip's candidate captions one that fits is enough.

    The negatives of a clip are the other clips' captions for it, and its captions for the other clips, but for those of
    clips of its name. (The published code has the positives among them a second time.)

    Args:
        video: B D, normalised by the caller where similarity is a cosine.
        texts: B P D: the candidates.
        said: B P bool: which of them there are.
        names: B int64: what a clip is called.
    """
    present = said.any(dim=1)  # B
    videos, captions, spoken = (dist.gather_rows(rows) for rows in (video, texts, said))  # K D, K P D, K P
    own = dist.own_part(torch.eye(len(videos), dtype=torch.bool, device=video.device))[present]  # B K
    other = names[present][:, None] != dist.gather_rows(names)  # B K
    per_clip = (-1, captions.shape[1])
    of_clip = products(video[present], captions.flatten(0, 1)).unflatten(1, per_clip) / temperature  # B K P
    of_words = products(texts[present].flatten(0, 1), videos).unflatten(0, per_clip).mT / temperature  # B K P
    of_clip = of_clip.masked_fill(~(spoken & (own | other)[..., None]), -torch.inf)
    wanted = said[present][:, None] & (spoken.any(dim=1) & other)[..., None]  # B K P: negatives of the words
    of_words = of_words.masked_fill(~wanted, -torch.inf)
    right = of_clip.masked_fill(~own[..., None], -torch.inf).flatten(1).logsumexp(dim=1)  # B
    everything = torch.cat([of_clip, of_words], dim=2).flatten(1).logsumexp(dim=1)  # B
    return mean_present(everything - right, present)


@torch.no_grad()
def recall(clips: Tensor, others: Tensor, there: Tensor, names: Tensor) -> Tensor:
    """Share of the clips whose nearest other side in the batch is one of theirs (R@1); 0 where nobody has any.

    Args:
        clips: B D.
        others: B P D: several for each clip.
        there: B P bool: which of them there are.
        names: B int64: what a clip is called; those of one name are right for each other.
    """
    everyone, called = dist.gather_rows(there).flatten(), dist.gather_rows(names).repeat_interleave(there.shape[1])
    scores = products(clips, dist.gather_rows(others).flatten(0, 1))  # B KP
    found = called[scores.masked_fill(~everyone, -torch.inf).argmax(dim=1)]  # B
    present = there.any(dim=1)
    return mean_present((found == names)[present].float(), present)
