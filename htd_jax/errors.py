"""The one exception for everything that a user can cause and mend."""


class UserError(Exception):
    """Bad input: a file, key, shape or value that cannot be used.

    The message is one line that names the thing, echoes its value and says what to do.
    Command line entry points print it and exit with status 2.
    """
