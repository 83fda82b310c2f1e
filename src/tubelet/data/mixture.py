"""Several corpora in one manifest, each with its name; `order.py` draws from them by weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tubelet.data.listing import Manifest, Video, by_number, natural_sort
from tubelet.types import TubeletError


def join(manifests: Sequence[Manifest], labels: bool = True) -> Manifest:
    """One manifest of several corpora, with `corpus` filled in: the name of each one's file where a row has none.

    Of a pack, whose manifests are all called ``clips``, it is the name of the folder. Groups of one name in several
    manifests are told apart by their corpora. Classes are the same where they have the same name, and keep an official
    order (`class_number`) where there is one. Where one has splits, all videos of one without are for training.

    Args:
        labels: keep them; False leaves them out, as a mixture for pre-training alone may.

    Raises:
        TubeletError: two have a corpus of one name, or their classes cannot be one list.
    """
    if len(manifests) < 2:
        raise TubeletError("a mixture is of two manifests or more")
    owners: dict[str, Manifest] = {}
    videos: list[Video] = []
    default = "train" if any(manifest.splits for manifest in manifests) else None
    shared = Counter(group for manifest in manifests for group in {v.group for v in manifest if v.group is not None})
    for manifest in manifests:
        name = _corpus(manifest)
        split = None if manifest.splits else default
        mine = [
            replace(v, corpus=v.corpus or name, split=v.split or split,
                    group=f"{v.corpus or name}/{v.group}" if v.group and shared[v.group] > 1 else v.group)
            for v in manifest
        ]  # fmt: skip
        for corpus in dict.fromkeys(str(video.corpus) for video in mine):
            if owners.setdefault(corpus, manifest) is not manifest:
                raise TubeletError(
                    f"{owners[corpus].source} and {manifest.source} both have a corpus {corpus!r}: rename one of the "
                    "files, or name its corpus in a column `corpus`"
                )
        videos += mine if labels else [replace(video, label=None) for video in mine]
    return Manifest(videos, _joined_classes(manifests) if labels else None)


def _corpus(manifest: Manifest) -> str:
    """A name for the corpus of a manifest."""
    if manifest.source is None:
        return "corpus"
    return manifest.source.parent.name if manifest.source.stem == "clips" else manifest.source.stem


def _joined_classes(manifests: Sequence[Manifest]) -> list[str] | None:
    """The classes of several manifests in one list; None where they are as they sort."""
    remedy = "give them the same names and numbers, or leave labels out (--no-labels)"
    owners: dict[str, Manifest] = {}
    for manifest in manifests:
        for label in {video.label for video in manifest if video.label is not None}:
            if owners.setdefault(label, manifest) is not manifest and label.isdecimal():
                raise TubeletError(
                    f"{owners[label].source} and {manifest.source} both have a class {label!r}, and a bare number may "
                    f"not mean the same in both: {remedy}"
                )
    names: dict[int, tuple[str, Manifest]] = {}
    numbers: dict[str, int] = {}
    for manifest in manifests:
        if manifest.classes == natural_sort(manifest.classes):
            continue
        for number, name in enumerate(manifest.classes):
            if name not in owners:
                continue
            other, source = names.setdefault(number, (name, manifest))
            if other != name or numbers.setdefault(name, number) != number:
                raise TubeletError(
                    f"{manifest.source}: class {number} is {name!r}, and in {source.source} it is "
                    f"{source.classes[number]!r}: {remedy}"
                )
    if not names:
        return None
    more = natural_sort(owners.keys() - numbers.keys())
    return [*by_number({number: name for number, (name, _) in names.items()}), *more]
