"""The command: parse, call, show, exit. The work is done elsewhere.

Nothing heavy is imported here: `--help`, `--version`, `--explain` and usage errors
answer before JAX would have been loaded.
"""

import sys
from typing import Any

import click

from lyapunov._version import __version__
from lyapunov.command import _declare
from lyapunov.command._options import Options


EPILOG = """\
\b
Exit codes:
  0    all checks held; of --effort quick: no findings
  1    findings at or above --fail-on
  2    could not check: usage, an unreadable or unknown checkpoint, a missing extra,
       or fewer than half of the elements have a finite bound
  130  interrupted

\b
Examples:
  lyapunov-check                                   the bundled model
  lyapunov-check ./mamba-130m-hf -o report.html
  lyapunov-check state-spaces/mamba-130m-hf --precision bf16 --json
  lyapunov-check ./model --tokens ids.npy --fail-on warning
"""

INFORMATION = (
    "explain",
    "list_architectures",
    "install_completion",
    "version",
    "help",
)


class CheckCommand(click.Command):
    """A command whose help has groups, and whose errors are documents with --json."""

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the options, group by group."""
        params: dict[str | None, click.Parameter | None] = {
            param.name: param for param in self.get_params(ctx)
        }
        params["help"] = self.get_help_option(ctx)
        said = _declare.declared(Options)
        groups = {
            group: [name for name, one in said.items() if one.group == group]
            for group in _declare.GROUPS
        }
        for title, names in (groups | {"Information": INFORMATION}).items():
            shown = [param for name in names if (param := params[name])]
            records = [param.get_help_record(ctx) for param in shown]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])

    def main(self, args: Any = None, **extra: Any) -> Any:
        """Run and turn every way to end into an exit code."""
        from lyapunov.command._endings import guard
        from lyapunov.command._interrupt import leave

        arguments = list(sys.argv[1:] if args is None else args)
        standalone = extra.pop("standalone_mode", True)
        extra.setdefault("prog_name", self.name)
        extra.setdefault("obj", arguments)

        def run() -> int:
            result = click.Command.main(self, arguments, standalone_mode=False, **extra)
            return int(result or 0)

        code = guard(run, arguments)
        if standalone:
            if args is None:  # the process is the command's own
                leave(code)
            sys.exit(code)
        return code


def _version(_: Any) -> None:
    click.echo(f"lyapunov-check {__version__}")


def _explain(code: str) -> None:
    from lyapunov.command._answers import explain

    click.echo(explain(code))


def _install_completion(shell: str) -> None:
    from lyapunov.command._completion import install

    click.echo(install(main, shell))


def _architectures(_: Any) -> None:
    from lyapunov.command._answers import architectures

    click.echo(architectures())


@click.command(
    "lyapunov-check",
    cls=CheckCommand,
    params=_declare.params(Options),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
)
@click.argument(
    "checkpoints", nargs=-1, metavar="[CHECKPOINT]...", shell_complete=_declare.paths
)
@click.option(
    "--explain",
    metavar="CODE|WORD",
    is_eager=True,
    expose_value=False,
    shell_complete=_declare.known_codes,
    callback=_declare.now(_explain),
    help="What a finding means and what to do, or what a word of a report means; "
    "'all' for every one.",
)
@click.option(
    "--list-architectures",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_declare.now(_architectures),
    help="Families and file layouts that can be checked.",
)
@click.option(
    "--install-completion",
    type=click.Choice(("bash", "zsh", "fish")),
    is_eager=True,
    expose_value=False,
    callback=_declare.now(_install_completion),
    help="Have a shell complete options, their values, paths and codes.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_declare.now(_version),
    help="The version.",
)
def main(checkpoints: tuple[str, ...], **typed: Any) -> int:
    """Check the stability and rounding of a Mamba checkpoint.

    CHECKPOINT is a folder, a file, or org/name[@revision] of the Hugging Face Hub;
    a path that exists wins. Without one, the bundled model is checked. The report
    says whether each recurrence forgets, how far a lower precision moves the model,
    and what certified bounds allow.
    """
    from lyapunov.command._session import run_checks

    return run_checks(checkpoints, Options(**typed))
