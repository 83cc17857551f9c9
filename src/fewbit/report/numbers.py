"""How the page writes a number: one rule a unit, so that a figure reads the same everywhere on it."""


def percent(share: float | None, digits: int = 1) -> str:
    """A share as 99.5%; a little that would be written as nothing is <0.1%."""
    if share is None:
        return "undefined"
    least = 0.1**digits
    return f"<{least:.{digits}f}%" if 0 < 100 * share < least / 2 else f"{100 * share:.{digits}f}%"


def interval(pair: list[float | None] | None) -> str:
    """[0.99, 1.0] -> "99.0% to 100.0%"."""
    if not pair or pair[0] is None or pair[1] is None:
        return "no interval"
    return f"{percent(pair[0])} to {percent(pair[1])}"


def size(count: float) -> str:
    """Bytes in powers of 1000, three digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{count:.0f} bytes"


def microseconds(us: float) -> str:
    return f"{us:.0f} µs" if us >= 100 else f"{us:.3g} µs"


def plain(value: float) -> str:
    """A return, a perplexity: about four digits, no exponent below a million."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def ratio(a: float, b: float) -> str:
    """How many times a is in b, as "9.4"."""
    return f"{b / a:.2g}" if b < 10 * a else f"{b / a:.0f}"
