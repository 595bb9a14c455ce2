"""The command: parse, call, show, exit. The work is done elsewhere.

Nothing heavy is imported here: `--help`, `--version`, `--explain` and usage errors
answer before JAX would have been loaded.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lyapunov._errors import UsageError
from lyapunov._version import __version__
from lyapunov.command._measure import MeasureChoice
from lyapunov.formats._table import PRECISIONS, STATE_PRECISIONS, STATE_PRECISIONS_TOLD
from lyapunov.formats._weight_table import formats_in_words
from lyapunov.implementations._registry import gpu_names, source_names
from lyapunov.sublayers.groups import GROUPS as WEIGHT_GROUPS


CODES = "Codes or their beginnings, as LYA004 or LYA; repeatable, or with commas."

EPILOG = """\
\b
Exit codes:
  0    all checks held
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

GROUPS: dict[str, tuple[str, ...]] = {
    "Input": (
        "revision",
        "tokens",
        "tokens_are_text",
        "text",
        "length",
        "batch",
        "seed",
    ),
    "What is checked": (
        "precision",
        "state_precision",
        "mode",
        "layers",
        "measure",
        "constants",
        "against",
        "round_weights",
        "audit",
        "reproduce",
        "device",
        "plan",
    ),
    "Verdict": (
        "fail_on",
        "select",
        "ignore",
        "baseline",
        "exit_zero",
        "allow_partial",
    ),
    "Output": (
        "json_output",
        "output",
        "color",
        "no_progress",
        "quiet",
        "verbose",
        "debug",
    ),
    "Information": ("explain", "list_architectures", "version", "help"),
}


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
        for title, names in GROUPS.items():
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


def _now(act: Callable[[str], None]) -> Callable[..., None]:
    """A callback that answers at once and ends the command."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            act(value)
            ctx.exit()

    return callback


def _version(_: Any) -> None:
    click.echo(f"lyapunov-check {__version__}")


def _explain(code: str) -> None:
    from lyapunov.command._answers import explain

    click.echo(explain(code))


def _architectures(_: Any) -> None:
    from lyapunov.command._answers import architectures

    click.echo(architectures())


def _split(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]):
    return tuple(part for item in value for part in item.split(",") if part.strip())


def _layers(ctx: click.Context, param: click.Parameter, value: str | None):
    """`0,3-7` as a tuple of numbers, ascending."""
    if value is None:
        return None
    layers: set[int] = set()
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(
                f"--layers takes numbers and ranges, not {value!r}",
                hint="for example --layers 0,3-7",
            )
        if dash and int(last) < int(first):
            raise UsageError(
                f"the range {part.strip()} of --layers runs backwards",
                hint=f"--layers {last}-{first}",
            )
        if dash and int(last) - int(first) >= 100_000:
            raise UsageError(
                f"the range {part.strip()} of --layers is too long",
                hint="for example --layers 0,3-7",
            )
        layers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(layers))


@click.command(
    "lyapunov-check",
    cls=CheckCommand,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
)
@click.argument("checkpoints", nargs=-1, metavar="[CHECKPOINT]...")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option(
    "--tokens",
    metavar="FILE|random",
    help="A .npy of integers, (seq) or (batch, seq); a text file; or random ids.  "
    "[default: English text where there is a tokenizer, else random]",
)
@click.option(
    "--tokens-are-text",
    is_flag=True,
    help="The ids of a .npy are text, so that the loss on them is judged.",
)
@click.option("--text", help="A text to check on, where there is a tokenizer.")
@click.option(
    "--length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens a sequence.  [default: the file's, else 512]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sequences, each another passage.  [default: the file's, else 1]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of random tokens and probes.",
)
@click.option(
    "--precision",
    multiple=True,
    type=click.Choice(PRECISIONS),
    metavar="FORMAT",
    help=f"One of {', '.join(PRECISIONS)}: with -cast A_log and D are cast as well, "
    "with -amp weights stay fp32 under autocast; repeatable.  "
    "[default: bf16 and fp16]",
)
@click.option(
    "--state-precision",
    type=click.Choice(STATE_PRECISIONS),
    metavar="FORMAT",
    help=f"Of the recurrent state in its cache: {STATE_PRECISIONS_TOLD}.  "
    "[default: the implementation's]",
)
@click.option(
    "--mode",
    type=click.Choice(("prefill", "decode")),
    default="prefill",
    show_default=True,
    help="The whole sequence at once, or step by step.",
)
@click.option(
    "--layers",
    callback=_layers,
    metavar="LIST",
    help="Sublayers to check, as 0,3-7.  [default: all]",
)
@click.option(
    "--measure",
    type=MeasureChoice(),
    default="emulated",
    show_default=True,
    help="What runs in the lower precision: the emulator of mamba_ssm's flow, "
    f"another implementation ({' and '.join(gpu_names())} need a GPU), or nothing.",
)
@click.option(
    "--constants",
    type=click.Choice(("documented", "measured")),
    default="documented",
    show_default=True,
    help="Of the arithmetic between stores: what documents promise of every GPU, or "
    "what all fp32 arguments gave on an H200.",
)
@click.option(
    "--against",
    metavar="OTHER",
    help="Hold another checkpoint of the same network, or a folder with a LoRA "
    "adapter, against this one.",
)
@click.option(
    "--round-weights",
    multiple=True,
    metavar="FORMAT[:GROUP]",
    help="Hold this one against itself with weights rounded, as bf16:A_log, or as "
    "quantisers do: int8, fp8_e4m3. Formats: "
    f"{formats_in_words()}. Groups: {', '.join(WEIGHT_GROUPS)}, a kind of sublayer, or "
    "a parameter; repeatable.",
)
@click.option(
    "--audit",
    metavar="SOURCE",
    help="Rounding or bug? Run the text whole, by steps, in chunks, padded and in a "
    f"batch, each held to its bounds: {', '.join(source_names())} or a dump, "
    "FILE.npz.",
)
@click.option(
    "--reproduce",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="With --audit transformers: write what was found wrong as a script that needs "
    "torch and transformers alone.",
)
@click.option("--device", metavar="NAME", help="Where it runs.  [default: JAX's]")
@click.option(
    "--plan",
    is_flag=True,
    help="Say what time and memory a check would take, and stop.",
)
@click.option(
    "--fail-on",
    type=click.Choice(("error", "warning")),
    default="error",
    show_default=True,
    help="Lowest severity that makes the exit code 1.",
)
@click.option("--select", multiple=True, callback=_split, metavar="CODE", help=CODES)
@click.option(
    "--ignore",
    multiple=True,
    callback=_split,
    metavar="CODE",
    help="Codes that do not count; the longer of two matches wins.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="An earlier .json of the same checkpoint and tokens: what grew by more than "
    "a quarter is an error, and of the other findings only new ones count.",
)
@click.option("--exit-zero", is_flag=True, help="Exit code 0 in spite of findings.")
@click.option(
    "--allow-partial", is_flag=True, help="Sublayers that were skipped are no failure."
)
@click.option(
    "--json",
    "json_output",
    is_flag=True,
    help="One JSON document on stdout, errors included.",
)
@click.option(
    "-o",
    "--output",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report, by suffix .json, .html or .md; repeatable.",
)
@click.option(
    "--color",
    type=click.Choice(("auto", "always", "never")),
    default="auto",
    show_default=True,
    help="NO_COLOR and FORCE_COLOR are heeded.",
)
@click.option("--no-progress", is_flag=True, help="No progress on stderr.")
@click.option(
    "-q", "--quiet", is_flag=True, help="Findings and verdict only; no progress."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@click.option(
    "--debug",
    is_flag=True,
    envvar="LYAPUNOV_DEBUG",
    help="A traceback with every error (also LYAPUNOV_DEBUG=1).",
)
@click.option(
    "--explain",
    metavar="CODE",
    is_eager=True,
    expose_value=False,
    callback=_now(_explain),
    help="What a finding means and what to do; 'all' for the whole catalogue.",
)
@click.option(
    "--list-architectures",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_now(_architectures),
    help="Families and file layouts that can be checked.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_now(_version),
    help="The version.",
)
def main(checkpoints: tuple[str, ...], **options: Any) -> int:
    """Check the stability and rounding of a Mamba checkpoint.

    CHECKPOINT is a folder, a file, or org/name[@revision] of the Hugging Face Hub;
    a path that exists wins. Without one, the bundled model is checked. The report
    says whether each recurrence forgets, how far a lower precision moves the model,
    and what certified bounds allow.
    """
    from lyapunov.command._session import run_checks

    return run_checks(checkpoints, **options)
