"""What a user can get wrong, said in one line."""


class InputError(ValueError):
    """An input is wrong. The message is one line: what, where, what was received, what to do.

    The command line prints the message alone and ends with status 1.
    """
