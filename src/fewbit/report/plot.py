"""Figures: drawn by matplotlib as SVG, text kept as text, colours the page's CSS variables, so that light and dark follow.

matplotlib knows no CSS: each role has a colour of its own that nothing else uses, and is exchanged for the variable afterwards.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from markupsafe import Markup, escape

from fewbit.errors import MissingExtra

ROLES = ("ink", "soft", "rule", "card", "float", "quantized", "good", "bad", "warn", "peer")
COLOUR = {role: f"#0a0b{k:02x}" for k, role in enumerate(ROLES)}
WIDTH, HEIGHT = 5.4, 3.1  # inches; 72 units each in the picture's own coordinates
STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "fewbit", "font.size": 9.5, "legend.fontsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "axes.linewidth": 0.7,
    "axes.edgecolor": COLOUR["soft"], "axes.labelcolor": COLOUR["soft"], "xtick.color": COLOUR["soft"],
    "ytick.color": COLOUR["soft"], "text.color": COLOUR["ink"], "grid.color": COLOUR["rule"], "grid.linewidth": 0.7,
    "legend.frameon": False, "xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.4,
    "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
_numbers = count(1)


@contextmanager
def figure(rows: int = 1, width: float = WIDTH, height: float = HEIGHT, **given: Any) -> Iterator[tuple[Any, Any]]:
    """(figure, its axes) in the page's style; `svg` turns it into the page's text."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(made)
        yield made, made.subplots(rows, **given)


def svg(made: Any, label: str) -> Markup:
    """Inline SVG of the width it is given, described by label; call it inside `with figure()`."""
    out = io.StringIO()
    made.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    text = _own_ids(text, next(_numbers))
    for role, colour in COLOUR.items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r"font: (?:[a-z]+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(label)}">', text, count=1
    )
    return Markup(re.sub(r"\n\s*", "\n", text))


def _own_ids(text: str, number: int) -> str:
    """Names that other figures of the page do not have, and none that nothing refers to."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="f{number}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(url\(#|href="#)', rf"\1f{number}-", text)
