"""How all plots look, each small enough to be read on a phone, and the files they become.

Only matplotlib's object interface is used, within a style context: nothing global is changed for other plots.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1c1e21", "#6b7178", "#d9dce0"
ORANGE = "#c2410c"
"""What marks the end of a phase, or of the frames that are fed, in every figure."""
WIDTH = 4.4
"""Inches. A column of the page on a desk, a phone's width when scaled by four fifths."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.color": FAINT,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.1,
    "figure.constrained_layout.use": True,
    # The browser's own fonts stay sharp, small and selectable.
    "svg.fonttype": "none",
    "svg.hashsalt": "rims",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw within the style."""

    def within(*arguments: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    within.__doc__ = draw.__doc__
    return within


def svg_file(figure: Figure) -> bytes:
    """The figure as a file of its own, the same bytes each time."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    return file.getvalue()


def svg(figure: Figure, title: str) -> str:
    """The figure as an inline element called ``title``: no fixed size, no ids that could meet others."""
    text = svg_file(figure).decode()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", rest)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(title)}">{rest}'


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.set_dpi(200)
        FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
