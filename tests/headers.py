"""What a packaged recipe says of itself in the comment before its settings."""

from __future__ import annotations

import shlex

from tubelet import recipe

NAMES = recipe.packaged()
PUBLISHED = [name for name in NAMES if name.partition("/")[0] in ("v1", "v2", "mae_st", "pyslowfast")]


def header(name: str) -> list[str]:
    """The lines of the opening comment, without their marks."""
    lines = recipe.find(name).read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return [line.removeprefix("#").removeprefix(" ") for line in lines]


def commands(name: str) -> list[list[str]]:
    """The words of the commands, which are indented; a backslash goes on with the next line."""
    text = "\n".join(line[2:] for line in header(name) if line.startswith("  "))
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True)) and "tubelet" in words]


def facts(name: str) -> dict[str, str]:
    """What stands after `Cost:`, `Published:` and the like."""
    found: list[tuple[str, str]] = []
    for line in header(name):
        word, colon, rest = line.partition(": ")
        if colon and word[:1].isupper() and word.count(" ") < 2:
            found.append((word, rest))
        elif found and not line.startswith("  "):
            word, before = found.pop()
            found.append((word, f"{before} {line}"))
    return dict(found)
