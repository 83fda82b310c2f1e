"""Figures as inline SVG: they take the colour of the text around them, so they suit light and dark pages alike.

Matplotlib (the extra ``viz``) is imported only when a figure is drawn.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy
from numpy import ndarray

from tubelet.types import TubeletError

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
"""The "bright" scheme of Paul Tol, told apart with any colour vision, on white and on black."""
MARKERS = "os^D"
DISTINCT = len(COLOURS) * len(MARKERS)
"""So many classes can be told apart by colour and shape; beyond that colours only follow the order of the classes."""
NO_LABEL = "#888888"
INK = "#13579b"
"""Stands for ``currentColor`` until the SVG is written; no data is drawn in it."""
SHADE = "#2F6DB5"
Result = Mapping[str, Any]


@contextmanager
def style(ink: str = INK, paper: str = "none") -> Iterator[Any]:
    """Matplotlib with our settings, drawing to memory: gives the type of a figure.

    Args:
        ink: colour of lines and letters.
        paper: colour of the ground; "none" lets the page be seen.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure  # never pyplot: no window, no global state
    except ImportError as error:
        raise TubeletError("figures need Matplotlib: pip install 'tubelet[viz]'") from error
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    settings: Any = {
        **dict.fromkeys(inked, ink), **dict.fromkeys(clear, paper),
        "font.size": 10.5, "font.family": "sans-serif", "text.parse_math": False, "svg.fonttype": "none",
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.axisbelow": True,
        "axes.grid": True, "grid.alpha": 0.18, "legend.frameon": False, "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the browser has letters that Matplotlib lacks
        yield Figure


def _svg(figure: Any, name: str) -> str:
    """The figure as an ``<svg>`` element to be put into HTML; ``name`` is read out and makes its ids its own."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same figure gives the same bytes
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.04, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[A-Za-z0-9.]+_\d+">', "<g>", text)  # Matplotlib's names repeat from figure to figure
    opening = re.search(r'viewBox="([^"]+)"', text)
    assert opening is not None
    label = escape(name, quote=True)
    text = f'<svg role="img" aria-label="{label}" viewBox="{opening[1]}">' + text[text.index(">") + 1 :]
    return text.replace(INK, "currentColor")


def curve(name: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit: str, *, percent: bool = False,
          smooth: bool = False, level: tuple[str, float] | None = None) -> str:  # fmt: skip
    """Numbers over steps.

    Args:
        name: what the figure shows.
        lines: for each line its steps and values.
        unit: what the values are, with their unit.
        percent: values are shares; they are shown times 100.
        smooth: draw the values faint and their running mean over them.
        level: name and height of a dashed line to compare with.
    """
    with style() as figure_type:
        figure = figure_type(figsize=(4.6, 3.0))
        axes = figure.add_subplot()
        scale = 100 if percent else 1
        for index, (label, (steps, values)) in enumerate(lines.items()):
            colour, heights = COLOURS[index % len(COLOURS)], numpy.asarray(values, dtype=float) * scale
            if smooth and len(heights) > 20:
                axes.plot(steps, heights, color=colour, alpha=0.3, linewidth=1)
                heights = running_mean(heights, len(heights) // 20)
            marker = "o" if len(heights) <= 20 else None
            axes.plot(steps, heights, color=colour, label=label, marker=marker, markersize=4)
        if level is not None:
            axes.axhline(level[1] * scale, color=NO_LABEL, linestyle="--", linewidth=1.2, label=level[0])
        if len(lines) + (level is not None) > 1:
            axes.legend(fontsize=9)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        axes.set(xlabel="optimiser step", ylabel=unit)
        return _svg(figure, name)


def running_mean(values: ndarray, width: int) -> ndarray:
    """Mean of each value and the ``width`` around it (fewer at the ends), so that nothing is shifted."""
    half = max(1, width) // 2
    total = numpy.concatenate([[0.0], numpy.cumsum(values)])
    low = numpy.clip(numpy.arange(len(values)) - half, 0, None)
    high = numpy.clip(numpy.arange(len(values)) + half + 1, None, len(values))
    return (total[high] - total[low]) / (high - low)


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Of each class (row) the share taken for each class (column); numbers up to 20 classes, names up to 60."""
    counts = numpy.asarray(matrix, dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(1)
    number = len(classes)
    top = 100 if number <= 20 else max(1.0, shares.max())  # many classes have faint diagonals
    with style() as figure_type:
        from matplotlib.colors import LinearSegmentedColormap, to_rgba

        fading = [to_rgba(SHADE, 0.0), to_rgba(SHADE, 1.0)]  # into the page, light or dark
        ramp = LinearSegmentedColormap.from_list("ink", fading)
        size = min(7.5, max(4.2, 2.2 + 0.42 * number))
        figure = figure_type(figsize=(size, size))
        axes = figure.add_subplot()
        image = axes.imshow(shares, cmap=ramp, vmin=0, vmax=top, interpolation="none")
        axes.grid(visible=False)
        axes.set(xlabel="predicted class", ylabel="true class")
        if number <= 60:
            font = 10 if number <= 12 else 8 if number <= 30 else 5.5
            names = [shorten(name) for name in classes]
            axes.set_xticks(range(number), names, rotation=90 if len("".join(names)) > 24 else 0, fontsize=font)
            axes.set_yticks(range(number), names, fontsize=font)
            axes.tick_params(length=0)
        if number <= 20:
            for (row, column), share in numpy.ndenumerate(shares):
                if counts[row, column]:
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=9 if number <= 12 else 7,
                              color="#ffffff" if share > 55 else INK)  # fmt: skip
        bar = figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class (%)")
        bar.outline.set_visible(False)
        return _svg(figure, "Confusion matrix")


def bars(results: Mapping[str, Mapping[str, Result]], chance: float | None = None) -> str:
    """Top-1 accuracy of each task (group) and encoder (bar) with its 95 % interval; dots are single seeds."""
    variants = list(dict.fromkeys(variant for by_variant in results.values() for variant in by_variant))
    count = sum(len(by_variant) for by_variant in results.values())
    with style() as figure_type:
        figure = figure_type(figsize=(7.6, 0.9 + 0.34 * count + 0.25 * len(results)))
        axes = figure.add_subplot()
        height, ticks, named = 0.0, [], set()
        for by_variant in results.values():
            first = height
            for variant, result in by_variant.items():
                value, (low, high) = 100 * result["top1"], [100 * edge for edge in result["interval"]]
                axes.barh(height, value, 0.82, color=COLOURS[variants.index(variant) % len(COLOURS)], alpha=0.85,
                          label=None if variant in named else variant)  # fmt: skip
                axes.plot([low, high], [height, height], color=INK, linewidth=1.4, marker="|", markersize=7)
                seeds = [100 * value for value in seed_values(result)]
                axes.plot(seeds, [height] * len(seeds), "o", color=INK, markersize=3.5, alpha=0.8)
                axes.text(max([high, *seeds]) + 1.2, height, f"{value:.1f}", va="center", fontsize=9.5)
                named.add(variant)
                height += 1
            ticks.append((first + height - 1) / 2)
            height += 0.7
        axes.set_yticks(ticks, [shorten(task) for task in results])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        axes.set(xlim=(0, 105), xlabel="top-1 accuracy on test videos (%)")
        if chance is not None:
            label = f"chance ({100 * chance:.1f} %)"
            axes.axvline(100 * chance, color=NO_LABEL, linestyle="--", linewidth=1.2, label=label)
        figure.legend(loc="outside upper center", ncols=4, fontsize=9.5)
        return _svg(figure, "Accuracy of each task and encoder")


def embedding_map(points: ndarray, labels: Sequence[int], classes: Sequence[str], how: str,
                  pictures: Mapping[int, ndarray] | None = None) -> str:  # fmt: skip
    """Clips as points in the plane, coloured by class.

    Args:
        points: N 2.
        labels: N class numbers, -1 = no label.
        how: how the points were made, such as "PCA".
        pictures: for some of the points a small picture, ``H W 3`` uint8, to stand in their place.

    Returns:
        SVG in which the points of class k are the ``<use>`` elements of the group ``map-k`` (k = -1 for no label),
        in the order of their index.
    """
    with style() as figure_type:
        figure = figure_type(figsize=(8.2, 6.2))
        axes = figure.add_subplot()
        numbers = numpy.asarray(labels)
        for label in sorted(set(numbers.tolist())):
            chosen = points[numbers == label]
            name = shorten(classes[int(label)]) if label >= 0 else "no label"
            marker = MARKERS[label // len(COLOURS)] if 0 <= label < len(classes) <= DISTINCT else "o"
            marks = axes.scatter(chosen[:, 0], chosen[:, 1], s=26, color=class_colour(label, len(classes)),
                                 marker=marker, label=name, linewidths=0, alpha=0.9)  # fmt: skip
            marks.set_gid(f"map-{label}")
        for index, picture in (pictures or {}).items():
            _picture(axes, points[index], picture, class_colour(labels[index], len(classes)))
        if 0 < len(classes) <= DISTINCT:
            columns = max(1, 95 // (6 + max(len(shorten(name)) for name in classes)))
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9, handletextpad=0.2)
        axes.set(xticks=[], yticks=[], xlabel=f"{how} 1 (no unit)", ylabel=f"{how} 2 (no unit)")
        axes.margins(0.06)
        return _svg(figure, f"Map of embeddings ({how})")


def class_colour(label: int, classes: int) -> str:
    """A colour for a class: one of `COLOURS` while shapes help to tell them apart, else its place on a ramp."""
    if label < 0:
        return NO_LABEL
    if classes <= DISTINCT:
        return COLOURS[label % len(COLOURS)]
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.12 + 0.8 * label / (classes - 1)))


def _picture(axes: Any, point: ndarray, picture: ndarray, colour: str) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    image = OffsetImage(picture, zoom=28 / picture.shape[0], interpolation="none")
    frame = {"edgecolor": colour, "linewidth": 2, "boxstyle": "square,pad=0.05", "facecolor": "none"}
    axes.add_artist(AnnotationBbox(image, tuple(point), pad=0, bboxprops=frame))


def seed_values(result: Result) -> list[float]:
    """The accuracy of each seed where a result was repeated, else nothing."""
    seeds = [seed.get("top1") if isinstance(seed, Mapping) else seed for seed in result.get("seeds", [])]
    return [float(seed) for seed in seeds if isinstance(seed, float) and math.isfinite(seed)]


def shorten(name: str, length: int = 24) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
