"""Questions, documents and where they come from."""

from zerosearch.data.document import Document
from zerosearch.data.question import Hop, Question

__all__ = ["Document", "Hop", "Question"]
