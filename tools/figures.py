"""The ranges in the guide to reading a run, from a run's metrics: `python tools/figures.py runs/world-0`."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zerosearch.report.run_folder import RunFolder

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "reading-a-run.md"
TABLE = re.compile(r"(?<=<!-- figures, column (\d) -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)


def filled(text: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """The guide with the ranges of these steps in the column that is named before each table."""

    def table(match: re.Match[str]) -> str:
        heading, rule, *lines = match[0].splitlines()
        return "\n".join([heading, rule, *(_row(line, int(match[1]), steps) for line in lines)]) + "\n"

    return TABLE.sub(table, text)


def _row(line: str, column: int, steps: Sequence[Mapping[str, Any]]) -> str:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    ranges = [_range([step[name] for step in steps if name in step]) for name in _names(cells[0], steps)]
    cells[column - 1] = "; ".join(ranges)
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def _names(cell: str, steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The figures of a row that the steps have: `…` is what its first name has before the stroke, `<n>` any word."""
    known = dict.fromkeys(name for step in steps for name in step)
    first, *others = re.findall(r"`([^`]+)`", cell)
    for written in (first, *others):
        pattern = re.sub("<[a-z]+>", r"\\w+", written.replace("…", first.partition("/")[0]))
        yield from (name for name in known if re.fullmatch(pattern, name))


def _range(values: Sequence[float]) -> str:
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} to {high}"


def _number(value: float) -> str:
    """Two digits that count, three of more than ten, all of a whole number."""
    if value >= 100 or value == round(value):
        return str(round(value))
    return re.sub(r"e-0", "e-", f"{value:.{3 if value >= 10 else 2}g}")


if __name__ == "__main__":
    run = RunFolder.open(Path(sys.argv[1]))
    GUIDE.write_text(filled(GUIDE.read_text("utf-8"), run.metrics.rows("reinforcement")), "utf-8")
