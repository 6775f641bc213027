"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: a missing file, an impossible option, a corrupt shard.

    The message is one line that names what is wrong and what to change. The command line prints it
    to stderr and exits with `exit_status`; a traceback is for bugs only.
    """

    exit_status = 1


class NonFiniteStep(UserError):
    """A step's loss or gradient is not finite. Every rank raises it, before the update: weights and optimizer are
    still those of the step before."""
