"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: a missing file, an impossible option, a corrupt shard.

    The message is one line that names what is wrong and what to change. The command line prints it
    to stderr and exits with status 1; a traceback is for bugs only.
    """
