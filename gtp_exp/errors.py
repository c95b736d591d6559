"""The one exception that means "your input, not our code": shown as a message, without a traceback."""


class UserError(Exception):
    """Names the offending value and the remedy; the command line prints it and exits with status 2."""
