"""The one exception that the command line turns into a one-line message and exit code 2."""


class InputError(ValueError):
    """Bad input from the user: the message names the file, field or argument and the remedy."""
