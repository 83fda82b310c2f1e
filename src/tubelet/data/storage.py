"""Places of bytes: a file on this machine, or a URL on object storage or the web.

A place on this machine is a `Path`. Anything with a scheme, such as ``s3://bucket/clip.mp4``, is a `Url` and is read
through fsspec, which must know the scheme (``pip install s3fs``, ``gcsfs``, ...). ``file://`` is a path.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from tubelet.types import TubeletError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

READ_AHEAD = 1 << 20
"""Bytes. A request takes about as long as so many bytes do."""


class Url(str):
    """A place that fsspec reads. It has what callers use of a `Path`: `name`, `stem`, `suffix`, `parent` and ``/``."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> Url:
        return Url(self._path.rpartition("/")[0])

    @property
    def _path(self) -> str:
        """Without the signature that an address of the web may have."""
        return (self.partition("?")[0] if self.startswith(("http://", "https://")) else self).rstrip("/")

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


def resolved(source: Place) -> Place:
    """A path from the root, through links; a URL is one already."""
    return source.resolve() if isinstance(source, Path) else source


def opened(source: Place) -> BinaryIO:
    """A seekable file of the bytes there. That of a URL asks for a mebibyte ahead.

    Raises:
        OSError: it is missing or cannot be read, with the words of the file system.
        TubeletError: the scheme of a URL is not known, or needs a package that is not installed.
    """
    if isinstance(source, Path):
        return source.open("rb")
    return io.BufferedReader(Window(source, 0, size(source)), READ_AHEAD)


def size(source: Place) -> int:
    """Bytes. Raises what `opened` raises."""
    return source.stat().st_size if isinstance(source, Path) else _remote_size(source)


@lru_cache(maxsize=1 << 12)
def _remote_size(source: Url) -> int:
    with _asking(source) as (system, path):
        about = system.info(path)
        if about["type"] == "directory":
            raise IsADirectoryError(f"{source} is a folder")
        if about["size"] is None:
            raise OSError(f"{source} does not tell its size: copy it to this machine")
        return int(about["size"])


def part(source: Place, offset: int, count: int) -> bytes:
    """Bytes from `offset` on: one read of a file that stays open, or one ranged request.

    Raises:
        OSError: there are fewer bytes, or none.
    """
    if offset < 0 or count < 0:
        raise OSError(f"{source} is damaged: something in it lies at byte {offset:,} and has {count:,} bytes")
    if isinstance(source, Path):
        file = _descriptor(source, stamp(source), os.getpid())  # held: another thread may crowd it out of the cache
        there = max(0, os.fstat(file.fileno()).st_size - offset)  # no room is made for what an archive only claims
        found = os.pread(file.fileno(), min(count, there), offset) if there else b""
    else:
        with _asking(source) as (system, path):
            found = bytes(system.cat_file(path, start=offset, end=offset + count))
    if len(found) != count:
        raise OSError(f"{source} gives {len(found):,} bytes from byte {offset:,}, where {count:,} were expected")
    return found


def content(source: Place) -> bytes:
    """All bytes. Raises what `opened` raises."""
    if isinstance(source, Path):
        return source.read_bytes()
    with _asking(source) as (system, path):
        return bytes(system.cat_file(path))


def names(folder: Place) -> list[str]:
    """The names of what is in a folder, in no order. Raises what `opened` raises."""
    if isinstance(folder, Path):
        return os.listdir(folder)  # noqa: PTH208 - names alone, of folders with thousands
    with _asking(folder) as (system, path):
        return [Url(name).name for name in system.ls(path, detail=False) if name.strip("/") != path.strip("/")]


def is_folder(place: Place) -> bool:
    """Whether it is a folder. A URL that ends as files do is none, and costs no request."""
    if isinstance(place, Path):
        return place.is_dir()
    if place.suffix:
        return False
    with _asking(place) as (system, path):
        return bool(system.isdir(path))


Stamp = tuple[int, int]


def stamp(source: Place) -> Stamp | None:
    """Bytes and date (in nanoseconds) of the file that a place is or lies in; None where there is no such file.

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


def words(error: Exception) -> str:
    """What is wrong, in one line; object storage raises what its library pleases."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    said = error.strerror if isinstance(error, OSError) else None
    return said or " ".join(str(error).split()) or f"reading it raised {type(error).__name__}"


def put(file: Path, target: Place) -> None:
    """Moves a file of this machine to its place, whole or not at all, and sees that it is on the disk.

    Raises:
        OSError: it cannot be written there.
        TubeletError: the scheme of a URL needs a package that is not installed.
    """
    if isinstance(target, Path):
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too
        finally:
            os.close(folder)
        return
    with _asking(target) as (system, path):
        system.makedirs(system._parent(path), exist_ok=True)
        system.put_file(str(file), path)
    _remote_size.cache_clear()
    file.unlink()


def remove(target: Place) -> None:
    """Removes a file, where there is one."""
    if isinstance(target, Path):
        target.unlink(missing_ok=True)
        return
    with _asking(target) as (system, path):
        if system.exists(path):
            system.rm_file(path)


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
def _descriptor(path: Path, _stamp: Stamp | None, _process: int) -> BinaryIO:
    """A file that is kept open, until it is made anew. None is shared after a fork: the process is part of the key."""
    return path.open("rb")


@contextmanager
def _asking(url: Url) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it. What fails inside, each store in its own way, is an `OSError`.

    fsspec remembers file systems, and after a fork makes them anew: none may be kept here.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(str(url))
    except ImportError as error:
        raise TubeletError(f"{url} needs a package for its scheme: {error}") from None
    except ValueError as error:
        known = "s3://, gs://, az://, hf://, http://, sftp:// or another that fsspec knows"
        raise TubeletError(f"{url} cannot be read: {error}; a URL starts with {known}") from None
    try:
        yield system, path
    except (OSError, TubeletError):
        raise
    except Exception as error:
        raise OSError(" ".join(f"{url}: {type(error).__name__}: {error}".split())) from error
