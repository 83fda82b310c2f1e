"""A root: what no video of a manifest may lie outside of, for manifests and folders that come from somebody else.

Where a place leads is what counts, through ``..`` and links: a file, a folder of pictures and the links among them, a
shard and the index beside it. It is asked when the manifest is read, and again when a clip is read or a video packed,
since a link can be changed meanwhile. Whoever can change it between that question and the opening of the file, a
moment later, is not kept out: let nobody else write into a root while it is read.

Of a root on object storage or the web an address must go on from it, also once ``%2e`` is read as a dot. What a server
answers there, a redirection for example, is that server's affair.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tubelet.data.info import UnreadableVideo
from tubelet.data.storage import Place, Url, place, resolved
from tubelet.types import TubeletError


def root_of(text: str | Place) -> Place:
    """The root that somebody gave, through links.

    Raises:
        TubeletError: it is no folder.
    """
    root = resolved(place(text))
    if isinstance(root, Path) and not root.is_dir():
        raise TubeletError(f"the root {text} is not a folder: name the one that all videos lie in")
    return root


def way_out(video: Place, root: Place) -> Place | None:
    """Where a place leads outside of a root; None where all of it lies inside.

    Args:
        root: as `root_of` answers it.
    """
    if isinstance(video, Url) or isinstance(root, Url):
        inside = isinstance(video, Url) and isinstance(root, Url) and _goes_on(video, root)
        return None if inside else video
    begin = str(root).rstrip("/")  # texts: a manifest may have a million rows
    for path in (video, *_links_of(video)):
        target = os.path.realpath(path)
        if target != begin and not target.startswith(f"{begin}/"):
            return Path(target)
    return None


def look_again(video: Place, root: Place | None) -> None:
    """Before a video is opened: whether it still lies in the root, where there is one.

    Raises:
        UnreadableVideo: it leads out of it by now.
    """
    target = None if root is None else way_out(video, root)
    if target is not None:
        raise UnreadableVideo(video, f"it leads out of the root {root} by now, to {target}")


def _links_of(video: Path) -> Iterator[Path]:
    """What is read beside the place itself and may be a link: the pictures in a folder, the index of a shard."""
    if ".tar" in str(video).lower():
        tars = (path for path in (video, *video.parents) if path.suffix.lower() == ".tar")
        yield from (tar.with_suffix(".index") for tar in tars)
    try:
        with os.scandir(video) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_symlink())
    except OSError:  # no folder, or nothing that can be read
        return


def _goes_on(url: Url, root: Url) -> bool:
    """Whether a URL lies below another. One with ``::`` in it is a chain of several for fsspec, and never does."""
    begin = f"{_plain(root)}/"
    return "::" not in url and all(_plain(text).startswith(begin) for text in (url, unquote(url)))


def _plain(url: str) -> str:
    scheme, _, path = url.partition("://")
    return f"{scheme}://{posixpath.normpath(path)}"
