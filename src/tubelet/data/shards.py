"""Shards: many videos in one tar, as `pack.py` writes them and as other tools do, each found at once by its key.

A shard follows the WebDataset convention: a plain tar in which the consecutive files ``KEY.SOMETHING`` make one
sample. A place in it is written as if the tar were a folder, ``shard-000003.tar/00000412``.

Beside each shard of ours lies ``shard-000003.index``: a line of JSON about the shard, then one line a sample, ``key
offset bytes json_bytes json_crc32 crc32``. The first file of a sample, ``KEY.json``, tells the size of every file after
it. Therefore one clip costs the JSON and the pictures that it shows, read at known places of one open file or asked of
object storage by their ranges. A tar without an index is walked through once by each process, and what it holds is
remembered.

``KEY.json`` of ours has `tubelet` (the version of this format), `source` and `span_s` (where it came from), `label`,
`group`, `split`, what `VideoInfo` has, `video` (which file holds the frames), `files` (``{"flac": [bytes, crc32]}``)
and, where frames are stored one by one, `pictures` (``{"suffix": "jpg", "bytes": [...], "crc32": [...]}``), or the
`crc32` of each frame of an array. `starts_s` says when the display of each frame starts; where it is absent, frame k
starts at k / fps. `still_s` is there where the last frame is shown for long: when it starts. The source may break off
there.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy

from tubelet.data import decode, pictures, storage
from tubelet.data.info import PICTURES_FPS, UnreadableVideo, VideoInfo, mercy_s
from tubelet.data.listing import natural_sort
from tubelet.data.storage import Place

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

VERSION = 1
OURS = b'{"tubelet": '
"""What an index of ours begins with; other tools write files with that ending too."""
BLOCK = tarfile.BLOCKSIZE
VIDEOS = ("mp4", "m4v", "mkv", "webm", "mov", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv")
REQUEST = 1 << 20
"""Asking object storage once more takes about as long as so many bytes do."""
TOGETHER = 32
"""So many frames are read at once when all are wanted."""
MOST_FRAMES = 10_000_000
"""Of a sample: four days. Room is made for the time of each that a JSON claims."""
WHOLE = 8 << 20
"""Files up to this size are read in one go, and their checksum is compared; larger ones as a decoder asks."""


@dataclass(frozen=True)
class Pictures:
    """Where the frames of a sample lie that are stored one by one; `checksums` is None in tars of others."""

    suffix: str
    offsets: numpy.ndarray
    sizes: numpy.ndarray
    checksums: numpy.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One video in a shard. `members` are its files but for single pictures: ending -> (offset, bytes) in the tar."""

    place: Place
    tar: Place
    about: dict[str, Any]
    """``KEY.json``; empty where there is none."""
    members: dict[str, tuple[int, int]]
    pictures: Pictures | None = None
    checksums: dict[str, int] = field(default_factory=dict)

    def read(self, ending: str) -> bytes:
        """All bytes of a member.

        Raises:
            UnreadableVideo: it is not there, the shard is cut short, or the checksum is another.
        """
        if ending not in self.members:
            held = ", ".join(self.members) or "nothing"
            raise UnreadableVideo(self.place, f"the sample has no .{ending}, only {held}")
        (found,) = self.parts([self.members[ending]])
        self.compare(found, self.checksums.get(ending), f".{ending}")
        return found

    def opened(self, ending: str) -> BinaryIO:
        """A member as a seekable file; raises what `read` does."""
        offset, count = self.members.get(ending, (0, 0))
        if count <= WHOLE:
            return io.BytesIO(self.read(ending))
        return io.BufferedReader(storage.Window(self.tar, offset, count), 1 << 18)

    def encoded(self, numbers: Sequence[int]) -> list[bytes]:
        """Pictures as they are stored, for rising numbers. Raises what `read` does."""
        assert self.pictures is not None
        stored = self.pictures
        found = self.parts([(int(stored.offsets[number]), int(stored.sizes[number])) for number in numbers])
        if stored.checksums is not None:
            for number, picture in zip(numbers, found, strict=True):
                self.compare(picture, int(stored.checksums[number]), f"picture {number}")
        return found

    def parts(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, count) in the tar, offsets rising; near ones on object storage in one request."""
        return _parts(self.place, self.tar, ranges)

    def compare(self, found: bytes, expected: int | None, what: str) -> None:
        """Raises `UnreadableVideo` where bytes have another checksum than they were packed with."""
        if expected is not None and zlib.crc32(found) != expected:
            raise UnreadableVideo(self.place, f"{what} is damaged: its checksum is not the one it was packed with")


@dataclass(frozen=True)
class Index:
    """Which samples a shard holds, sorted by key, and where: arrays, so that millions of samples fit in memory."""

    keys: numpy.ndarray
    offsets: numpy.ndarray
    sizes: numpy.ndarray
    """Bytes from the header of a sample's first file to the end of its last."""
    json_sizes: numpy.ndarray | None = None
    """Bytes of each sample's ``KEY.json``; None in tars of others."""
    json_checksums: numpy.ndarray | None = None
    checksums: numpy.ndarray | None = None
    """CRC-32 of each sample's bytes."""
    shard: dict[str, Any] = field(default_factory=dict)
    """The line about the shard: `samples`, `bytes`, `sha256`, `left_out` (key -> reason) and `seconds`."""

    def row(self, key: str) -> int | None:
        wanted = numpy.bytes_(key.encode())
        row = int(numpy.searchsorted(self.keys, wanted))
        return row if row < len(self.keys) and self.keys[row] == wanted else None


def inside(place: Place) -> tuple[Place, str] | None:
    """The tar and the key, where a path goes on inside a tar; None where it does not."""
    found = pictures.divided(place, (".tar",))
    return found if found is not None and found[1] else None


def is_place(place: Place) -> bool:
    """Whether a place is that of a sample; False inside a tar that holds no such key, such as one of folders."""
    found = inside(place)
    if found is None:
        return False
    try:
        return index(found[0]).row(found[1]) is not None or index(found[0]).shard != {}
    except UnreadableVideo:
        return True  # reading says what is wrong


def sample(place: Place) -> Sample:
    """The sample at a place inside a tar.

    Raises:
        UnreadableVideo: the shard is missing, cut short or not a tar, or it has no such sample.
    """
    found = inside(place)
    if found is None:
        raise UnreadableVideo(place, "it is not a place inside a tar")
    return _sample(place, *found, storage.stamp(found[0]))


def keys(tar: Place) -> list[str]:
    """The keys of all samples of a tar, sorted. Raises what `sample` does."""
    return [key.decode() for key in index(tar).keys]


def index(tar: Place) -> Index:
    """The index of a shard, remembered while the file stays; made by walking through the tar where none lies beside it.

    Raises:
        UnreadableVideo: the shard is missing or not a tar.
    """
    return _index(tar, storage.stamp(tar))


def index_place(tar: Place) -> Place:
    return tar.parent / f"{tar.name[: -len('.tar')]}.index"


def parse_index(text: str) -> Index:
    """An index as it is written beside a shard.

    Raises:
        ValueError: it is torn or of another kind.
    """
    first, *lines = text.splitlines()
    shard = json.loads(first)
    if not isinstance(shard, dict) or shard.get("tubelet") != VERSION or shard.get("samples") != len(lines):
        raise ValueError("not an index of this version, or torn")
    rows = [line.split(" ") for line in lines]
    if any(len(row) != 6 for row in rows):
        raise ValueError("a line of it has more or less than six words")
    if any(pictures.leads_out(row[0]) for row in rows):
        raise ValueError("a key of it leads out of the shard")
    columns = list(zip(*rows, strict=True)) or [()] * 6
    offsets, sizes, json_sizes = (numpy.array(column, dtype=numpy.int64) for column in columns[1:4])
    json_checksums, checksums = (
        numpy.array([int(word, 16) for word in column], dtype=numpy.uint32) for column in columns[4:6]
    )
    return Index(numpy.array(columns[0], dtype="S"), offsets, sizes, json_sizes, json_checksums, checksums, shard)


def padded(count: int) -> int:
    """Bytes that a file of `count` bytes takes up in a tar, its header apart."""
    return -(-count // BLOCK) * BLOCK


# Reading, with the answers of `decode.py` and `pictures.py`


def probe(place: Place, fps: float | None = None) -> VideoInfo:
    """What is known of a sample: told by its JSON where it was packed, found out where it is a file as it was.

    Args:
        fps: of pictures whose rate is not told; 30 if not given.

    Raises:
        UnreadableVideo: what `sample` raises, or there is no video in it.
    """
    found = sample(place)
    kind = video_of(found)
    if kind not in ("pictures", "npy") and not _packed(found):
        return decode.probe(place, file=partial(found.opened, kind))
    about = found.about
    if not _packed(found):
        first = next(_decoded(found, [0]))
        rate, count = _rate(found, fps), len(_pictures(found).sizes)
        return VideoInfo(count / rate, rate, count, first.width, first.height, _pictures(found).suffix, 0.0, 0)
    frames, width, height = (int(about[name]) for name in ("frames", "width", "height"))
    return VideoInfo(about["duration_s"], about["fps"], frames, width, height, about["codec"], start_s=0.0, rotation=0)


def read(
    place: Place, times_s: numpy.ndarray, short_side: int | None = None, fps: float | None = None
) -> numpy.ndarray:
    """The frames on display at `times_s`: T H W C uint8, RGB. See `tubelet.data.read.read`."""
    found = sample(place)
    kind = video_of(found)
    if kind in ("pictures", "npy") or _packed(found):
        starts_s = _starts_s(found, fps)
        times_s = times_s + mercy_s(_rate(found, fps))
        numbers = (numpy.searchsorted(starts_s, times_s, side="right") - 1).clip(0)
        if kind in ("pictures", "npy"):
            wanted, rows = numpy.unique(numbers, return_inverse=True)
            clip = (_painted if kind == "pictures" else _rows)(found, wanted.tolist(), short_side)  # T H W C
            return clip if len(wanted) == len(rows) and (numpy.diff(rows) > 0).all() else clip[rows]
        ends_s = numpy.append(starts_s[1:], 2 * starts_s[-1] + 1)
        times_s = ((starts_s + ends_s) / 2)[numbers]  # amid their display, where no rounding matters
    return decode.read(place, times_s, short_side, file=partial(found.opened, kind))


def check(place: Place, fps: float | None = None) -> VideoInfo:
    """`probe`, and decodes up to the middle.

    Raises:
        UnreadableVideo: the sample gives no frame, or breaks off in its first half.
    """
    info = probe(place, fps)
    found = sample(place)
    kind = video_of(found)
    if kind in ("pictures", "npy"):
        read(place, numpy.array([info.duration_s / 2]), short_side=32, fps=fps)
    else:
        decode.check(place, info, file=partial(found.opened, kind))
    return info


def frames(
    place: Place,
    start_s: float = 0.0,
    end_s: float = math.inf,
    short_side: int | None = None,
    fps: float | None = None,
) -> Iterator[tuple[float, numpy.ndarray]]:
    """Every frame that is on display between two times, one at a time. See `tubelet.data.read.frames`."""
    found = sample(place)
    kind = video_of(found)
    if kind not in ("pictures", "npy") and not _packed(found):
        yield from decode.frames(place, start_s, end_s, short_side, file=partial(found.opened, kind))
        return
    starts_s, early_s = _starts_s(found, fps), mercy_s(_rate(found, fps))
    first = max(0, int(numpy.searchsorted(starts_s, start_s + early_s, side="right")) - 1)
    last = max(first + 1, int(numpy.searchsorted(starts_s, end_s + early_s, side="right")))
    for row in range(first, last, TOGETHER):
        some = starts_s[row : min(row + TOGETHER, last)]
        for from_s, frame in zip(some - early_s, read(place, some, short_side, fps), strict=True):
            yield float(from_s), frame


def sound(place: Place) -> Callable[[], BinaryIO] | None:
    """What opens the file with the sound of a sample, on the clock of its frames; None where there is none for sure."""
    found = sample(place)
    ending = "flac" if "tubelet" in found.about and "flac" in found.members else video_of(found)
    return partial(found.opened, ending) if ending in found.members and ending != "npy" else None


def _packed(found: Sample) -> bool:
    """Whether the frames are on a clock of ours; bytes that were packed as they are keep their own."""
    about = found.about
    return "tubelet" in about and (about["format"] != "original" or about["video"] == "pictures")


def video_of(found: Sample) -> str:
    """What holds the frames: an ending of `members`, or "pictures"."""
    told = found.about.get("video") if "tubelet" in found.about else None
    if told is not None:
        return str(told)
    videos = [ending for ending in found.members if ending.lower().rpartition(".")[2] in VIDEOS]
    if not videos and found.pictures is None:
        raise UnreadableVideo(found.place, f"no video in the sample, only {', '.join(found.members) or 'nothing'}")
    return videos[0] if videos else "pictures"


def _rate(found: Sample, fps: float | None) -> float:
    return float(found.about["fps"]) if _packed(found) else fps or PICTURES_FPS


def _starts_s(found: Sample, fps: float | None) -> numpy.ndarray:
    """When the display of each frame starts."""
    if "starts_s" in found.about and _packed(found):
        return numpy.array(found.about["starts_s"], dtype=numpy.float64)
    count = found.about["frames"] if _packed(found) else len(_pictures(found).sizes)
    if not 0 < count <= MOST_FRAMES:
        raise UnreadableVideo(found.place, f"it is damaged: its JSON claims {count:,} frames")
    return numpy.arange(count) / _rate(found, fps)


def _pictures(found: Sample) -> Pictures:
    if found.pictures is None or not len(found.pictures.sizes):
        raise UnreadableVideo(found.place, "it has no pictures")
    return found.pictures


def _painted(found: Sample, numbers: list[int], short_side: int | None) -> numpy.ndarray:
    """Pictures, T H W C uint8."""
    return pictures.paint(_decoded(found, numbers), len(numbers), short_side)


def _decoded(found: Sample, numbers: list[int]) -> Iterator[VideoFrame]:
    decoder = pictures.Decoder()
    for number, encoded in zip(numbers, found.encoded(numbers), strict=True):
        try:
            yield decoder(encoded)[0]
        except ValueError as error:
            raise UnreadableVideo(found.place, f"picture {number}: {error}") from None


def _rows(found: Sample, numbers: list[int], short_side: int | None) -> numpy.ndarray:
    """Frames of a NumPy file, T H W C uint8."""
    offset, count = found.members["npy"]
    shape = int(found.about["height"]), int(found.about["width"]), 3
    each = shape[0] * shape[1] * shape[2]
    first = offset + count - found.about["frames"] * each  # after NumPy's header
    ranges = [(first + number * each, each) for number in numbers]
    frames = []
    for number, pixels in zip(numbers, found.parts(ranges), strict=True):
        found.compare(pixels, found.about["crc32"][number], f"frame {number}")
        frames.append(numpy.frombuffer(pixels, numpy.uint8).reshape(shape))
    if short_side is None or short_side >= min(shape[:2]):
        return numpy.stack(frames)  # T H W C
    shown = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
    return pictures.paint(shown, len(frames), short_side)  # T H W C


# Finding


@lru_cache(maxsize=1024)
def _index(tar: Place, _stamp: tuple[int, int] | None) -> Index:
    try:
        with storage.opened(index_place(tar)) as file:
            encoded = file.read()
    except (FileNotFoundError, PermissionError):
        return _walked(tar)
    except OSError as error:
        raise UnreadableVideo(tar, f"its index cannot be read: {error}") from error
    if not encoded.startswith(OURS):
        return _walked(tar)
    try:
        found = parse_index(encoded.decode())
    except (ValueError, TypeError):
        raise UnreadableVideo(tar, f"{index_place(tar).name} is damaged or of another version") from None
    try:
        size = storage.size(tar)
    except OSError as error:
        raise UnreadableVideo(tar, error.strerror or "it cannot be read") from None
    if size != found.shard["bytes"]:
        raise UnreadableVideo(tar, f"it is not whole: {size:,} bytes, and {found.shard['bytes']:,} by its index")
    return found


def _walked(tar: Place) -> Index:
    """The samples of a tar of others."""
    rows: list[tuple[bytes, int, int]] = []
    try:
        with storage.opened(tar) as file:
            for member in pictures.files_of_tar(file):
                key = _key_and_ending(member.name)
                if key is None:
                    continue
                end = member.offset_data + padded(member.size)
                name = key[0].encode()
                if rows and rows[-1][0] == name:
                    rows[-1] = name, rows[-1][1], end - rows[-1][1]
                else:
                    rows.append((name, member.offset, end - member.offset))
    except OSError as error:
        raise UnreadableVideo(tar, error.strerror or "it cannot be read") from None
    except tarfile.TarError as error:
        raise UnreadableVideo(tar, f"not a tar, or damaged: {error}") from None
    rows.sort()
    names, offsets, sizes = zip(*rows, strict=True) if rows else ((), (), ())
    return Index(
        numpy.array(names, dtype="S"), numpy.array(offsets, dtype=numpy.int64), numpy.array(sizes, dtype=numpy.int64)
    )


@lru_cache(maxsize=256)
def _sample(place: Place, tar: Place, key: str, stamp: tuple[int, int] | None) -> Sample:
    try:
        found = _index(tar, stamp)
    except UnreadableVideo as error:
        raise UnreadableVideo(place, f"its shard {tar.name} cannot be used: {error.reason}") from None
    row = found.row(key)
    if row is None:
        raise UnreadableVideo(place, f"the shard {tar.name} has no sample {key!r}")
    offset, size = int(found.offsets[row]), int(found.sizes[row])
    if found.json_sizes is None or found.json_checksums is None:
        return _sample_of_others(place, tar, offset, size)
    return _sample_of_ours(place, tar, offset, size, int(found.json_sizes[row]), int(found.json_checksums[row]))


def _sample_of_ours(
    place: Place, tar: Place, offset: int, size: int, json_size: int, json_checksum: int
) -> Sample:
    """Where everything lies is told by the JSON, which comes first."""
    try:
        (encoded,) = _parts(place, tar, [(offset + BLOCK, json_size)])
        if zlib.crc32(encoded) != json_checksum:
            raise ValueError
        about = json.loads(encoded)
        told, files = about.get("pictures"), about["files"]
        members = {"json": (offset + BLOCK, json_size)}
        at = offset + BLOCK + padded(json_size)
        stored = None
        if told is not None:
            sizes = numpy.array(told["bytes"], dtype=numpy.int64)
            taken = BLOCK + -(-sizes // BLOCK) * BLOCK
            stored = Pictures(
                told["suffix"], at + BLOCK + numpy.cumsum(taken) - taken, sizes, numpy.array(told["crc32"])
            )
            at += int(taken.sum())
        for ending, (count, _) in files.items():
            members[ending] = at + BLOCK, count
            at += BLOCK + padded(count)
        if at != offset + size:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadableVideo(place, f"it is damaged in {tar.name}: its JSON is not what was packed") from None
    checksums = {ending: crc for ending, (_, crc) in files.items()}
    return Sample(place, tar, about, members, stored, checksums | {"json": json_checksum})


def _sample_of_others(place: Place, tar: Place, offset: int, size: int) -> Sample:
    """The headers of a sample's files are walked through."""
    members: dict[str, tuple[int, int]] = {}
    one_by_one: list[tuple[str, int, int]] = []
    try:
        for member in pictures.files_of_tar(io.BufferedReader(storage.Window(tar, offset, size), BLOCK)):
            named = _key_and_ending(member.name)
            if named is None:
                continue
            where = offset + member.offset_data, member.size
            if f".{named[1].lower().rpartition('.')[2]}" in pictures.SUFFIXES:
                one_by_one.append((named[1], *where))
            else:
                members[named[1]] = where
    except OSError as error:
        raise UnreadableVideo(place, f"its shard {tar.name} cannot be read: {error}") from None
    except tarfile.TarError as error:
        raise UnreadableVideo(place, f"its shard {tar.name} is damaged: {error}") from None
    stored = None
    if one_by_one:
        at = {name: (offset, count) for name, offset, count in one_by_one}
        names = natural_sort(at)
        suffix = names[0].lower().rpartition(".")[2]
        stored = Pictures(suffix, *(numpy.array([at[name][i] for name in names]) for i in (0, 1)))
    found = Sample(place, tar, {}, members, stored)
    about = None
    if "json" in members:
        with suppress(ValueError):
            about = json.loads(found.read("json"))
    return replace(found, about=about) if isinstance(about, dict) else found


def _key_and_ending(name: str) -> tuple[str, str] | None:
    """A name divided at the first dot of its last part; None where it is hidden or has no ending."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, dot, ending = file.partition(".")
    if not stem or not dot:
        return None
    return (f"{folder}/{stem}" if folder else stem), ending


def _parts(place: Place, tar: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each (offset, count), in growing order; near ones on object storage in one request."""
    hole = 0 if isinstance(tar, Path) else REQUEST
    runs: list[list[tuple[int, int]]] = []
    for offset, count in ranges:
        if hole and runs and offset - sum(runs[-1][-1]) < hole:
            runs[-1].append((offset, count))
        else:
            runs.append([(offset, count)])
    found = []
    try:
        for run in runs:
            begin = run[0][0]
            together = storage.part(tar, begin, sum(run[-1]) - begin)
            found += [together[offset - begin : offset - begin + count] for offset, count in run]
    except OSError as error:
        raise UnreadableVideo(place, f"its shard cannot be read: {error}") from None
    return found
