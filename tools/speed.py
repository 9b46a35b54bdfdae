"""Put what a benchmark printed into the guide: `python benchmarks/NAME.py | python tools/speed.py NAME`."""

import re
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "speed.md"


def filled(guide: str, name: str, printed: str) -> str:
    """The guide with the text in the benchmark's place; as Markdown as it was printed.

    Raises:
        SystemExit: the guide has no such place, or nothing was printed.
    """
    place = re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    if not place.search(guide):
        raise SystemExit(f"{GUIDE} has no place for '{name}': name one of its benchmarks")
    if not printed.strip():
        raise SystemExit(f"the benchmark '{name}' printed nothing: the guide stays as it was")
    return place.sub(lambda _: f"{printed.strip()}\n", guide)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    GUIDE.write_text(filled(GUIDE.read_text("utf-8"), sys.argv[1], sys.stdin.read()), "utf-8")
