"""Errors for people: what was wrong, what was given, what to type next."""


class LyapunovError(Exception):
    """Something could not be done; the command turns it into exit code 2.

    **Arguments:**

    - `message`: one line: what was wrong and what was given.
    - `hint`: one line: what to type or change; empty where nothing helps. A traceback
      shows it under the message, as a note.
    """

    code: str = "error"

    def __init__(self, message: str, *, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")

    def to_dict(self) -> dict:
        """The `error` document that `--json` prints."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(LyapunovError):
    """The request itself is off: an option, a name, a value."""

    code = "usage"


class ArgumentError(UsageError, ValueError):
    """An argument of a function is of the wrong type, or out of range."""


class MissingExtraError(LyapunovError):
    """An optional dependency is needed and not installed."""

    code = "missing_extra"


class CheckpointError(LyapunovError):
    """A checkpoint cannot be used."""

    code = "checkpoint"


class CheckpointNotFoundError(CheckpointError):
    """No such path, and no such model on the Hub or in its cache."""

    code = "checkpoint_not_found"


class UnsafeCheckpointError(CheckpointError):
    """Reading the file would run code that it carries."""

    code = "checkpoint_unsafe"


class CorruptCheckpointError(CheckpointError):
    """The file is truncated, lies about its contents, or holds non-finite weights."""

    code = "checkpoint_corrupt"


class UnsupportedCheckpointError(CheckpointError):
    """A family, format or quantisation that is not covered."""

    code = "checkpoint_unsupported"


class TokensError(LyapunovError):
    """The tokens cannot be used: empty, out of range, of the wrong shape or type."""

    code = "tokens"


class DumpError(LyapunovError):
    """A dumped trace cannot be used: names, shapes, dtypes, or not a dump at all."""

    code = "dump"


class ReportError(LyapunovError):
    """A file is no report that can be read."""

    code = "report"


class OutputError(LyapunovError):
    """A report cannot be written where it was asked for."""

    code = "output"
