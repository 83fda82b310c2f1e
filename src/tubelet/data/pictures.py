"""Pictures in order as a video: a folder of JPEG, PNG or WebP files, or such a folder in a zip or a plain tar.

They are shown in the natural order of their names (2 before 10), at a constant rate that the caller knows. Hidden files
and files of other kinds are passed over. Nothing is unpacked: a clip reads the bytes of the pictures that it shows.
Turns that EXIF asks for are ignored, since pictures that were taken out of a video have none.

Decoding is FFmpeg's, as for videos: 16 JPEGs of 340 x 256 take it 8 ms of CPU and Pillow 11; shrunk from 1280 x 720
to a short side of 128, 41 ms, and Pillow 155. Both can decode JPEGs at a half or a quarter of their size: a half saves
FFmpeg nothing, and a quarter, which takes either 28 ms, is no longer the mean over the area.
"""

from __future__ import annotations

import math
import re
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import av
import numpy
from av.video.reformatter import VideoReformatter

from tubelet.data import storage
from tubelet.data.info import PICTURES_FPS, UnreadableVideo, VideoInfo, mercy_s, shrunk
from tubelet.data.listing import natural_sort
from tubelet.data.storage import Place
from tubelet.registry import nearest

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
ARCHIVES = {".zip", ".tar", ".tgz", ".gz"}
CODECS = {b"\xff\xd8\xff": "mjpeg", b"\x89PN": "png", b"RIF": "webp"}
"""By what a file begins with, whatever its name."""
NUMBERED = re.compile(r"(.*?)\d+(\.\w+)")
MOST_BYTES = 1 << 28
"""Of a picture, when it is unpacked: more is a bomb. A deflated zip can hold a thousand times its own size."""
MOST_PIXELS = 1 << 27
"""Of a picture; a frame of 16K has a few less. Room is made for all that a header claims."""
MOST_OF_HEADER = 1 << 24
"""Bytes that a header of a tar may ask for: long names take a few thousand."""
MOST_OF_FILE = 1 << 43
"""Bytes that a file in a tar may have: no disk here holds a larger one."""
LOCKED = -1
"""Stands for how a member of a zip is packed, where it is encrypted."""


DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, ValueError)
"""What listing an archive raises that is damaged, or made to do damage."""


class Series(Protocol):
    """Pictures in order, wherever they lie."""

    names: list[str]

    def encoded(self, number: int) -> bytes:
        """The file of a picture. Raises `OSError`, or `ValueError` where it is damaged."""
        ...


def probe(place: Place, fps: float | None = None) -> VideoInfo:
    """Number, rate and size of the pictures. Decodes the first.

    Raises:
        UnreadableVideo: there are none, or the first is damaged.
    """
    found = series(place)
    ((picture, codec),) = _decoded(place, found, [0])
    count, rate = len(found.names), fps or PICTURES_FPS
    return VideoInfo(count / rate, rate, count, picture.width, picture.height, codec, start_s=0.0, rotation=0)


def read(
    place: Place, times_s: numpy.ndarray, short_side: int | None = None, fps: float | None = None
) -> numpy.ndarray:
    """The pictures on display at `times_s`: T H W C uint8, RGB. See `tubelet.data.read.read`.

    Raises:
        UnreadableVideo: there are none, one of those asked for is damaged, or their sizes differ.
    """
    found, rate = series(place), fps or PICTURES_FPS
    numbers = numpy.floor((times_s + mercy_s(rate)) * rate).clip(0, len(found.names) - 1).astype(int)
    wanted, rows = numpy.unique(numbers, return_inverse=True)
    clip = paint((picture for picture, _ in _decoded(place, found, wanted)), len(wanted), short_side)  # T H W C
    return clip if len(wanted) == len(rows) and (numpy.diff(rows) > 0).all() else clip[rows]


def paint(pictures: Iterable[VideoFrame], count: int, short_side: int | None = None) -> numpy.ndarray:
    """Decoded pictures of one size as RGB: T H W C uint8. `count` is how many there are."""
    reformatter = VideoReformatter()  # one for all: it keeps its tables
    clip, width, height = None, 0, 0
    for row, picture in enumerate(pictures):
        if clip is None:
            width, height = shrunk(picture.width, picture.height, short_side)
            clip = numpy.empty((count, height, width, 3), dtype=numpy.uint8)  # T H W C
        how = "BILINEAR" if (width, height) == (picture.width, picture.height) else "AREA"
        clip[row] = reformatter.reformat(
            picture, width=width, height=height, format="rgb24", interpolation=how, threads=1
        ).to_ndarray()
    assert clip is not None, "a clip has a time"
    return clip


def check(place: Place, fps: float | None = None) -> VideoInfo:
    """`probe`, and decodes up to the middle.

    Raises:
        UnreadableVideo: there are no pictures, or one of the first half is damaged or of another size.
    """
    info = probe(place, fps)
    for _ in _decoded(place, series(place), range(math.ceil(info.frames / 2))):
        pass
    return info


def frames(
    place: Place,
    start_s: float = 0.0,
    end_s: float = math.inf,
    short_side: int | None = None,
    fps: float | None = None,
) -> Iterator[tuple[float, numpy.ndarray]]:
    """Every picture that is on display between two times, one at a time.

    Yields:
        The earliest time at which `read` answers the picture, and the picture itself: H W C uint8, RGB.

    Raises:
        UnreadableVideo: there are none, one of them is damaged, or their sizes differ.
    """
    found, rate = series(place), fps or PICTURES_FPS
    early_s = mercy_s(rate)
    first, last = (int(min((second + early_s) * rate, len(found.names) - 1)) for second in (start_s, end_s))
    for number, (picture, _) in enumerate(_decoded(place, found, range(first, last + 1)), start=first):
        yield number / rate - early_s, paint([picture], 1, short_side)[0]


class Decoder:
    """Decodes JPEG, PNG and WebP files, one after the other; all must have the size of the first."""

    def __init__(self) -> None:
        self.contexts: dict[str, Any] = {}
        self.size: tuple[int, int] | None = None

    def __call__(self, encoded: bytes) -> tuple[VideoFrame, str]:
        """The picture, and the name of its codec.

        Raises:
            ValueError: it is damaged, no such picture, or of another size; the message says which.
        """
        if not encoded:
            raise ValueError("the file is empty (zero bytes)")
        codec = CODECS.get(encoded[:3])
        if codec is None:
            raise ValueError("not a JPEG, PNG or WebP picture")
        try:
            context = self._context(codec)
            found = [*context.decode(av.Packet(encoded)), *(context.decode(None) if codec == "png" else ())]
        except av.FFmpegError:
            found = []
        if len(found) != 1:
            self.contexts.clear()
            raise ValueError("it is damaged or cut short")
        size = found[0].width, found[0].height
        self.size = self.size or size
        if size != self.size:
            width, height = self.size
            raise ValueError(f"it has {size[0]} x {size[1]} pixels and others {width} x {height}: give all one size")
        return found[0], codec

    def _context(self, codec: str) -> Any:
        if codec == "png" or codec not in self.contexts:  # one for PNG mixes a picture with the one before it
            context = av.CodecContext.create(codec, "r")
            context.thread_count = 1
            # Half a picture is not filled up with grey.
            context.options = {"err_detect": "crccheck+explode", "max_pixels": str(MOST_PIXELS)}
            self.contexts[codec] = context
        return self.contexts[codec]


def is_sequence(place: Place) -> bool:
    """Whether a folder, a zip or a tar holds one video as pictures: two or more of one series."""
    try:
        return len(series(place).names) > 1
    except UnreadableVideo:
        return False


def folders(archive: Place) -> list[str]:
    """The folders in a zip or tar that hold pictures, naturally sorted; ``""`` is its top.

    Raises:
        UnreadableVideo: it is missing, damaged or compressed as a whole.
    """
    try:
        return natural_sort(_members(archive, storage.stamp(archive)))
    except OSError as error:
        raise UnreadableVideo(archive, storage.words(error)) from None


def is_place(place: Place) -> bool:
    """Whether a place is one for pictures: a folder, an archive, or a folder inside one."""
    if isinstance(place, Path) and place.is_file():
        return place.suffix.lower() in ARCHIVES
    return divided(place) is not None or storage.is_folder(place)


def divided(place: Place, kinds: Collection[str] = ARCHIVES) -> tuple[Place, str] | None:
    """A place in an archive as the archive and what is named in it (``""``: its top); None where there is no archive.

    A folder whose name ends as those of archives do is a folder.
    """
    text = place if isinstance(place, storage.Url) else place.as_posix()
    for end in [match.start() for match in re.finditer("/", text)] + [len(text)]:
        if Path(text[:end]).suffix.lower() in kinds:
            archive = storage.place(text[:end])
            if not (isinstance(archive, Path) and archive.is_dir()):
                return archive, text[end:].strip("/")
    return None


def series(place: Place) -> Series:
    """The pictures at a place; what it lists is remembered while the file or folder stays.

    Raises:
        UnreadableVideo: there are none, or of several series.
    """
    try:
        return _series(place, storage.stamp(place))
    except OSError as error:
        raise UnreadableVideo(place, storage.words(error)) from None


@lru_cache(maxsize=256)
def _series(place: Place, stamp: storage.Stamp | None) -> Series:
    parts = divided(place)
    if parts is None:
        return Folder(place)
    archive, inner = parts
    members = _members(archive, stamp)
    within = natural_sort(name for name in members if not inner or name == inner or name.startswith(f"{inner}/"))
    if inner not in members and len(within) > 1:
        example = f"{archive.name}/{within[0]}"
        raise UnreadableVideo(place, f"it holds {len(within):,} folders of pictures: name one, as {example}")
    if not within:
        shard = f"; a sample of a shard is named as {archive.name}/KEY" if archive.suffix.lower() == ".tar" else ""
        hint = nearest(inner, natural_sort(members)[:1000]) if inner and members else shard
        raise UnreadableVideo(place, f"no pictures {'there' if inner else 'in it'}{hint}")
    kind = Zip if archive.suffix.lower() == ".zip" else Tar
    return kind(place, archive, members[inner if inner in members else within[0]])


class Folder:
    """A folder of picture files, on this machine or object storage."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.names = _in_order(place, storage.names(place))

    def encoded(self, number: int) -> bytes:
        return storage.content(self.place / self.names[number])


class Members(NamedTuple):
    """The pictures in one folder of an archive, in its order."""

    names: list[str]
    rows: numpy.ndarray
    """N 2: offset and bytes of each in a tar. N 5 for a zip: of all from its header to the next one, then how it is
    packed, its bytes as they are packed, and its checksum."""


class Tar:
    """A folder of pictures in a tar that is not compressed."""

    def __init__(self, place: Place, archive: Place, members: Members) -> None:
        self.archive = archive
        at = dict(zip(members.names, members.rows.tolist(), strict=True))  # of a name twice the last, as when unpacked
        self.names = _in_order(place, at)
        self.rows = [at[name] for name in self.names]

    def encoded(self, number: int) -> bytes:
        return storage.part(self.archive, *self.rows[number])


class Zip(Tar):
    """A folder of pictures in a zip, stored or deflated."""

    def encoded(self, number: int) -> bytes:
        offset, count, method, size, checksum = self.rows[number]
        if method == LOCKED:
            raise ValueError("the zip is protected with a password: unpack it")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("the zip is packed in an unusual way: pack it again, stored or deflated")
        packed = storage.part(self.archive, offset, count)
        start = 30 + int.from_bytes(packed[26:28], "little") + int.from_bytes(packed[28:30], "little")
        found = packed[start : start + size]
        try:
            if method == zipfile.ZIP_DEFLATED:
                found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, MOST_BYTES + 1)
        except zlib.error:
            found = b""
        if len(found) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB, which no picture has: a zip bomb")
        if zlib.crc32(found) != checksum:
            raise ValueError("the zip is damaged there: its checksum differs")
        return found


def _in_order(place: Place, names: Iterable[str]) -> list[str]:
    """The pictures among file names, naturally sorted.

    Raises:
        UnreadableVideo: there are none, or of several series, such as frames beside optical flow.
    """
    kept = natural_sort(name for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
    if not kept:
        raise UnreadableVideo(place, f"no pictures in the folder: looked for {', '.join(sorted(SUFFIXES))}")
    counts = Counter((match[1], match[2].lower()) for name in kept if (match := NUMBERED.fullmatch(name)))
    several = [kind for kind, count in counts.items() if count > 1]
    if len(several) > 1:
        shown = " and ".join(f"{prefix}*{suffix}" for prefix, suffix in several[:2])
        remedy = "name a sample of it, as shard.tar/KEY" if place.suffix == ".tar" else "give each a folder of its own"
        raise UnreadableVideo(place, f"pictures of several series, {shown}: {remedy}")
    return kept


def _decoded(place: Place, found: Series, numbers: Sequence[int] | numpy.ndarray) -> Iterator[tuple[VideoFrame, str]]:
    decode = Decoder()
    for number in numbers:
        try:
            yield decode(found.encoded(number))
        except OSError as error:
            raise UnreadableVideo(place, f"{found.names[number]}: {storage.words(error)}") from None
        except ValueError as error:
            raise UnreadableVideo(place, f"{found.names[number]}: {error}") from None


@lru_cache(maxsize=8)
def _members(archive: Place, _stamp: storage.Stamp | None) -> dict[str, Members]:
    """Folder (``""`` is the top) -> the pictures in it."""
    kind = archive.suffix.lower()
    if kind not in (".zip", ".tar"):
        raise UnreadableVideo(archive, "a compressed tar has to be read from its start each time: unpack it, or gunzip")
    with storage.opened(archive) as file:
        try:
            rows = list(_zipped(file) if kind == ".zip" else _tarred(file))
        except DAMAGED as error:
            raise UnreadableVideo(archive, f"not a {kind[1:]} that can be read, or it is damaged: {error}") from None
    found = defaultdict[str, tuple[list[str], list[tuple[int, ...]]]](lambda: ([], []))
    for path, row in rows:
        folder, _, name = path.removeprefix("./").rpartition("/")
        hidden = any(part.startswith((".", "__MACOSX")) for part in (*folder.split("/"), name))
        if not hidden and Path(name).suffix.lower() in SUFFIXES:
            names, places = found[folder]
            names.append(name)
            places.append(row)
    return {folder: Members(names, numpy.array(places)) for folder, (names, places) in found.items()}


def leads_out(name: str) -> bool:
    """Whether a name in an archive would be a place outside of it. What is called so is passed over."""
    return name.startswith("/") or ".." in name.split("/")


class Headers:
    """A tar for `tarfile`, which reads no more than headers here, and is given no more than a header may be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MOST_OF_HEADER:
            raise tarfile.ReadError(f"a header of it claims {count:,} bytes")
        return self.file.read(count)


def files_of_tar(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in a tar, one by one: no links, devices or names that lead out of it.

    Raises:
        tarfile.TarError: it is none, or damaged.
    """
    stream: Any = Headers(file)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - or it keeps every one in memory
                if not 0 <= member.size <= MOST_OF_FILE:  # less than none, and it would be met again for ever
                    raise tarfile.ReadError(f"a file in it claims {member.size:,} bytes")
                if member.isfile() and not leads_out(member.name):
                    yield member
    except (ValueError, IndexError, OverflowError) as error:
        raise tarfile.ReadError(f"a header of it makes no sense ({error})") from None


def _tarred(file: BinaryIO) -> Iterator[tuple[str, tuple[int, ...]]]:
    return ((member.name, (member.offset_data, member.size)) for member in files_of_tar(file))


def _zipped(file: BinaryIO) -> Iterator[tuple[str, tuple[int, ...]]]:
    with zipfile.ZipFile(file) as archive:
        listed = sorted(archive.infolist(), key=lambda member: member.header_offset)
        ends = [*(member.header_offset for member in listed), archive.start_dir][1:]
        for member, end in zip(listed, ends, strict=True):
            method = LOCKED if member.flag_bits & 1 else member.compress_type
            start = member.header_offset
            if not leads_out(member.filename):
                yield member.filename, (start, end - start, method, member.compress_size, member.CRC)
