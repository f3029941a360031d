"""Values as people read them."""

from typing import Any

from markupsafe import Markup

from scalselect_ray.redaction import redact

_CONTROL = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def visible(value: Any) -> Any:
    """Any text of a corpus, fit for a page: control characters are shown as signs, what is no character as its
    escape, and secrets of URIs are left out."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return redact(value).translate(_CONTROL)


def cut(text: str, length: int) -> str:
    """The front of a long text, with its full length said."""
    return text if len(text) <= length else f"{text[:length].rstrip()}\u2026 ({len(text):,} characters in all)"


def number(value: float) -> str:
    """A count, or a value where it is a small one."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def percent(share: float) -> str:
    """A share of 1 in percent."""
    return f"{100 * share:.1f}%" if 0 < share < 0.9995 else f"{100 * share:.0f}%"


def budget(name: str) -> str:
    """A budget as the config gives it: a share up to 1, or a count."""
    value = float(name)
    return f"{100 * value:g}%" if value <= 1 else f"{value:,.0f}"


def score(value: float | None) -> str:
    """Three digits of a score."""
    if value is None:
        return "\u2013"
    if value == 0 or 1e-4 <= abs(value) < 100:
        return f"{value:#.3g}" if value else "0"
    digits, _, power = f"{value:.2e}".partition("e")
    return _scientific(digits, power)


def tick(value: float) -> str:
    """A round score, as short as it is."""
    if 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    digits, _, power = f"{value:.0e}".partition("e")
    return _scientific(digits, power)


def _scientific(digits: str, power: str) -> str:
    return f"{digits}\u00d710{str(int(power)).translate(_SUPERSCRIPTS)}"
