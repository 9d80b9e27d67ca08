"""Tables of cards."""

from __future__ import annotations


def grid(rows: list[list[str]]) -> list[str]:
    """A table in Markdown; the first row is its head."""
    told = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in told]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]
