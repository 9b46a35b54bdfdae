"""ZeroSearch: teach a language model to search, by reinforcement learning, without a search engine."""

__version__ = "0.1.0"
