"""Errors for people."""


class Problem(SystemExit):
    """What is wrong and what to do about it; ends the command with status 1."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"error: {message}\nhint: {hint}")
