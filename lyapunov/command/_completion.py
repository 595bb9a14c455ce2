"""Completion installed for a shell: where each looks for it, and what is left to do."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from lyapunov._errors import OutputError
from lyapunov.command._user_folders import user_folder


NAME, VARIABLE = "lyapunov-check", "_LYAPUNOV_CHECK_COMPLETE"
PLACES = {
    "bash": ("XDG_DATA_HOME", ".local/share", "bash-completion/completions/{}"),
    "zsh": ("XDG_DATA_HOME", ".local/share", "zsh/site-functions/_{}"),
    "fish": ("XDG_CONFIG_HOME", ".config", "fish/completions/{}.fish"),
}
"""The variable with the base, the base in the home folder, and the file."""


def install(command: click.Command, shell: str) -> str:
    """Write what click makes for a shell to where the shell looks; no file of the
    user's own is changed.

    **Returns:** what was written, and what is left to do.

    **Raises:** `OutputError` where it cannot be written.
    """
    from lyapunov.report._write import write

    variable, at_home, file = PLACES[shell]
    base = user_folder(variable, at_home)
    if base is None:
        raise OutputError(
            "there is no home folder",
            hint=f"or put into your shell's file: {_by_hand(shell)}",
        )
    path = base / file.format(NAME)
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(command, {}, NAME, VARIABLE)
    text = made.source_template % made.source_vars()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make {path.parent}: {error.strerror}",
            hint=f"or put into your shell's file: {_by_hand(shell)}",
        ) from error
    write(path, text.encode())
    return f"wrote {path}\n{_left_to_do(shell, path.parent)}"


def _left_to_do(shell: str, folder: Path) -> str:
    if shell == "zsh":
        return (
            "if it is not there yet, put into ~/.zshrc before compinit:\n"
            f"  fpath=({folder} $fpath); autoload -Uz compinit; compinit"
        )
    if shell == "bash":
        return (
            "it works in a new shell, with the package bash-completion; without it put "
            f"into ~/.bashrc:\n  {_by_hand(shell)}"
        )
    return "it works in a new shell"


def _by_hand(shell: str) -> str:
    source = f"{VARIABLE}={shell}_source {NAME}"
    return f"{source} | source" if shell == "fish" else f'eval "$({source})"'
