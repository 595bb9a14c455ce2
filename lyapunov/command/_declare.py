"""How an option is declared: once, as a field; click and the refusals read it there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from lyapunov._errors import UsageError


INPUT, CHECKED = "Input", "What is checked"
ALONE = "Weights without a config.json"
VERDICT, OUTPUT = "Verdict", "Output"
GROUPS = (INPUT, CHECKED, ALONE, VERDICT, OUTPUT)
"""Of options in --help, in order."""

CHECK, PLAN, AUDIT, DUMP = "check", "plan", "audit", "a dump, which has its own"
SHOW, RANK = "show", "rank-weights"
BLOCKS, LIST = "a check of blocks", "list"
ALL = (CHECK, PLAN, AUDIT, DUMP, BLOCKS)
OF_A_CHECK = (CHECK, PLAN)
OF_A_MODEL = (CHECK, PLAN, AUDIT)
OF_A_TEXT = (*OF_A_MODEL, RANK)
OF_CHECKPOINTS = (CHECK, PLAN, AUDIT, DUMP, RANK)
EVERY = (*ALL, RANK)
"""Which questions look at an option; a plan is of the check that would be run. To show
a report again is a question of options of output alone; a ranking has no verdict."""


@dataclasses.dataclass(frozen=True)
class Declared:
    """What is said of an option beside its name and its default.

    **Arguments:**

    - `group`: its heading in --help.
    - `flags`: as typed; else its field's name.
    - `of`: the questions that look at it; to any other it is refused.
    - `argument`: of `check` and `audit`, where it is handed on.
    - `click`: for `click.Option`.
    """

    group: str
    flags: tuple[str, ...]
    of: tuple[str, ...]
    argument: str | None
    click: dict[str, Any]


def option(
    group: str,
    *flags: str,
    of: tuple[str, ...] | None = None,
    argument: str | None = None,
    default: Any = None,
    **settings: Any,
) -> Any:
    """Declare a field of `Options`; the arguments are those of `Declared`."""
    if settings.get("is_flag"):
        default = False
    elif settings.get("multiple"):
        default = ()
    if of is None:
        of = (*EVERY, SHOW, LIST) if group == OUTPUT else ALL
    declared = Declared(group, flags, of, argument, settings)
    return dataclasses.field(default=default, metadata={"declared": declared})


def declared(kind: type) -> dict[str, Declared]:
    """The options of a dataclass by name, in order."""
    fields = dataclasses.fields(kind)
    return {field.name: field.metadata["declared"] for field in fields}


def name_of(name: str, said: Declared) -> str:
    """An option as it is typed."""
    return said.flags[-1] if said.flags else f"--{name.replace('_', '-')}"


def params(kind: type) -> list[click.Parameter]:
    """The options of a dataclass for click."""
    found: list[click.Parameter] = []
    for field in dataclasses.fields(kind):
        said: Declared = field.metadata["declared"]
        settings = dict(said.click)
        if "is_flag" not in settings and "multiple" not in settings:
            settings["default"] = field.default
            settings["show_default"] = field.default is not None
        if settings.get("callback") is codes:
            settings["shell_complete"] = known_codes
        flags = said.flags or (name_of(field.name, said),)
        found.append(click.Option([*flags, field.name], **settings))
    return found


# ---- what a shell completes


def paths(ctx: click.Context, param: click.Parameter, incomplete: str):
    """Files and folders, which the shell itself knows."""
    return [CompletionItem(incomplete, type="file")]


def known_codes(ctx: click.Context, param: click.Parameter, incomplete: str):
    """Codes of findings, with what each is."""
    from lyapunov.findings._catalogue import CATALOGUE

    return [
        CompletionItem(code, help=kind.title)
        for code, kind in CATALOGUE.items()
        if code.startswith(incomplete.upper())
    ]


# ---- what is read from the words of an option


def each_once(ctx: click.Context, param: click.Parameter, value: tuple) -> tuple:
    """What may be repeated, in order, each once."""
    return tuple(dict.fromkeys(value))


def codes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]):
    """Codes of findings, also several behind one another with commas."""
    given = [part for item in value for part in item.split(",") if part.strip()]
    if not given:
        return ()
    from lyapunov.findings._verdict import check_codes

    return check_codes(given)


def groups(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]):
    """FORMAT or FORMAT:GROUP, each once under its whole name."""
    if not value:
        return ()
    from lyapunov.sublayers.groups import rounded_group

    return tuple(dict.fromkeys(str(rounded_group(text)) for text in value))


def group(ctx: click.Context, param: click.Parameter, value: str | None):
    """One FORMAT or FORMAT:GROUP, under its whole name."""
    if value is None:
        return None
    from lyapunov.sublayers.groups import rounded_group

    return str(rounded_group(value))


def operand(ctx: click.Context, param: click.Parameter, value: str | None):
    """A format of what products read."""
    if value is not None:
        from lyapunov.formats._operand_table import check_activations

        check_activations(value)
    return value


def layers(ctx: click.Context, param: click.Parameter, value: str | None):
    """`0,3-7` as a tuple of numbers, ascending."""
    if value is None:
        return None
    found: set[int] = set()
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
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def now(act: Callable[[str], None]) -> Callable[..., None]:
    """A callback that answers at once and ends the command."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            act(value)
            ctx.exit()

    return callback
