"""Whether a pack is still what was packed: every checksum of every shard, compared."""

from __future__ import annotations

import hashlib
import math
import zlib

from tubelet import log
from tubelet.data import shards, storage
from tubelet.data.pack import PLAN, index_now, plan_of, shard_name
from tubelet.data.storage import Place
from tubelet.data.workers import Failure, Workers, cores
from tubelet.types import TubeletError


def verify(out: Place, workers: int | None = None) -> tuple[int, list[tuple[Place, str]]]:
    """Reads a pack through and compares every checksum.

    A damaged shard is made anew by a start without its index.

    Returns:
        How many samples are whole, and the places that are not, with what is wrong.

    Raises:
        TubeletError: there is no pack.
    """
    plan = plan_of(out)
    if plan is None:
        raise TubeletError(f"no pack in {out}: {PLAN} is missing")
    if plan.get("tubelet") != shards.VERSION:
        raise TubeletError(f"{out} was packed by another version of Tubelet: pack it again")
    count = -(-plan["videos"] // plan["per_shard"])
    crew: Workers[int, tuple[int, list[tuple[Place, str]]]] = Workers(
        lambda number: _verify_shard(out / shard_name(number)), cores() if workers is None else workers, math.inf
    )
    whole, damaged = 0, []
    with log.progress("verifying", count) as advance:
        for number, answer in crew.map(range(count)):
            if isinstance(answer, Failure):
                answer = 0, [(out / shard_name(number), answer.reason)]
            whole, damaged = whole + answer[0], damaged + answer[1]
            advance()
    return whole, damaged


def _verify_shard(tar: Place) -> tuple[int, list[tuple[Place, str]]]:
    try:
        index = index_now(tar)
    except FileNotFoundError:
        return 0, [(tar, "its index is gone")]
    except (OSError, ValueError):
        return 0, [(tar, "its index is damaged, or of another version")]
    assert index.checksums is not None, "an index has them; only a tar that was walked through has none"
    try:
        damaged: list[tuple[Place, str]] = []
        digest = hashlib.sha256()
        with storage.opened(tar) as file:
            for key, size, expected in zip(index.keys, index.sizes, index.checksums, strict=True):
                checksum, left = 0, int(size)
                while left > 0:
                    block = file.read(min(left, 1 << 20))
                    if not block:
                        break
                    left -= len(block)
                    digest.update(block)
                    checksum = zlib.crc32(block, checksum)
                if left or checksum != expected:
                    damaged.append((tar / key.decode(), "it is not what was packed: its checksum is another"))
            digest.update(file.read())
    except OSError as error:
        return 0, [(tar, storage.words(error))]
    if not damaged and digest.hexdigest() != index.shard["sha256"]:
        damaged.append((tar, "its end is damaged; the samples are whole"))
    return len(index.keys) - len(damaged), damaged
