"""The one error that users are meant to read."""

__all__ = ["ShineError"]


class ShineError(Exception):
    """A problem with the user's input, in one or two lines: what, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    Python callers catch it like any other exception.
    """
