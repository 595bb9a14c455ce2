"""Which parameters a change of weights names; read by the command without JAX.

Every parameter belongs to groups by its place (the sublayer that it is of) and by its
role (what the flow does with it), and is a group of its own. Each kind says so of its
own (`AbstractSublayer.weight_groups`); what no kind says raises, so that no parameter
can be without a group. Only the names are here as well, since the kinds need JAX.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .._errors import UsageError
from ..formats._weight_table import (
    PLAIN_FORMATS,
    SHORT_NAMES,
    WEIGHT_FORMAT_TABLE,
    WEIGHT_FORMATS,
)
from .kinds import KINDS


GROUPS: dict[str, str] = {
    "all": "every parameter; under a format with scales, what quantisers round",
    "projections": "every matrix inside a sublayer",
    "conv": "convolutions",
    "norms": "norms of every kind",
    "biases": "biases of projections",
    "recurrence": "A_log, dt_bias, D, decay_logit, slopes, mimo_*, time_* and mix_*",
    "mixers": "all of a recurrent sublayer",
    "attention": "all of an attention, a shared block's too",
    "mlp": "all of an MLP, a shared block's too",
    "experts": "experts, with the norm before them",
    "shared_experts": "the MLP beside the experts",
    "router": "what chooses experts",
    "shared": "all of a block that layers share",
    "embedding": "the embedding",
    "head": "the head",
    "embedding_and_head": "both",
    "final_norm": "the norm before the head",
}
"""Names that `--round-weights` takes, beside those of single parameters."""

_NORMS = (
    *("norm", "norm_behind", "mlp_norm", "dt_norm", "B_norm", "C_norm"),
    *("q_norm", "k_norm", "q_down_norm", "kv_down_norm"),
)
_MLP = ("up", "gate", "down", "up_bias", "gate_bias", "down_bias")
_ADAPTED = ("q", "k", "v", "up", "gate", "shared_up", "shared_gate")

_OUTSIDE = {
    "embedding": ("embedding", "embedding_and_head"),
    "head": ("head", "embedding_and_head"),
    "embedding_norm": ("norms",),
    "embedding_norm_bias": ("norms",),
    "norm_f": ("norms", "final_norm"),
    "norm_f_bias": ("norms", "final_norm"),
}

PARAMETERS = frozenset(
    {
        *("in_proj", "in_proj_bias", "out_proj", "out_proj_bias", "x_proj", "dt_proj"),
        *("conv_weight", "conv_bias", "A_log", "dt_bias", "D", "gate_norm"),
        *("B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o"),
        *(f"{name}{bias}" for name in _NORMS for bias in ("", "_bias")),
        *(f"{name}_{part}" for name in "qkvog" for part in ("proj", "bias")),
        *(f"{name}_down{bias}" for name in ("q", "kv") for bias in ("", "_bias")),
        *(f"{name}_proj" for name in "zabf"),
        *("x_bias", "y_proj", "y_bias", "out_bias", "decay_logit"),
        *("slope", "query_decay", "key_decay", "diagonal_decay"),
        *(
            f"{name}_gate{bias}"
            for name in ("input", "decay")
            for bias in ("", "_bias")
        ),
        *(f"{name}_{part}" for name in "fg" for part in ("down", "up")),
        *_MLP,
        *(f"shared_{name}" for name in _MLP),
        *(f"{name}_adapter_{way}" for name in _ADAPTED for way in ("down", "up")),
        *("to_latent", "to_latent_bias", "from_latent", "from_latent_bias"),
        *("router", "router_bias", "shared_router", "linear"),
        *(
            "i_proj",
            "i_bias",
            "f_bias",
            "r_proj",
            "time_decay",
            "time_first",
            "mix_k",
            "mix_v",
            "mix_r",
        ),
        *_OUTSIDE,
    }
)
"""Canonical names of all parameters of all kinds, and of what is in no sublayer."""

OUTSIDE = "outside"
"""Stands for the kind of what is in no sublayer."""


def groups_of(kind: str, parameter: str) -> frozenset[str]:
    """Every group that a parameter belongs to, `all` and its own name among them.

    **Arguments:**

    - `kind`: of the sublayer, by the registry's name; `OUTSIDE` for the embedding, the
      norm before the head, and the head.
    - `parameter`: its canonical name.

    **Raises:** `UsageError` for a kind or a parameter that is not known.
    """
    known = _OUTSIDE if kind == OUTSIDE else KINDS[kind].weight_groups
    if parameter not in known:
        raise UsageError(
            f"parameter {parameter!r} of {kind} has no group of weights",
            hint=f"it has {', '.join(known)}; add it to the kind's `weight_groups`",
        )
    return frozenset({"all", parameter, *known[parameter]})


def is_matrix(kind: str, parameter: str) -> bool:
    """Whether files of weights hold a parameter as codes under scales: it multiplies
    activations, or is the embedding or the head."""
    if kind == OUTSIDE:
        return parameter in ("embedding", "head")
    return "projections" in groups_of(kind, parameter)


def _known() -> frozenset[str]:
    """All that `--round-weights` may name. Kinds of others are imported already."""
    others = [one.weight_groups for one in KINDS.imported()]
    groups = (of for one in others for of in one.values())
    return frozenset({*GROUPS, *KINDS, *PARAMETERS}.union(*others, *groups))


class RoundedGroup(NamedTuple):
    """Weights of a group, to be rounded to a format."""

    format: str
    group: str

    def __str__(self) -> str:
        return f"{self.format}:{self.group}"

    @property
    def scaled(self) -> bool:
        """Whether the format has scales, and so is one of matrices alone."""
        return self.format in WEIGHT_FORMAT_TABLE

    def has(self, kind: str, parameter: str) -> bool:
        """Whether it rounds a parameter, by its canonical name.

        Quantisers leave the embedding, the head and the router as they are, and
        whatever is no matrix; the first three are rounded where they are named.
        """
        if self.scaled and not is_matrix(kind, parameter):
            return False
        if self.scaled and self.group == "all":
            return kind != OUTSIDE and "router" not in groups_of(kind, parameter)
        return self.group in groups_of(kind, parameter)


def rounded_group(text: str) -> RoundedGroup:
    """Read FORMAT or FORMAT:GROUP, as `bf16:A_log`.

    **Raises:** `UsageError` that lists the names.
    """
    given, colon, group = text.partition(":")
    fmt, group = SHORT_NAMES.get(given, given), group if colon else "all"
    if fmt not in PLAIN_FORMATS and fmt not in WEIGHT_FORMAT_TABLE:
        raise UsageError(
            f"weights cannot be rounded to {given!r}",
            hint=f"one of {', '.join(WEIGHT_FORMATS)}",
        )
    if group not in _known():
        raise UsageError(
            f"no group of weights {group!r}",
            hint=f"one of {', '.join(GROUPS)}, a kind of sublayer, or a parameter",
        )
    return RoundedGroup(fmt, group)


def chosen_parameters(
    wanted: RoundedGroup, present: Iterable[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """What of a network is rounded and what is kept, as `kind.parameter`.

    **Arguments:**

    - `present`: kind and name of each parameter of the network.

    **Returns:** rounded and kept, each in order and once.

    **Raises:** `UsageError` where the network has none of the group, with those that
    it has; where the group holds no matrix and the format is one of matrices.
    """
    known = list(dict.fromkeys(present))
    of_group = [one for one in known if wanted.group in groups_of(*one)]
    if not of_group:
        raise UsageError(
            f"this network has no weights of the group {wanted.group!r}",
            hint=f"it has {', '.join(_named(known))}",
        )
    chosen = [one for one in of_group if wanted.has(*one)]
    if not chosen:
        names = ", ".join(dict.fromkeys(name for _, name in of_group))
        plain = ", ".join(PLAIN_FORMATS)
        raise UsageError(
            f"{wanted.format} holds matrices that multiply activations;"
            f" {wanted.group!r} has none ({names})",
            hint=f"{plain} round each number by itself",
        )
    rounded, kept = [], []
    for one in known:
        kind, name = one
        told = name if kind == OUTSIDE else f"{kind}.{name}"
        (rounded if one in chosen else kept).append(told)
    return rounded, kept


def _named(present: Iterable[tuple[str, str]]) -> list[str]:
    """Groups that a network has, then its parameters."""
    found = set().union(*(groups_of(*one) for one in present))
    names = list(dict.fromkeys(name for _, name in present))
    groups = [name for name in dict.fromkeys((*GROUPS, *KINDS)) if name in found]
    return [*groups, *(name for name in names if name not in groups)]
