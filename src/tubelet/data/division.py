"""Which videos are learnt from, which are judged on, and which have a label at all: parts of a manifest."""

from __future__ import annotations

from collections import Counter

from tubelet import draws
from tubelet.data.listing import Manifest
from tubelet.types import TubeletError


def few_labels(manifest: Manifest, per_class: int, seed: int) -> Manifest:
    """Draws `per_class` labelled videos of each class (all of a class that has fewer).

    With the same seed a larger draw holds the smaller one, so that learning curves compare like with like.
    """
    if per_class < 1:
        raise TubeletError(f"per_class must be 1 or more, not {per_class}")
    rows: list[int] = []
    for number, name in enumerate(manifest.classes):
        members = [row for row, label in enumerate(manifest.labels) if label == number]
        order = draws.generator(seed, "few_labels", name).permutation(len(members))
        rows.extend(members[i] for i in order[:per_class])
    if not rows:
        name = manifest.source or "the manifest"
        raise TubeletError(f"{name} has no labels to draw from: add a column `label`")
    return manifest.take(sorted(rows))


def divide(manifest: Manifest, share: float, seed: int) -> tuple[Manifest, Manifest]:
    """Divides a manifest into the rest and a `share` of it, by class as evenly as whole groups allow.

    A group is never divided. Of each class with two videos or more at least one is wanted in the share.

    Returns:
        (rest, share), each in the order of the manifest.
    """
    if not 0 < share < 1:
        raise TubeletError(f"a share lies between 0 and 1, not {share:g}")
    members: dict[str, list[int]] = {}
    for row, group in enumerate(manifest.groups):
        members.setdefault(group, []).append(row)
    if len(members) < 2:
        raise TubeletError(f"{manifest.source or 'the manifest'} has one group only, which cannot be divided")
    wanted = {label: max(share * n, float(n > 1)) for label, n in Counter(manifest.labels).items()}
    names = sorted(members)
    order = [names[i] for i in draws.generator(seed, "divide").permutation(len(names))]
    taken: list[int] = []
    for group in order:
        counts = Counter(manifest.labels[row] for row in members[group])
        gain = sum(abs(wanted[c]) - abs(wanted[c] - n) for c, n in counts.items())
        if gain > 0 and len(taken) + len(members[group]) < len(manifest):
            taken.extend(members[group])
            for label, n in counts.items():
                wanted[label] -= n
    if not taken:
        taken = members[min(order, key=lambda group: len(members[group]))]
    chosen = set(taken)
    return manifest.take(r for r in range(len(manifest)) if r not in chosen), manifest.take(sorted(chosen))


def train_and_test(manifest: Manifest) -> tuple[Manifest, Manifest]:
    """The labelled videos to learn labels from, and those to be judged on: one rule for learners and tasks alike.

    The splits ``train`` and ``test`` (else ``val``) where labelled videos have them. Otherwise a fifth is kept for
    testing (of the split ``train`` where there is one), by group and stratified by label, always the same fifth.

    Raises:
        TubeletError: no video has a label, or all have the same.
    """
    labelled = manifest.take([row for row, label in enumerate(manifest.labels) if label >= 0])
    known = {video.label for video in labelled.videos}
    where = manifest.source or "the manifest"
    if not known:
        raise TubeletError(f"no video has a label in {where}: fill in its column `label`")
    if len(known) == 1:
        raise TubeletError(f"there is only one class, {known.pop()!r}, in {where}: two or more are needed")
    judged = next((name for name in ("test", "val") if name in labelled.splits), None)
    learnt = labelled.where("train") if "train" in labelled.splits else labelled
    if judged is not None and learnt is not labelled:
        return learnt, labelled.where(judged)
    return divide(learnt, 0.2, 0)


def train_and_validation(manifest: Manifest) -> tuple[Manifest, Manifest]:
    """Divides the videos to learn labels from (`train_and_test`): those still learnt from, and those to choose by.

    To choose by: the split ``val`` where there is a labelled ``test`` too; otherwise a tenth of the videos to learn
    from, by group and stratified by label, always the same tenth. Only where a class would have nothing left to learn
    from is it the test videos themselves: whoever calls has to say so.

    Raises:
        TubeletError: no video has a label, or all have the same.
    """
    learnt, judged = train_and_test(manifest)
    if {video.split for video in judged.videos} == {"test"}:
        chosen = manifest.take([r for r, v in enumerate(manifest.videos) if v.split == "val" and v.label is not None])
        if len(chosen):
            return learnt, chosen
    if len(set(learnt.groups)) > 1:
        rest, chosen = divide(learnt, 0.1, 1)
        if set(rest.labels) == set(learnt.labels):
            return rest, chosen
    return learnt, judged
