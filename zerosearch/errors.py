"""The two ways in which a command ends early: the user's mistake and a run that failed."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence says what, where and what to do. Exit code 2."""


class RunError(Exception):
    """A run that could not go on: one sentence says what went wrong. Exit code 1."""


class Unavailable(RunError):
    """What every page needs is not there: the run ends at once, whatever share of failures it allows."""
