"""The report's figures as inline SVG.

Text and axes use the page's color, so figures suit light and dark pages.
"""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

from pipeline.report.arms import Arms
from pipeline.report.summary import Rate

# Okabe and Ito's colors, distinct for color-blind readers; the base model is gray. Markers repeat the
# distinction.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASE_COLOR = "#8A8A8A"
MARKERS = ("s", "D", "^", "v", "P", "X")
BASE_MARKER = "o"

INK = "#010203"  # placeholder for the page's text color in matplotlib's output
WIDTH = 7.4  # inches; the page scales it
STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.parse_math": False,  # a category may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "legend.frameon": False,
}

LEGEND = {"ncols": 5, "handletextpad": 0.3, "columnspacing": 1.4}


@dataclass(frozen=True)
class Panel:
    """Rates: one row per label, one point per arm in each row."""

    title: str
    rows: list[tuple[str, dict[str, Rate]]]


def rates(
    panels: list[Panel],
    arms: Sequence[str],
    label: str,
    *,
    legend: bool = True,
    axis: str = "harmless answers, %",
) -> str:
    """Points with 95 % Wilson intervals; the panels share their rows.

    `arms[0]` is the base model. axis: what the rates are of. Returns an <svg> element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [name for name, _ in panels[0].rows]
    most = max(len(points) for panel in panels for _, points in panel.rows)
    spread = 0.0 if most < 2 else 0.56
    with rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(WIDTH, 0.66 + 0.2 * legend + len(rows) * (0.2 + 0.1 * most)))
        figure.set_layout_engine("constrained", wspace=0.05)
        for axes, panel in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
        ):
            for y, (_, points) in enumerate(panel.rows):
                for i, (arm, rate) in enumerate(points.items()):
                    if rate.value is not None:
                        offset = spread * (i / (most - 1) - 0.5) if most > 1 else 0.0
                        _point(axes, rate.value, rate.interval, y + offset, *_look(arm, arms))
            axes.set(
                title=panel.title,
                xlim=(-2, 102),
                xticks=range(0, 101, 25),
                ylim=(len(rows) - 0.5, -0.5),
                yticks=range(len(rows)),
            )
            axes.set_yticklabels([_short(name) for name in rows])
            axes.title.set_fontsize(8.5)
            _calm(axes, "x")
        figure.supxlabel(axis, fontsize=8)
        if legend:
            figure.legend(handles=_legend(arms, arms), loc="outside upper left", **LEGEND)
        return _svg(figure, label)


def against(
    points: dict[str, tuple[Rate, Rate]], arms: Sequence[str], label: str, axes_labels: tuple[str, str]
) -> str:
    """Two rates of every arm as one point, the first to the right, the second upwards, with both intervals.

    axes_labels: of the first and of the second rate. Returns an <svg> element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(0.6 * WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for arm, (right, up) in points.items():
            color, marker = _look(arm, arms)
            x, y = (100 * (rate.value or 0.0) for rate in (right, up))
            _point(axes, right.value or 0.0, right.interval, y, color, marker)
            axes.plot([x, x], [100 * end for end in up.interval], color=color, linewidth=1.1, alpha=0.75)
        ticks = range(0, 101, 25)
        axes.set(xlabel=axes_labels[0], ylabel=axes_labels[1], xticks=ticks, yticks=ticks)
        axes.set(xlim=(-2, 102), ylim=(-2, 102))
        _calm(axes, "both")
        figure.legend(handles=_legend([*points], arms), loc="outside upper left", **{**LEGEND, "ncols": 3})
        return _svg(figure, label)


def over_steps(
    curves: dict[str, list[tuple[float, float]]],
    arms: Sequence[str],
    label: str,
    axis: str,
    *,
    height: float = 2.5,
) -> str:
    """A figure of training over optimizer steps, one line per arm; height in inches.

    Returns an <svg> element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        for arm, points in curves.items():
            _line(axes, [(x, y) for x, y in points if math.isfinite(y)], *_look(arm, arms))
        axes.set(xlabel="optimizer step", ylabel=axis)
        _calm(axes, "y")
        handles = _legend([*curves], arms)
        axes.legend(handles=handles, loc="best", ncols=min(len(handles), 3))
        return _svg(figure, label)


def over_lengths(
    curves: dict[str, list[tuple[int, float, tuple[float, float]]]],
    arms: Sequence[str],
    label: str,
    axis: str,
) -> str:
    """Corr@k over k, one line per arm with its interval as a band.

    `curves`: arm → (k, share, interval). Returns an <svg> element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for arm, points in curves.items():
            color, marker = _look(arm, arms)
            ends = [(k, 100 * low, 100 * high) for k, _, (low, high) in points]
            if ends:
                lengths, lows, highs = zip(*ends, strict=True)
                axes.fill_between(lengths, lows, highs, color=color, alpha=0.16, linewidth=0)
            _line(axes, [(k, 100 * value) for k, value, _ in points], color, marker)
        known = sorted({k for points in curves.values() for k, *_ in points})
        axes.set(
            xlabel=axis, ylabel="Corr@k, %", ylim=(-3, 103), yticks=range(0, 101, 25), xticks=_spaced(known)
        )
        _calm(axes, "y")
        figure.legend(
            handles=_legend([arm for arm in arms if arm in curves], arms), loc="outside upper left", **LEGEND
        )
        return _svg(figure, label)


def _line(axes, points: list[tuple[float, float]], color: str, marker: str) -> None:
    dots = {"marker": marker, "markersize": 3.4, "markevery": max(1, len(points) // 12), "markeredgewidth": 0}
    axes.plot(*zip(*points, strict=True) if points else ([], []), color=color, linewidth=1.2, **dots)


def _spaced(lengths: list[int]) -> list[int]:
    """The lengths, from the first on, that leave room for their numbers on the axis."""
    room = (lengths[-1] - lengths[0]) / 24 if lengths else 0
    shown = lengths[:1]
    for k in lengths[1:]:
        if k - shown[-1] >= room:
            shown.append(k)
    return shown


def _look(arm: str, arms: Sequence[str]) -> tuple[str, str]:
    known = Arms.of(arms)
    i = list(known.by_arm(known)).index(known.arm(arm)) - 1
    return (BASE_COLOR, BASE_MARKER) if i < 0 else (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)])


def _point(axes, share: float, interval: tuple[float, float], y: float, color: str, marker: str) -> None:
    axes.plot(
        [100 * end for end in interval],
        [y, y],
        color=color,
        linewidth=1.1,
        solid_capstyle="butt",
        alpha=0.75,
    )
    axes.plot([100 * share], [y], color=color, marker=marker, markersize=4.2, markeredgewidth=0)


def _legend(shown: Sequence[str], arms: Sequence[str]) -> list:
    from matplotlib.lines import Line2D

    of_arms = Arms.of(arms).by_arm(shown)
    looks = ((arm, *_look(names[0], arms)) for arm, names in of_arms.items())
    return [
        Line2D([], [], color=color, marker=marker, markersize=4.2, linewidth=1.1, label=arm)
        for arm, color, marker in looks
    ]


def _calm(axes, grid: str) -> None:
    """Remove the box and the tick marks of the y axis; draw faint grid lines."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis=grid, color=INK, alpha=0.14, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"


def _svg(figure, label: str) -> str:
    """The figure as one <svg> element without URLs, in the page's color and font, with an ARIA label."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = StringIO()
    for part in (figure, *figure.axes):
        part.patch.set_facecolor("none")
    with warnings.catch_warnings():
        # matplotlib only measures text; the page's fonts draw it
        warnings.filterwarnings("ignore", "Glyph .* missing")
        # `savefig` would draw everything twice, first without output. The layout is made in drawing, too.
        FigureCanvasSVG(figure).print_svg(
            text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'#(\w+)[")]', svg))  # matplotlib repeats its other ids in every figure
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
