"""The one exception the demo turns into a sentence instead of a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message names the value and says how to mend it."""
