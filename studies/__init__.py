"""What all studies have in common, those of `analysis` and those of `experiments`.

`study` is how one is asked for and where it writes, `problems` what to say where it
cannot run, `files` and `picture` write whole or not at all.
"""

from . import files, picture, problems, study


__all__ = ["files", "picture", "problems", "study"]
