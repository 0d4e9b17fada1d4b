"""The one error a user is meant to read."""


class Problem(Exception):
    """Something the user can cure. The text names the file or key, what is wrong, and what to do.

    The command line prints it as one line, without a traceback, and exits with status 2.
    """
