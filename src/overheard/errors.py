"""The one error that wrong input raises: what was given, what was found, what to do."""


class InputError(ValueError):
    """Input that cannot be used, in one line; the command line prints it and exits with code 2.

    Args:
        argument: the argument, file or utterance at fault.
        found: the value or state found there.
        remedy: what the user can do about it.
    """

    def __init__(self, argument: str, found: object, remedy: str) -> None:
        self.argument = argument
        self.found = found
        self.remedy = remedy
        super().__init__(" ".join(f"{argument}: {found}; {remedy}".split()))
