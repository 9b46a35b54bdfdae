"""Documents, which search engines return."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A passage with its title. `source` says where it comes from: a corpus's id, a URL, a simulator."""

    title: str
    text: str
    source: str = ""
