"""Where files of the user's go, as the XDG specification says."""

import os
from pathlib import Path


def user_folder(variable: str, at_home: str) -> Path | None:
    """Find the folder that a variable names, or its place in the home folder.

    **Returns:** None where there is no home folder either.
    """
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base
    home = Path(os.path.expanduser("~"))
    return home / at_home if home.is_absolute() and home.is_dir() else None
