"""Figures of a transfer analysis for print, as PNG and PDF.

Colour-blind readers can tell the colours apart, and arms also differ in their markers, so that the figures can be read
without colours.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_spt.analysis.arms import Arm, curves
from lm_eval_spt.analysis.comparison import Row, group_of
from lm_eval_spt.analysis.distances import KINDS, coordinates
from lm_eval_spt.analysis.transfer import MEAN, Analysis
from lm_eval_spt.analysis.world_map import draw_land, equal_earth
from lm_eval_spt.common.errors import UserError
from lm_eval_spt.common.files import write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's palette without its yellow, which is too light for print."""

MARKERS = "osD^vPX*<>hp"
FORMATS = ("png", "pdf")
WIDTH = 7.0  # inches, the width of a page's text
STYLE: Any = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # an arm's name may hold dollar signs
}
NAMED_LANGUAGES = 60
"""A heat map names its languages if it has no more than these, and else their families."""

MAPS = 8
"""The most maps in a figure: as many as there are colours for arms."""

NAMED_FAMILIES = 12
"""Each family has a row if there are no more than these; else families of a single language share one."""


def draw(analysis: Analysis, arms: Sequence[Arm], folder: Path) -> list[Path]:
    """Draw all figures that the data allow, each as PNG and as PDF.

    They are ``distance`` (score over distance for each arm), ``families``, ``differences`` (from the reference, by
    family), ``heatmap`` and ``map`` (of the world: the reference's scores, and the gains of the others); and if arms
    differ in that setting alone, ``prompt_length`` and ``reparameterization`` (by family).

    Args:
        analysis: the numbers.
        arms: the arms that were analysed.
        folder: where the files are written.

    Returns:
        The files written.

    Raises:
        UserError: matplotlib is not installed, or a file can not be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'lm_eval_spt[plot]'") from None
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in _figures(analysis, arms):
            for ending in FORMATS:
                picture = io.BytesIO()
                # Without a date the same data give the same bytes.
                figure.savefig(picture, format=ending, metadata={"CreationDate": None} if ending == "pdf" else None)
                write(folder / f"{name}.{ending}", picture.getvalue())
                written.append(folder / f"{name}.{ending}")
    return written


def _figures(analysis: Analysis, arms: Sequence[Arm]) -> Iterator[tuple[str, Figure]]:
    yield "distance", _distance(analysis)
    yield "families", _families(analysis)
    others = [arm for arm in analysis.arms if arm != analysis.reference]
    if others:
        pairs = [(arm, arm, analysis.reference) for arm in others]
        title = f"{analysis.metric}: difference from {analysis.reference}, in points"
        yield "differences", _family_differences(analysis, pairs, title)
    yield "heatmap", _heatmap(analysis)
    yield "map", _map(analysis)
    lengths = curves(arms, "prompt_length")
    if lengths:
        yield "prompt_length", _prompt_length(analysis, arms, lengths)
    pairs = []
    for title, members in curves(arms, "reparameterization"):
        by_kind = {arms[index].reparameterization: arms[index].name for index in members}
        plain = by_kind.pop("none", None)
        pairs += [(f"{kind}, {title}", name, plain) for kind, name in by_kind.items() if plain is not None]
    if pairs:
        title = f"{analysis.metric}: with reparameterization minus without, in points"
        yield "reparameterization", _family_differences(analysis, pairs, title)


def _distance(analysis: Analysis) -> Figure:
    """A panel per distance: a point per target language and arm, a least-squares line per arm."""
    figure, panels = _new(2, 3, height=4.6, sharey=True)
    columns = [f"{kind}_distance" for kind in KINDS]
    for panel, kind, column in zip(panels.flat, KINDS, columns, strict=True):
        for index, arm in enumerate(analysis.arms):
            points = np.array(
                [
                    (row[column], 100 * row[analysis.metric])
                    for row in _target_rows(analysis, arm)
                    if row[column] is not None
                ]
            )
            if not len(points):
                continue
            x, y = points.T
            panel.scatter(x, y, s=10, alpha=0.6, linewidths=0, **_style(index))
            if np.ptp(x) > 0:
                slope, intercept = np.polyfit(x, y, 1)
                ends = np.array([x.min(), x.max()])
                panel.plot(ends, slope * ends + intercept, color=_style(index)["color"], linewidth=1.2)
        panel.set_title(kind)
        panel.locator_params(axis="x", nbins=5)
    for panel in panels[:, 0]:
        panel.set_ylabel(f"{analysis.metric} (%)")
    figure.supxlabel(f"distance from {analysis.source} ({analysis.method['distances'].partition(',')[0]})", fontsize=8)
    _legend(figure, analysis.arms)
    return figure


def _families(analysis: Analysis) -> Figure:
    """A row per family: the mean of each arm, and its languages as faint points."""
    families = _by_family(analysis)
    figure, panel = _new(height=_height(len(families), len(analysis.arms)))
    styles = [_style(index) for index in range(len(analysis.arms))]
    _family_points(panel, families, [_scores(analysis, arm) for arm in analysis.arms], styles)
    ends = [
        {row["group"]: (row["mean_low"], row["mean_high"]) for row in rows}
        for rows in (
            analysis.rows("groups", arm=arm, run=MEAN, metric=analysis.metric, grouping="family")
            for arm in analysis.arms
        )
    ]
    _family_intervals(panel, families, ends, styles)
    panel.set_xlabel(f"{analysis.metric} (%), with 95% intervals")
    _legend(figure, analysis.arms, styles)
    return figure


def _family_differences(analysis: Analysis, pairs: Sequence[tuple[str, str, str]], title: str) -> Figure:
    """A row per family: the mean difference of each pair, and its languages as faint points.

    A pair is a label, an arm's name, and the name of the arm subtracted.
    """
    families = _by_family(analysis)
    figure, panel = _new(height=_height(len(families), len(pairs)))
    panel.axvline(0, color="0.5", linewidth=0.8)
    # An arm keeps the colour that it has in the other figures.
    styles = [_style(list(analysis.arms).index(name)) for _, name, _ in pairs]
    differences = []
    for _, name, subtracted in pairs:
        scores, others = _scores(analysis, name), _scores(analysis, subtracted)
        differences.append({language: scores[language] - others[language] for language in scores})
    _family_points(panel, families, differences, styles)
    ends = [
        {
            row["scope"].removeprefix("family: "): (row["low"], row["high"])
            for row in analysis.rows("differences", arm=name, reference=subtracted)
        }
        for _, name, subtracted in pairs
    ]
    _family_intervals(panel, families, ends, styles)
    panel.set_xlabel(title)
    _legend(figure, [label for label, _, _ in pairs], styles)
    return figure


def _heatmap(analysis: Analysis) -> Figure:
    """Arms by languages; the languages are ordered by family and, within it, by the mean of all arms."""
    scores = {arm: _scores(analysis, arm) for arm in analysis.arms}
    order, borders = [], [0]
    families = _by_family(analysis)
    for languages in families.values():
        order += sorted(languages, key=lambda code: -sum(by_language[code] for by_language in scores.values()))
        borders.append(len(order))
    values = 100 * np.array([[scores[arm][language] for language in order] for arm in analysis.arms])
    figure, panel = _new(height=1.6 + 0.2 * len(analysis.arms))
    image = panel.imshow(values, aspect="auto", cmap="cividis", interpolation="nearest")
    panel.set_yticks(range(len(analysis.arms)), analysis.arms)
    if len(order) <= NAMED_LANGUAGES:
        panel.set_xticks(range(len(order)), order, rotation=90, fontsize=6)
    else:
        middles = [(start + end - 1) / 2 for start, end in zip(borders, borders[1:], strict=False)]
        wide = [index for index, languages in enumerate(families.values()) if len(languages) > 0.015 * len(order)]
        names = list(families)
        panel.set_xticks([middles[i] for i in wide], [names[i] for i in wide], rotation=45, ha="right", fontsize=7)
    for border in borders[1:-1]:
        panel.axvline(border - 0.5, color="white", linewidth=0.8)
    figure.colorbar(image, ax=panel, label=f"{analysis.metric} (%)")
    return figure


def _map(analysis: Analysis) -> Figure:
    """A world map of the reference's scores, and one for each other arm of its gain: a point per target language."""
    others = [arm for arm in analysis.arms if arm != analysis.reference][: MAPS - 1]
    columns = 1 if len(others) < 3 else 2
    rows = math.ceil((1 + len(others)) / columns)
    figure, panels = _new(rows, columns, height=min(9.0, rows * (3.0 if columns == 1 else 1.7)), squeeze=False)
    places = coordinates(language.partition("_")[0] for language in analysis.targets)
    reference = _scores(analysis, analysis.reference)
    gains = {
        arm: {language: score - reference[language] for language, score in _scores(analysis, arm).items()}
        for arm in others
    }
    largest = 100 * max((abs(gain) for by_language in gains.values() for gain in by_language.values()), default=0) or 1
    symmetric = {"cmap": "RdBu", "vmin": -largest, "vmax": largest}
    shown: list[tuple[str, Mapping[str, float], dict[str, Any]]] = [
        (f"{analysis.reference}: {analysis.metric} (%)", reference, {"cmap": "viridis"}),
        *((f"{arm}: gain in {analysis.metric}, points", gain, symmetric) for arm, gain in gains.items()),
    ]
    for panel in panels.flat[len(shown) :]:
        panel.axis("off")
    for panel, (title, values, colours) in zip(panels.flat, shown, strict=False):
        draw_land(panel)
        known = [language for language in analysis.targets if language.partition("_")[0] in places]
        latitude, longitude = np.array([places[language.partition("_")[0]] for language in known]).reshape(-1, 2).T
        points = panel.scatter(
            *equal_earth(latitude, longitude),
            c=[100 * values[language] for language in known],
            s=18 if columns == 1 else 9,
            edgecolors="0.25",
            linewidths=0.3,
            zorder=3,
            **colours,
        )
        panel.set_title(title, fontsize=8)
        figure.colorbar(points, ax=panel, shrink=0.8, aspect=30, pad=0.01)
    return figure


def _prompt_length(analysis: Analysis, arms: Sequence[Arm], lengths: Sequence[tuple[str, list[int]]]) -> Figure:
    """Score over the prompt's length: for each series of arms the targets' mean, and dashed the source language."""
    figure, panel = _new(height=3.2)
    means = {row["arm"]: row for row in analysis.rows("scores", run=MEAN, metric=analysis.metric)}
    for index, (_, members) in enumerate(lengths):
        members = sorted(members, key=lambda member: arms[member].runs[0].prompt_length or 0)
        x = [arms[member].runs[0].prompt_length for member in members]
        for key, line in (("targets", "-"), ("source", "--")):
            rows = [means[arms[member].name] for member in members]
            y = [100 * row[key] for row in rows]
            panel.plot(x, y, line, markersize=4, **_style(index))
            ends = [(at, row[f"{key}_low"], row[f"{key}_high"]) for at, row in zip(x, rows, strict=True)]
            for at, low, high in ends if key == "targets" else ():
                if low is not None:
                    panel.vlines(at, 100 * low, 100 * high, color=_style(index)["color"], linewidth=0.8)
    panel.set_xscale("log", base=2)
    ticks = sorted({arms[member].runs[0].prompt_length or 0 for _, members in lengths for member in members})
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_xlabel("prompt length (virtual tokens)")
    panel.set_ylabel(f"{analysis.metric} (%)")
    panel.set_title(f"solid: mean of {len(analysis.targets)} target languages; dashed: {analysis.source}", fontsize=8)
    _legend(figure, [title for title, _ in lengths])
    return figure


def _new(rows: int = 1, columns: int = 1, height: float = 3.0, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, made without pyplot, which would keep the figure and may need a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _legend(figure: Figure, labels: Sequence[str], styles: Sequence[dict[str, Any]] | None = None) -> None:
    from matplotlib.lines import Line2D

    styles = styles or [_style(index) for index in range(len(labels))]
    handles = [Line2D([], [], linestyle="", **style) for style in styles]
    widest = max(len(label) for label in labels)
    figure.legend(
        handles, labels, loc="outside upper center", ncols=max(1, min(len(labels), 100 // (widest + 6))), fontsize=7
    )


def _family_points(
    panel: Axes,
    families: Mapping[str, Sequence[str]],
    series: Sequence[Mapping[str, float]],
    styles: Sequence[dict[str, Any]],
) -> None:
    """Draw each series, language to share of 1, in a row per family: faint points and their mean, in percent."""
    for offset, by_language, style in zip(_offsets(len(series)), series, styles, strict=True):
        for position, languages in enumerate(families.values()):
            values = [100 * by_language[language] for language in languages]
            height = [position + offset] * len(values)
            panel.scatter(values, height, s=5, alpha=0.35, linewidths=0, **style)
            panel.scatter([np.mean(values)], height[:1], s=24, **style)
    panel.set_yticks(range(len(families)), [f"{name} ({len(languages)})" for name, languages in families.items()])
    panel.set_ylim(len(families) - 0.5, -0.5)
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)


def _family_intervals(
    panel: Axes,
    families: Mapping[str, Sequence[str]],
    series: Sequence[Mapping[str, tuple[float | None, float | None]]],
    styles: Sequence[dict[str, Any]],
) -> None:
    """Draw the interval of each family's mean, family to its ends as shares of 1, where it has one."""
    for offset, by_family, style in zip(_offsets(len(series)), series, styles, strict=True):
        for position, family in enumerate(families):
            low, high = by_family.get(family, (None, None))
            if low is not None and high is not None:
                panel.plot([100 * low, 100 * high], [position + offset] * 2, color=style["color"], linewidth=0.8)


def _height(families: int, arms: int) -> float:
    """The height in inches of rows of families, at most that of a page."""
    return min(9.0, 1.2 + families * (0.12 + 0.08 * arms))


def _offsets(count: int) -> np.ndarray:
    """The positions of `count` arms in a row of height 1."""
    return np.linspace(-0.3, 0.3, count) if count > 1 else np.zeros(1)


def _target_rows(analysis: Analysis, arm: str) -> list[Row]:
    """The rows of an arm as a whole, for the target languages that all arms have."""
    targets = set(analysis.targets)
    return [row for row in analysis.rows("languages", arm=arm, run=MEAN) if row["language"] in targets]


def _scores(analysis: Analysis, arm: str) -> dict[str, float]:
    return {row["language"]: row[analysis.metric] for row in _target_rows(analysis, arm)}


def _by_family(analysis: Analysis) -> dict[str, list[str]]:
    """Family to target languages, the largest family first; of many families, those of one language are joined."""
    families: dict[str, list[str]] = {}
    for language in analysis.targets:
        families.setdefault(group_of(language, "family") or "unknown", []).append(language)
    ordered = dict(sorted(families.items(), key=lambda item: (-len(item[1]), item[0])))
    if len(ordered) <= NAMED_FAMILIES:
        return ordered
    alone = [language for languages in ordered.values() if len(languages) == 1 for language in languages]
    ordered = {family: languages for family, languages in ordered.items() if len(languages) > 1}
    return ordered | {"others, one language each": alone} if alone else ordered
