"""The recipe's tables of search engines behind HTTP."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from zerosearch.training.recipe_section import Count, FilePath, NonNegativeFloat, Positive, PositiveFloat, Section

REMOTE = ("retriever", "serpapi")
"""The engines behind HTTP."""


class Remote(Section):
    """What the calls to a distant search engine may take."""

    timeout: PositiveFloat = 30.0
    """Seconds until a call counts as failed."""
    retries: Count = 3
    """Calls after a failed one, with growing pauses, before the search counts as failed."""
    concurrency: Positive = 32
    """Calls under way at once."""
    rate: NonNegativeFloat = 0.0
    """Calls begun in a second at most; 0 = as many as come."""
    max_calls: Count = 0
    """Calls in all, until the run stops with a checkpoint; a resumed run has as many again. 0 = no limit."""
    price: NonNegativeFloat = 0.0
    """What a search costs that was answered; the metrics sum it up as `cost`."""
    cache: FilePath = ""
    """File that keeps the pages found, which then cost nothing; runs may share it. Empty = none."""
    cache_days: NonNegativeFloat = 0.0
    """Pages that were found more days ago are asked for again; 0 = never."""


class Retriever(Remote):
    """A retriever behind `POST /retrieve`: `search.type` or `evaluation.engine` is `retriever`."""

    url: str = "http://127.0.0.1:8000/retrieve"
    """Its address, without a query. A bearer token is taken from the environment variable ZEROSEARCH_TOKEN."""
    protocol: Literal["search-r1", "zerosearch"] = "search-r1"
    """`search-r1` (`queries`, `topk`, `return_scores`) or `zerosearch` (`query`, `top_k`)."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return address("search.retriever.url", value, "http://127.0.0.1:8000/retrieve", "ZEROSEARCH_TOKEN")


class SerpApi(Remote):
    """The web, through SerpAPI: `search.type` or `evaluation.engine` is `serpapi`."""

    engine: Annotated[str, Field(min_length=1)] = "google"
    """The search engine that SerpAPI asks, such as `google` or `bing`."""
    url: str = "https://serpapi.com"
    """Where SerpAPI is. The key is taken from the environment variable SER_API_KEY or SERPAPI_API_KEY."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return address("search.serpapi.url", value, "https://serpapi.com", "SER_API_KEY")


def address(key: str, url: str, example: str, variable: str) -> str:
    """The address, where it is one that may be written into the run folder.

    variable: of the environment, from which a token or key is taken.

    Raises:
        ValueError: it is no address, or may hold a secret; the sentence repeats none.
    """
    if (named := "@" in url.partition("://")[2].partition("/")[0]) or "?" in url:
        what = "a name or a password" if named else "a query (what follows the ?)"
        raise ValueError(
            f"{key} holds {what}, which the run folder would keep; leave it out, and put a token or key into the "
            f"environment variable {variable}"
        )
    if not url.startswith(("http://", "https://")):
        raise ValueError(f'{key} holds "{url}", which is no address; write it like {example}')
    return url
