"""Which parameters a change of weights names; read by the command without JAX."""

from typing import NamedTuple

from ._errors import UsageError


GROUPS: dict[str, tuple[str, ...]] = {
    "all": (),
    "projections": (
        *("in_proj", "x_proj", "dt_proj", "out_proj"),
        *("in_proj_bias", "out_proj_bias"),
    ),
    "conv": ("conv_weight", "conv_bias"),
    "norms": ("norm", "norm_f"),
    "embedding_and_head": ("embedding", "head"),
    **{
        name: (name,)
        for name in ("A_log", "dt_bias", "D", "in_proj", "x_proj", "dt_proj")
    },
    "out_proj": ("out_proj",),
}
"""Names that `--round-weights` takes, and the parameters in each; all is every one."""

ROUNDED_TO = ("bf16", "fp16", "fp8_e4m3", "fp8_e5m2")


class RoundedGroup(NamedTuple):
    """Weights of a group, to be rounded to a format."""

    format: str
    group: str

    def __str__(self) -> str:
        return f"{self.format}:{self.group}"

    def has(self, parameter: str) -> bool:
        """Whether a parameter, by its canonical name, is in the group."""
        return self.group == "all" or parameter in GROUPS[self.group]


def rounded_group(text: str) -> RoundedGroup:
    """Read FORMAT or FORMAT:GROUP, as `bf16:A_log`.

    **Raises:** `UsageError` that lists the names.
    """
    fmt, colon, group = text.partition(":")
    group = group if colon else "all"
    if fmt not in ROUNDED_TO:
        raise UsageError(
            f"weights cannot be rounded to {fmt!r}",
            hint=f"one of {', '.join(ROUNDED_TO)}",
        )
    if group not in GROUPS:
        raise UsageError(
            f"no group of weights {group!r}", hint=f"one of {', '.join(GROUPS)}"
        )
    return RoundedGroup(fmt, group)
