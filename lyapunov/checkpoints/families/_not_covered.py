"""Families with a recurrence that are not read: what recurs, what there is instead."""

from typing import Any, NamedTuple


class Uncovered(NamedTuple):
    """A family that is not read from its checkpoints."""

    title: str
    recurrence: str
    """What recurs, in a few words."""
    cell: str | None
    """The recurrence in `lyapunov.recurrences`; None where there is none."""
    beside: str = ""
    """Why a family whose recurrence is a kind of sublayer is not read all the same."""

    @property
    def hint(self) -> str:
        """What to type instead."""
        if self.recurrence == WINDOW:
            return (
                "a window forgets all of a token in as many steps as it has taps: its"
                " exponents are -inf, whatever the weights"
            )
        if self.cell is None:
            return (
                "lyapunov.lyapunov_spectrum takes its step as a JAX function,"
                " (state, input) -> state; Jacobians of a run elsewhere go through"
                " lyapunov.recurrences.GivenJacobians"
            )
        given = {
            DIAGONAL: "log decays and drives",
            DELTA: "log gates, rates, keys and values",
        }.get(self.cell, "inputs")
        return (
            f"its recurrence is covered: lyapunov.recurrences.{self.cell}, with {given}"
            " of a run of the model, in lyapunov.lyapunov_spectrum"
        )


DIAGONAL = "DiagonalRecurrence"
DELTA = "DeltaRecurrence"
WINDOW = "short convolutions, a window of the last few tokens"

_GATED_DELTA = "the gated delta rule"
_KIMI_DELTA = "the delta rule with a decay a channel (KDA)"
_SPARSE = "sparse attention by an indexer, and hyper-connections"
_FIXED = "linear attention with one fixed decay a head"

NOT_COVERED: dict[str, Uncovered] = {
    "rwkv5": Uncovered("RWKV-5", "linear attention, a decay a channel", DIAGONAL),
    "rwkv6": Uncovered("RWKV-6", "linear attention, decays of the token", "RWKV6"),
    "rwkv7": Uncovered("RWKV-7", "a generalised delta rule", None),
    "retnet": Uncovered("RetNet", _FIXED, DIAGONAL),
    "gla": Uncovered("Gated linear attention", "decays of the token", DIAGONAL),
    "hgrn2": Uncovered("HGRN2", "decays of the token", DIAGONAL),
    "delta_net": Uncovered("DeltaNet", "the delta rule", DELTA),
    "gated_deltanet": Uncovered("Gated DeltaNet", _GATED_DELTA, DELTA),
    "qwen4_exp": Uncovered("Qwen4", _GATED_DELTA, DELTA, _SPARSE),
    "qwen4_exp_text": Uncovered("Qwen4", _GATED_DELTA, DELTA, _SPARSE),
    "glm5_next": Uncovered("GLM-5 Next", _KIMI_DELTA, DELTA, _SPARSE),
    "glm5_next_text": Uncovered("GLM-5 Next", _KIMI_DELTA, DELTA, _SPARSE),
    "lfm2_moe": Uncovered("LFM2 with experts", WINDOW, None),
    "lfm2_vl": Uncovered("LFM2-VL", WINDOW, None),
    "lfm3": Uncovered("LFM3", WINDOW, None),
    "lfm3_vl": Uncovered("LFM3-VL", WINDOW, None),
    "inkling_mm_model": Uncovered("Inkling", WINDOW, None),
    "inkling_text": Uncovered("Inkling", WINDOW, None),
    "inkling2": Uncovered("Inkling 2", WINDOW, None),
    "inkling2_text": Uncovered("Inkling 2", WINDOW, None),
    "inkling2_loop": Uncovered("Inkling 2", WINDOW, None),
    "inkling2_loop_text": Uncovered("Inkling 2", WINDOW, None),
    "zaya": Uncovered("Zaya", WINDOW, None),
}
"""By model_type: those of transformers 5.24, and of code that comes with weights."""


def uncovered(config: dict[str, Any]) -> tuple[str, Uncovered] | None:
    """The model_type and what is known of it, of the model or of its text part."""
    inner = config.get("text_config")
    for one in (config, inner if isinstance(inner, dict) else {}):
        name = one.get("model_type")
        if isinstance(name, str) and name in NOT_COVERED:
            return name, NOT_COVERED[name]
    return None


def not_covered_lines() -> list[str]:
    """One line for each kind of recurrence: the families that have it, and the cell."""
    by_kind: dict[tuple[str, str | None], list[str]] = {}
    for one in NOT_COVERED.values():
        titles = by_kind.setdefault((one.recurrence, one.cell), [])
        if one.title not in titles:
            titles.append(one.title)
    return [
        f"{', '.join(titles)}: {what}"
        + (f" (as a cell: lyapunov.recurrences.{cell})" if cell else "")
        for (what, cell), titles in by_kind.items()
    ]
