"""Line charts as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 52, 16, 34, 44
COLORS = ("#8a4b2a", "#2f6f62", "#4a5fa8", "#a8487f")
STYLE = (
    ".page{fill:#fdfcfa}.grid{stroke:#ddd8cf}.ink{fill:#1f1d1a;font-size:12px}.head{font-size:14px;font-weight:650}"
    "@media(prefers-color-scheme:dark){.page{fill:#1b1c1e}.grid{stroke:#3a3d41}.ink{fill:#e4e4e2}}"
)

Line = tuple[str, Sequence[tuple[float, float]]]
"""A name, and points (x, y)."""


def side_by_side(charts: Sequence[tuple[str, str, Sequence[Line]]], x_label: str, description: str) -> str:
    """One SVG of several charts (title, y label, lines) with a shared meaning of x and of the lines' colours."""
    body = "".join(
        f'<g transform="translate({i * WIDTH} 0)">{_chart(title, x_label, y_label, lines)}</g>'
        for i, (title, y_label, lines) in enumerate(charts)
    )
    width = WIDTH * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'role="img" font-family="system-ui, sans-serif"><title>{escape(description)}</title><style>{STYLE}</style>'
        f'<rect class="page" width="{width}" height="{HEIGHT}"/>{body}</svg>\n'
    )


def _chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    points = [point for _, line in lines for point in line]
    x_ticks, y_ticks = _ticks([x for x, _ in points]), _ticks([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="ink head" x="{LEFT}" y="20">{escape(title)}</text>']
    for y in y_ticks:
        height = at(x_ticks[0], y)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="ink" x="{LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<text class="ink" x="{at(x, 0)[0]:.1f}" y="{HEIGHT - 26}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="ink" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="ink" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for i, (name, line) in enumerate(lines):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(
            f'<text x="{LEFT + 8 + 92 * i}" y="{TOP + 2}" fill="{color}" font-size="12" font-weight="650">{escape(name)}</text>'
        )
    return "".join(parts)


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to nine round numbers that enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = next(s * 10.0**e for e in range(-6, 9) for s in (1, 2, 5) if span / (s * 10.0**e) <= 6)
    first, last = int(low // step), int(-(-high // step))
    return [round(k * step, 9) for k in range(first, max(last, first + 1) + 1)]
