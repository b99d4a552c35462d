"""A report's badge: a small SVG that says with what the backend conforms."""

from html import escape

from infercore_conformance.checks import Level
from infercore_conformance.report import Report
from infercore_conformance.verdicts import Status

LABEL = "InferCore"
GREEN, YELLOW, RED = "#2e7d32", "#8a6d00", "#b3261e"
CHARACTER = 6.6  # pixels that one takes at 11 px, on average
PADDING = 10

_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{text}">
<title>{text}</title>
<rect width="{width}" height="20" rx="3" fill="#444"/>
<rect x="{left}" width="{right}" height="20" rx="3" fill="{colour}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{padding}" y="14">{label}</text>
<text x="{message_at}" y="14">{message}</text>
</g>
</svg>
"""


def draw(report: Report) -> str:
    """Green where it conforms; yellow where only a part was run; red where it does not."""
    message, colour = _message(report)
    left, right = (round(len(text) * CHARACTER) + 2 * PADDING for text in (LABEL, message))
    return _SVG.format(
        width=left + right,
        left=left,
        right=right,
        colour=colour,
        padding=PADDING,
        message_at=left + PADDING,
        label=LABEL,
        message=escape(message),
        text=escape(f"{LABEL}: {message}"),
    )


def _message(report: Report) -> tuple[str, str]:
    contract = report["contract"]
    if not report["conformant"]:
        return f"{contract} not conformant", RED
    if report["run"]["quick"] or not report["run"]["complete"]:
        return f"{contract} partly run", YELLOW
    features = sum(p[Level.EXTENDED].get(Status.PASSED, 0) for p in report["profiles"].values())
    return f"{contract} core + {features} extended", GREEN
