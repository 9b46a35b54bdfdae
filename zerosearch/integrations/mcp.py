"""MCP: a server that offers a recipe's engine as the tool `search` (docs/guides/integrations.md)."""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from zerosearch import __version__
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.integrations.engine import Searches, framework, load_engine
from zerosearch.training.recipe import Recipe

with framework("mcp"):
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

MOST_QUESTIONS = 8192
"""Questions whose searches are numbered; that of the one that was not asked for longest begins again."""


def make_server(recipe: Recipe) -> MCPServer:
    """A server whose `run` offers the tool over stdio or HTTP.

    The searches of a question are numbered in the order in which they come. A failed one is an error of the tool.

    Raises:
        UserError: the recipe does not search, or its noise follows the training.
    """
    engine = load_engine(recipe, knows_step=False)
    server = MCPServer("zerosearch", version=__version__, log_level="WARNING")

    @lru_cache(MOST_QUESTIONS)
    def turns(question: str) -> Iterator[int]:
        return itertools.count()

    @server.tool(structured_output=False)
    async def search(
        query: Annotated[str, Field(description="What to search for.")],
        question: Annotated[str, Field(description="The whole question that the search is to help answer.")] = "",
    ) -> str:
        """Find documents with a search engine."""
        asked = Question(id=question, text=question, golden_answers=(), data_set="mcp")
        try:
            return await Searches(engine, asked, recipe.search.k, turn=next(turns(question))).page(query)
        except (RunError, UserError) as error:
            raise ToolError(str(error)) from error

    return server
