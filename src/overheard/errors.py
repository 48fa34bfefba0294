"""The one error that wrong input raises: what was given, what was found, what to do."""

LONGEST = 600
"""Characters of what was found, which may come from a file that somebody else made."""


def _one_line(text: str) -> str:
    """Without line breaks, without what a terminal would obey, and not without end."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)


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
        super().__init__("; ".join(map(_one_line, (f"{argument}: {found}", remedy))))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        # A worker's error reaches the process that asked for the work.
        return InputError, (self.argument, str(self.found), self.remedy)
