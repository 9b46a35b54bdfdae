"""The report of runs as one file: a page with its style, its script and its data, that asks no network for anything."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from zerosearch.report.files import plain_json, write_named
from zerosearch.report.viewer.content import Shown, content

SCRIPTS = ("elements.js", "curves.js", "episode.js", "browser.js", "report.js")
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(path: Path, runs: Sequence[Shown]) -> None:
    """Write the report of one run or of several.

    Raises:
        UserError: the folder of `path` is not there, or may not be written to.
        RunError: a file of a run cannot be read, or the disk is full.
    """
    write_named(path, report_html(content(runs)))


def report_html(data: dict[str, Any]) -> str:
    """The page. A browser runs this script in it and no other, and loads nothing (Content-Security-Policy)."""
    style, script = _file("report.css"), "".join(map(_file, SCRIPTS))
    parts = {
        "title": html.escape(f"{data['title']} · ZeroSearch"),
        "policy": (
            f"default-src 'none'; style-src '{_fingerprint(style)}'; script-src '{_fingerprint(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "style": style,
        "final": html.escape(" ".join(run["final"] for run in data["runs"])),
        "data": embedded(data),
        "script": script,
    }
    return _PLACE.sub(lambda place: parts[place[1]], _file("report.html"))


def embedded(data: Any) -> str:
    """JSON that may stand in a `script` element: nothing in it ends the element, opens a comment or is no character."""
    text = json.dumps(plain_json(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _fingerprint(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return (resources.files("zerosearch") / "report" / "viewer" / name).read_text("utf-8")
