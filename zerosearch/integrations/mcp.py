"""MCP: a server that offers a recipe's engine as the tool `search` (docs/guides/integrations.md)."""

from collections import Counter
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


def make_server(recipe: Recipe) -> MCPServer:
    """A server whose `run` offers the tool over stdio or HTTP.

    The searches of a question are numbered in the order in which they come. A failed one is an error of the tool.

    Raises:
        UserError: the recipe does not search, or its noise follows the training.
    """
    engine = load_engine(recipe, knows_step=False)
    server = MCPServer("zerosearch", version=__version__, log_level="WARNING")
    turns: Counter[str] = Counter()

    @server.tool(structured_output=False)
    async def search(
        query: Annotated[str, Field(description="What to search for.")],
        question: Annotated[str, Field(description="The whole question that the search is to help answer.")] = "",
    ) -> str:
        """Find documents with a search engine."""
        asked = Question(id=question, text=question, golden_answers=(), data_set="mcp")
        turn, turns[question] = turns[question], turns[question] + 1
        try:
            return await Searches(engine, asked, recipe.search.k, turn=turn).page(query)
        except (RunError, UserError) as error:
            raise ToolError(str(error)) from error

    return server
