"""Put what a benchmark printed into the guide: `python benchmarks/NAME.py | python tools/speed.py NAME`.

A benchmark that was never measured is a row of the guide's last table; it becomes a section.
"""

import re
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "speed.md"
UNMEASURED = "## Not measured yet\n"


def filled(guide: str, name: str, printed: str) -> str:
    """The guide with the text in the benchmark's place; as Markdown as it was printed.

    Raises:
        SystemExit: the guide has no such benchmark, or nothing was printed.
    """
    place = re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    guide = guide if place.search(guide) else with_section(guide, name)
    if not place.search(guide):
        raise SystemExit(f"{GUIDE} has no place for '{name}': name one of its benchmarks")
    if not printed.strip():
        raise SystemExit(f"the benchmark '{name}' printed nothing: the guide stays as it was")
    return place.sub(lambda _: f"{printed.strip()}\n", guide)


def with_section(guide: str, name: str) -> str:
    """The guide with the benchmark's row made a section, if it has one."""
    row = re.search(rf"^\| (.+) \| (`python benchmarks/{re.escape(name)}\.py\b.*?`) \| (.+) \| (.+) \|\n", guide, re.M)
    if not row:
        return guide
    title, command, measures, bound = row.groups()
    section = f"## {title}\n\n{command}\n\n{measures}.\n\nWhat bounds it: {bound}.\n\n<!-- {name} -->\n<!-- end -->\n\n"
    return guide.replace(row[0], "").replace(UNMEASURED, f"{section}{UNMEASURED}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    GUIDE.write_text(filled(GUIDE.read_text("utf-8"), sys.argv[1], sys.stdin.read()), "utf-8")
