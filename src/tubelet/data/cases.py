"""What can be found in a video: each case with how bad it is, what it means and what helps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """A code of `CASES`, and what of this video it is about."""

    code: str
    detail: str = ""


@dataclass(frozen=True)
class Case:
    """What can be found. Severity "unreadable": it is not to be trained on; "warning": better look at it; "note"."""

    severity: Literal["unreadable", "warning", "note"]
    meaning: str
    remedy: str


_AGAIN = "Fetch it again, or leave it out."
_ENCODE = "Encode it again (ffmpeg -i IN -c:v libx264 OUT.mp4), or leave it as it is if that is meant."

CASES: dict[str, Case] = {
    # What no frame can be had of.
    "missing": Case("unreadable", "There is no such file.", "Fetch it, or mend its path in the manifest."),
    "no_permission": Case("unreadable", "It may not be read.", "Give yourself the right to read it (chmod +r)."),
    "folder": Case("unreadable", "It is a folder without pictures.", "Name the files in it."),
    "not_a_file": Case("unreadable", "It is a pipe, a socket or a device.", "Copy what comes from it to a file."),
    "empty": Case("unreadable", "It has no bytes.", _AGAIN),
    "no_index": Case(
        "unreadable", "Its index (moov) is missing: an interrupted download or recording.",
        "Fetch it again; a recording may be mended with untrunc.",
    ),
    "text": Case("unreadable", "It is text: a web page, an error message, a playlist.", _AGAIN),
    "still_image": Case("unreadable", "It is a photograph.", "Leave it out, or put a series of them into a folder."),
    "resource_fork": Case(
        "unreadable", "It is what macOS leaves beside a file (._NAME), and holds no video.", "Delete it."
    ),
    "not_a_video": Case("unreadable", "It is not a video, or its header is damaged.", _AGAIN),
    "no_video": Case("unreadable", "It has sound, or other data, and no video.", "Leave it out."),
    "cover_only": Case("unreadable", "Its only picture is a cover.", "Leave it out."),
    "unknown_codec": Case("unreadable", "No decoder for it is built in.", "Encode it again with what wrote it."),
    "nothing_decodes": Case("unreadable", "None of its frames can be decoded.", _AGAIN),
    "breaks_off": Case("unreadable", "It ends in the first half of what its header promises.", _AGAIN),
    "mostly_damaged": Case("unreadable", "Most of its frames are damaged.", _AGAIN),
    "bad_picture": Case(
        "unreadable", "A picture of a series is damaged, or of another size than the others.", "Make it anew."
    ),
    "unreadable": Case("unreadable", "It cannot be read.", _AGAIN),
    # What is wrong with the file.
    "cut_short": Case(
        "warning", "It ends before its header says: clips from there repeat the last frame.", _AGAIN
    ),
    "damaged_middle": Case(
        "warning", "Frames inside are damaged or missing: others stand in for them.", _AGAIN
    ),
    "starts_without_key_frame": Case(
        "note", "It starts with frames that cannot be decoded; times count from the first that can.", _ENCODE
    ),
    "duration_differs": Case(
        "warning", "It is longer than its header says: no clip reaches its end.", "Remux it (ffmpeg -i IN -c copy OUT)."
    ),
    # Time.
    "no_timestamps": Case("note", "Its frames have no times: they are counted, at its rate.", _ENCODE),
    "timestamps_not_increasing": Case(
        "warning", "Times of frames are equal or run backwards: frames are hidden by others.", _ENCODE
    ),
    "starts_late": Case("note", "Its clock does not start at 0. Times count from the first frame.", "None is needed."),
    "edit_list": Case("note", "An edit list hides frames, or shows them in another order.", "None is needed."),
    "variable_rate": Case("note", "Frames last differently. Clips go by time, so that is heeded.", "None is needed."),
    "rate_differs": Case(
        "warning", "It shows other frames a second than its header says: strides span other times.", _ENCODE
    ),
    "rate_unbelievable": Case(
        "warning", "Its rate is hardly that of a film: strides span very short or long times.",
        "Look whether it is a time-lapse or high-speed film, or its header is wrong.",
    ),
    # Length.
    "one_frame": Case("warning", "It has one frame.", "Leave it out, or use it as an image."),
    "shorter_than_a_clip": Case(
        "warning", "It is shorter than a clip: the last frame is repeated.", "Take fewer frames, or a smaller stride."
    ),
    "very_long": Case("note", "It is longer than an hour.", "Cut it up, so that it is not drawn as one video."),
    # Size and shape.
    "tiny": Case("warning", "It is smaller than a patch.", "Leave it out."),
    "huge_picture": Case("note", "Its pictures are far larger than a clip.", "Pack it with a short side of 320 or so."),
    "odd_size": Case("note", "An odd number of pixels.", "None is needed."),
    "extreme_aspect": Case("warning", "Long and slim: square crops miss most of it.", "Cut it, or leave it out."),
    "non_square_pixels": Case(
        "note", "Its pixels are not square. They are read as stored, so things look squeezed.",
        "Encode it again with -vf scale=iw*sar:ih,setsar=1.",
    ),
    "rotated": Case("note", "It is turned for display, which is heeded.", "None is needed."),
    "mirrored": Case("warning", "It is to be mirrored for display.", _ENCODE),
    "size_changes": Case("warning", "Its size changes inside: later frames are brought to the first size.", _ENCODE),
    "interlaced": Case("warning", "Interlaced: what moves has combs.", "Encode it again with -vf bwdif."),
    # Pixels.
    "high_bit_depth": Case("note", "More than 8 bits a channel, which are rounded.", "None is needed."),
    "hdr": Case(
        "warning", "High dynamic range, read without tone mapping: colours are pale.",
        "Encode it again with -vf zscale,tonemap.",
    ),
    "full_range": Case("note", "Full range of brightness, which is heeded.", "None is needed."),
    "alpha": Case("note", "It is transparent in places; what is behind is shown.", "None is needed."),
    # Streams.
    "several_videos": Case("note", "It has several videos, of which one is read.", "Keep the one that is meant."),
    "animation": Case("note", "An animated picture.", "Leave it out if it is no film."),
    "wrong_ending": Case("note", "Its name ends unlike its kind.", "Rename it."),
    # What is to be seen.
    "black": Case("warning", "It is black.", "Leave it out."),
    "constant": Case("warning", "Its frames are of one colour each.", "Leave it out."),
    "frozen": Case("warning", "A still picture: nothing moves.", "Leave it out."),
    "repeats_frames": Case(
        "note", "Frames are doubled to reach a rate: there is less motion than it says.", "None is needed."
    ),
    "letterbox": Case("note", "Black bars that are part of the picture.", "Crop it (ffmpeg -vf cropdetect finds how)."),
}  # fmt: skip

_REFUSALS = {
    "missing": r"no such file|symbolic links",
    "no_permission": r"permission",
    "folder": r"folder|no pictures",
    "not_a_file": r"not a file",
    "empty": r"empty",
    "no_index": r"its index",
    "text": r"text file",
    "still_image": r"still image",
    "cover_only": r"only a cover",
    "no_video": r"no video stream",
    "unknown_codec": r"codec",
    "nothing_decodes": r"none of its frames",
    "breaks_off": r"breaks off",
    "not_a_video": r"not a video",
    "bad_picture": r"damaged or cut short|give all one size|not a JPEG",
}
"""Which reason of a reader has which code; the first that fits."""


def refusal(reason: str) -> str:
    """The code of a reader's reason."""
    return next((code for code, pattern in _REFUSALS.items() if re.search(pattern, reason)), "unreadable")
