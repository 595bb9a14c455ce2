"""Names of stored tensors, in the order in which the flows come to them."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import overload

from .._errors import UsageError
from .kinds import KINDS


FRONT = ("norm_input", "norm_hat", "norm")
"""Of the norm in front of a sublayer."""

BEHIND = ("out", "norm_behind_hat", "norm_behind", "out_scaled")
"""Of what a sublayer puts out, and of a norm and a multiplier behind it."""

TOKEN = ("dB", "dBx", "state", "state_read", "read_out", "skip", "skip_sum")
"""Of one token of a selective scan."""

GELU_NEW = ("square", "cube", "cubic", "sum", "argument", "tanh", "whole", "half")
"""What `gelu_new` is made of, where every operation stores its result."""

BEFORE = ("embedding", "residual", "norm_read", "residual_aside", "residual_scaled")
LOGITS = (
    *("logits", "logits_scaled"),
    *("logits_divided", "logits_tanh", "logits_capped"),
)
"""Of the head's product, and of what is made of it."""
AFTER = ("beside", "norm_f_hat", "norm_f", *LOGITS)
"""Around all sublayers."""


NO_ROW_A_TOKEN = (
    *("row_multipliers", "decay_rate", "mix_rest", "head_decay"),
    *("scores_product", "scores", "attention"),
)
"""Sites whose tensors do not have one row for each token: what multiplies all of them,
and what heads make of pairs of them. Of several calls there is no one such tensor."""


class FlowOrder(Sequence[str]):
    """The sites of all kinds that are registered, joined whenever they are asked for.

    What two kinds store under one name stands where both have it.

    **Raises:** `UsageError` where kinds have two names in different orders.
    """

    def __len__(self) -> int:
        return len(_positions())

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return tuple(_positions())[index]

    def __iter__(self) -> Iterator[str]:
        return iter(_positions())

    def __contains__(self, site: object) -> bool:
        return site in _positions()

    def index(self, value: str, start: int = 0, stop: int | None = None) -> int:
        """Give the place of a site, to sort by.

        **Raises:** `UsageError` for a site that no kind has.
        """
        del start, stop
        if value not in _positions():
            raise UsageError(
                f"no kind of sublayer stores {value!r}",
                hint="add it to the `sites` of the kind whose flow stores it",
            )
        return _positions()[value]


FLOW_ORDER = FlowOrder()


def _positions() -> dict[str, int]:
    return _joined(tuple((kind, KINDS[kind].sites) for kind in KINDS))


@lru_cache(maxsize=8)
def _joined(chains: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, int]:
    order: list[str] = []
    for kind, sites in chains:
        # from its end, each in front of the one behind it
        place = len(order)
        for site in reversed(sites):
            if site not in order:
                order.insert(place, site)
                continue
            found = order.index(site)
            if found >= place:
                raise UsageError(
                    f"kind {kind!r} has {site!r} in front of {order[place]!r}, other"
                    " kinds behind it",
                    hint="one order of the sites that kinds share",
                )
            place = found
    return {site: i for i, site in enumerate((*BEFORE, *order, *AFTER))}
