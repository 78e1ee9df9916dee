"""The one exception whose message is shown to the user without a traceback."""


class UserError(ValueError):
    """A mistake that the user can correct; the message says what was expected, what was given and what to do.

    Raise it for a wrong option, file or model. Any other ``ValueError`` is a bug and keeps its traceback.
    """
