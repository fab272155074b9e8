"""Matplotlib figures as inline SVG that takes the page's font and colours, in light and in dark.

Colours are drawn as placeholders and replaced by CSS variables of the page; text stays text. matplotlib is imported on
first use, as that takes most of a second, and no pyplot state is touched.
"""

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
INK, MUTED, LINE, WASH = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{index:02x}" for index in range(7))  # --s0 to --s6, kept apart in all common colour blindness
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", WASH: "var(--wash)"} | {
    placeholder: f"var(--s{index})" for index, placeholder in enumerate(SERIES)
}
SMALL, BODY = 11.0, 12.0  # text sizes in a figure drawn 460 wide
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",  # the same figure gives the same bytes
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": SMALL,
    "axes.unicode_minus": True,
    "path.simplify": True,
}


def drawn(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator: run a function that draws under the page's settings, whatever the user's matplotlib ones are."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        from matplotlib import rc_context, rcParamsDefault

        plain = {key: value for key, value in rcParamsDefault.items() if not key.startswith("backend")}
        with rc_context(plain | SETTINGS):
            return draw(*args, **kwargs)

    return inside


def new_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    space: tuple[float, float] = (0.02, 0.02),
    **options: Any,
) -> "tuple[Figure, Any]":
    """A figure of `width` × `height` CSS pixels and its array (rows, columns) of axes, in the page's manner.

    `space` is the room between rows and columns, as a share of a panel's height and width.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=space[0], wspace=space[1], h_pad=6 / 72)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    figure.patch.set_alpha(0)
    for ax in axes.flat:
        calm(ax)
    return figure, axes


def calm(ax: "Axes") -> None:
    """No box, quiet grid and ticks."""
    ax.patch.set_alpha(0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(LINE)
    ax.tick_params(colors=MUTED, length=0, labelsize=SMALL, which="both")
    ax.grid(color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)


def legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str], place: Any) -> None:
    """A legend outside the axes, in up to three columns."""
    figure.legend(
        handles, labels, loc=place, ncols=min(3, len(labels)), frameon=False, fontsize=BODY, labelcolor=INK,
        handlelength=1.8, columnspacing=1.4, borderpad=0.2,
    )  # fmt: skip


def to_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an <svg> element for a page; `name` makes its ids unique there, `label` says what it shows."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text[: text.index(">")])
    opening = f'<svg role="img" aria-label="{escape(label)}" {view.group() if view else ""}>'
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<[^>]*>", lambda tag: _restyle(tag.group(), name), body)  # tags only: text is data
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _restyle(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    return re.sub(r"#0[1-5]0[0-9a-f]{3}\b", lambda colour: VARIABLES.get(colour.group(), colour.group()), tag)
