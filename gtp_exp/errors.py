"""The one exception that means "your input, not our code": shown as a message, without a traceback. Any other
is told by its first line where a message names it."""


class UserError(Exception):
    """Names the offending value and the remedy; the command line prints it and exits with status 2."""


class NothingToChoose(UserError):
    """No candidate can be chosen; of a pool's parts some may be such, and others not."""


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
