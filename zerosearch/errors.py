"""The two ways in which a command ends early, and how a sentence tells to install what is missing."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence says what, where and what to do. Exit code 2."""


class RunError(Exception):
    """A run that could not go on: one sentence says what went wrong. Exit code 1."""


class Unavailable(RunError):
    """What every page needs is not there: the run ends at once, whatever share of failures it allows."""


class Refused(RunError):
    """A server refused one request, one that is too long, for instance; it may take others."""


def install(*extras: str) -> str:
    """How a sentence tells to install extras: PyPI's `zerosearch` is another project, so from the clone."""
    return f'pip install -e ".[{",".join(extras)}]" in the clone'
