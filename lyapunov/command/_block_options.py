"""Options of state-space blocks in a file of weights that has no configuration."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from lyapunov._errors import UsageError
from lyapunov.command._declare import ALONE, BLOCKS, LIST, option


def read_value(text: str) -> Any:
    """What was typed as a value: a number, numbers with commas, true, false, none, or
    a word."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return [read_value(one.strip()) for one in text.split(",")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def named_values(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]):
    """`NAME=VALUE` of each as pairs.

    **Raises:** `UsageError` for another form, and for a name that stands twice.
    """
    found: dict[str, Any] = {}
    for text in value:
        name, equals, typed = text.partition("=")
        if not (name.strip() and equals and typed.strip()):
            raise UsageError(
                f"--block-option takes NAME=VALUE, not {text!r}",
                hint="for example --block-option chunk=256",
            )
        if name.strip() in found:
            raise UsageError(
                f"--block-option {name.strip()} stands twice", hint="give one of them"
            )
        found[name.strip()] = read_value(typed.strip())
    return tuple(found.items())


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What is typed of blocks alone."""

    list_blocks: bool = option(
        ALONE,
        "--list",
        of=(LIST,),
        is_flag=True,
        help="List the state-space blocks of a .safetensors, .pth, .pt or .ckpt, and "
        "what their tensors do not say; check nothing.",
    )
    inputs: Path | None = option(
        ALONE,
        of=(BLOCKS,),
        argument="inputs",
        type=click.Path(path_type=Path),
        metavar="FILE.npz",
        help="What the blocks read: arrays by their names, or one for all, (seq, "
        "d_model) or (batch, seq, d_model); NAME.output is held against as well.",
    )
    random_inputs: float | None = option(
        ALONE,
        of=(BLOCKS,),
        argument="random_inputs",
        type=float,
        metavar="SCALE",
        help="Instead: normal rows with this root mean square, --batch times --length "
        "of them, by --seed.",
    )
    block_option: tuple[tuple[str, Any], ...] = option(
        ALONE,
        of=(BLOCKS,),
        multiple=True,
        callback=named_values,
        metavar="NAME=VALUE",
        help="What tensors do not say, as chunk=256 or dt_limit=0,inf; --list asks for "
        "it; repeatable.",
    )
    weight_set: str | None = option(
        ALONE,
        of=(BLOCKS, LIST),
        argument="weight_set",
        metavar="NAME",
        help="Which weights of a file with several, as ema.",
    )

    @property
    def of_blocks(self) -> str | None:
        """The question that these options ask; None where none of them was typed."""
        if self.list_blocks:
            return LIST
        for field in dataclasses.fields(BlockOptions):
            if getattr(self, field.name) != field.default:
                return BLOCKS
        return None
