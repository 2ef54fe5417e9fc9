"""The one exception that means: the user can mend this."""


class AGI2Error(ValueError):
    """A mistake in the input: its message is one clear line that says what, where and what to do.

    The command line prints the message and exits with status 2. Anything else that is raised
    is a bug, and keeps its traceback.
    """
