"""Places of bytes: a file on this machine, or a URL on object storage or the web.

A place on this machine is a `Path`. Anything with a scheme, such as ``s3://bucket/clip.mp4``, is a `Url` and is read
through fsspec, which must know the scheme (``pip install s3fs``, ``gcsfs``, ...). ``file://`` is a path.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from tubelet.types import TubeletError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Url(str):
    """A place that fsspec reads. It has what callers use of a `Path`: `name`, `stem`, `suffix`, `parent` and ``/``."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self.rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> Url:
        return Url(self.rstrip("/").rpartition("/")[0])

    def __truediv__(self, inner: str) -> Url:
        scheme, _, path = f"{self.rstrip('/')}/{inner}".partition("://")
        return Url(f"{scheme}://{posixpath.normpath(path)}")  # `..` goes up, as in a path


Place = Path | Url


def place(text: str | Path) -> Place:
    """A path, or a `Url` where the text has a scheme; ``file://`` is taken off."""
    if isinstance(text, Path | Url):
        return text
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Url(text) if _SCHEME.match(text) else Path(text)


def opened(source: Place) -> BinaryIO:
    """A seekable file of the bytes there.

    Raises:
        OSError: it is missing or cannot be read, with the words of the file system.
        TubeletError: the scheme of a URL needs a package that is not installed.
    """
    if isinstance(source, Path):
        return source.open("rb")
    system, path = _system(source)
    return system.open(path, "rb")


def size(source: Place) -> int:
    """Bytes. Raises what `opened` raises."""
    if isinstance(source, Path):
        return source.stat().st_size
    system, path = _system(source)
    return int(system.size(path))


def stamp(source: Place) -> tuple[int, int] | None:
    """Bytes and date (in nanoseconds) of the file a place is, or is inside of; None where there is no such file.

    They change when it is made anew. A URL has none, since asking costs a request: what it names is taken to stay as
    it is. A folder has those of its list of files.
    """
    if isinstance(source, Url):
        return None
    for path in (source, *source.parents):
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
        return (status.st_size, status.st_mtime_ns) if path == source or not path.is_dir() else None
    return None


def part(source: Place, offset: int, count: int) -> bytes:
    """Bytes from `offset` on: one read of a file that stays open, or one ranged request.

    Raises:
        OSError: there are fewer bytes, or none.
    """
    if isinstance(source, Path):
        found = os.pread(_descriptor(source, os.getpid()).fileno(), count, offset)
    else:
        system, path = _system(source)
        found = bytes(system.cat_file(path, start=offset, end=offset + count))
    if len(found) < count:
        raise OSError(f"{source} ends after byte {offset + len(found):,}, where {offset + count:,} were expected")
    return found


class Window(io.RawIOBase):
    """A part of a file as a file of its own, for decoders that want one."""

    def __init__(self, source: Place, offset: int, count: int) -> None:
        super().__init__()
        self.source, self.offset, self.count, self.position = source, offset, count, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.count}[whence]
        self.position = min(max(0, start + offset), self.count)
        return self.position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.count - self.position)
        if wanted > 0:
            buffer[:wanted] = part(self.source, self.offset + self.position, wanted)
            self.position += wanted
        return max(0, wanted)


@lru_cache(maxsize=64)
def _descriptor(path: Path, _process: int) -> BinaryIO:
    """A file that is kept open. The process is part of the key, so that none is shared after a fork."""
    return path.open("rb")


def _system(url: Url) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(url))
    except ImportError as error:
        raise TubeletError(f"{url} needs a package for its scheme: {error}") from None
    except ValueError as error:
        raise TubeletError(f"{url} is not a place that can be read: {error}") from None
