"""Errors for people."""

from importlib.util import find_spec


class Problem(SystemExit):
    """What is wrong and what to do about it; ends the command with status 1."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"error: {message}\nhint: {hint}")


def demand(*modules: str) -> None:
    """Say what is not installed, before anything is computed."""
    lost = [name for name in modules if find_spec(name) is None]
    if lost:
        raise Problem(
            f"not installed: {', '.join(lost)}",
            "make test installs all of it; elsewhere "
            "pip install 'lyapunov-check[torch,report,experiments]'",
        )
