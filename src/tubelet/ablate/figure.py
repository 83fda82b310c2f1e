"""A table of ablations as a picture: ours and the published numbers side by side, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.report.figures import COLOURS, NO_LABEL, style
from tubelet.tasks.protocol import in_words

INK = "#222222"
PUBLISHED = COLOURS[1]
OURS = COLOURS[0]
FAILED = "#b00020"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
"""What letters stand on, so that no line crosses them."""
MEAN, SEED = "mean ± standard deviation over seeds", "one seed"
LOGARITHMIC = ("epochs", "videos")
"""Axes whose points are doublings."""


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the figure of a `summary.Summary` as PNG.

    Raises:
        TubeletError: Matplotlib is not installed.
    """
    untrained = {row["untrained"] for row in summary["rows"]}
    rows = [row for row in summary["rows"] if row["name"] not in untrained]
    levels = {row["name"]: row["mean"] for row in summary["rows"] if row["name"] in untrained}
    panels: list[str | None] = list(summary["columns"])
    if any(row["published"] is not None for row in rows):
        panels.append(None)  # the published numbers
    width, height = (4.0, 3.1) if summary["axis"] else (3.1, 0.95 + 0.36 * len(rows))
    with style(ink=INK, paper="white") as figure_type:
        figure = figure_type(figsize=(width * len(panels) + (0.2 if summary["axis"] else 1.6), height + 0.65))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=not summary["axis"])[0]
        for axes, column in zip(grid, panels, strict=True):
            (_curve if summary["axis"] else _rows)(axes, rows, column, summary)
            told = {"color": NO_LABEL, "linestyle": "--", "linewidth": 1.2, "zorder": 0, "label": summary["baseline"]}
            if summary["axis"] and column in levels.get(summary["baseline"], {}):
                axes.axhline(levels[summary["baseline"]][column], **told)
            for height, row in enumerate(() if summary["axis"] else rows):  # each beside the network it began as
                if column in levels.get(row["untrained"], {}):
                    axes.vlines(levels[row["untrained"]][column], height - 0.5, height + 0.5, **told)
            means = [mean for row in rows for mean, _, _ in [_numbers(row, column)] if mean is not None]
            _from_nought(axes, "y" if summary["axis"] else "x", min(means, default=100.0))
        lines = dict(zip(*reversed(grid[0].get_legend_handles_labels()), strict=True))  # each name once
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8.5)
        figure.suptitle(summary["title"], fontsize=11.5)
        figure.savefig(path, format="png", dpi=160)


def _from_nought(axes: Any, which: str, least: float) -> None:
    """No accuracy is below 0 %, however far a deviation reaches; one of about 0 has room for its point and label."""
    low, high = getattr(axes, f"get_{which}lim")()
    room = 0.08 * high
    getattr(axes, f"set_{which}lim")(max(-room if least < room else 0.0, low), high)


def _rows(axes: Any, rows: list[Mapping[str, Any]], column: str | None, summary: Mapping[str, Any]) -> None:
    """One line of the picture for each row of the table; the first is on top."""
    for height, row in enumerate(rows):
        mean, std, seeds = _numbers(row, column)
        if mean is None:
            lacks = "failed" if column is not None and row["errors"] else ""
            axes.text(0.03, height, lacks, transform=axes.get_yaxis_transform(), color=FAILED, va="center", fontsize=9,
                      bbox=BEHIND)  # fmt: skip
            continue
        colour = PUBLISHED if column is None else OURS
        axes.errorbar(mean, height, xerr=std, color=colour, marker="o", markersize=6, capsize=3, label=MEAN)
        axes.plot(seeds, [height] * len(seeds), "|", color=INK, markersize=7, alpha=0.7, label=SEED)
        axes.annotate(f"{mean:.1f}", (mean, height), (0, 8), textcoords="offset points", ha="center", fontsize=9,
                      bbox=BEHIND)  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.margins(x=0.18)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(_measure(column, summary))
    axes.set_title(_title(column, summary), fontsize=10)


def _curve(axes: Any, rows: list[Mapping[str, Any]], column: str | None, summary: Mapping[str, Any]) -> None:
    """The rows as points of a curve."""
    points = [(row["x"], *_numbers(row, column)) for row in rows]
    known = sorted((point for point in points if point[0] is not None and point[1] is not None), key=lambda p: p[0])
    colour = PUBLISHED if column is None else OURS
    axes.errorbar(
        [x for x, *_ in known], [mean for _, mean, _, _ in known], yerr=[std or 0.0 for _, _, std, _ in known],
        color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.2, label=MEAN,
    )  # fmt: skip
    for x, _, _, seeds in known:
        axes.plot([x] * len(seeds), seeds, "_", color=INK, markersize=7, alpha=0.7, label=SEED)
    if summary["axis"] in LOGARITHMIC:
        axes.set_xscale("log", base=2)
    places = [x for x, *_ in points if x is not None]
    axes.set_xticks(places, [f"{x:.2g}" if x < 100 else f"{x:.0f}" for x in places], fontsize=9)
    axes.minorticks_off()
    if places:
        edge = (max(places) / min(places)) ** 0.08 if summary["axis"] in LOGARITHMIC else 1.03
        axes.set_xlim(min(places) / edge, max(places) * edge)
    axes.set(xlabel=summary["axis"], ylabel=_measure(column, summary))
    axes.set_title(_title(column, summary), fontsize=10)


def _numbers(row: Mapping[str, Any], column: str | None) -> tuple[float | None, float | None, list[float]]:
    """Mean, deviation and single seeds of a row in a panel; of the published ones there is the number alone."""
    if column is None:
        return row["published"], None, []
    return row["mean"].get(column), row["std"].get(column), list(row["values"][column].values())


def _measure(column: str | None, summary: Mapping[str, Any]) -> str:
    """What a panel's numbers are."""
    return "top-1 %" if column is None else f"{in_words(summary['numbers'][column])} %"


def _title(column: str | None, summary: Mapping[str, Any]) -> str:
    if column is not None:
        return f"ours: {column}" if summary["published"] else column
    return "published: " + summary["published"]["measure"].partition(", top-1")[0]
