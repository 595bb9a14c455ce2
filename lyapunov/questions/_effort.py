"""How much is looked for; read by the command without JAX."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from .._arguments import choice


# Parameters from which a reverse pass is not cheap any more.
LARGE = 20_000_000

NO_LOGITS = "the model has no head, so that there are no logits"


@dataclass(frozen=True)
class Effort:
    """Say what is looked for beside exponents and measured divergence, each switch for
    itself.

    **Arguments:**

    - `name`: of the step in `EFFORTS` that the switches began from.
    - `bounds`: whether to bound what is measured: T0, T1, and of changed weights.
    - `floor`: whether to search for what no bound on free roundings could beat.
    - `probes`: runs with random roundings behind T3; 0 leaves T2 and T3 out.
    - `readouts`: read-outs behind T2 and the shares; 0 leaves them out, None is 4, or 1
        beyond 20 million parameters, since each costs a reverse pass.
    - `ball`: whether to follow T4 for as long as it says something.
    - `growth`: whether to find how perturbations grow; None: if a sublayer has no
        exponent.
    """

    name: str = "standard"
    bounds: bool = True
    floor: bool = False
    probes: int = 1
    readouts: int | None = 0
    ball: bool = False
    growth: bool | None = None

    @classmethod
    def of(cls, name: Any = "standard", **switches: Any) -> "Effort":
        """Begin from a step of `EFFORTS` and set switches apart.

        **Raises:** `ArgumentError` for a step that there is not.
        """
        return replace(EFFORTS[choice(name, "effort", tuple(EFFORTS))], **switches)

    def on(self, *, has_head: bool, n_params: int) -> "Effort":
        """What remains of it for such a model: T2, T3 and T4 are of the logits."""
        if not has_head:
            return replace(self, probes=0, readouts=0, ball=False)
        if self.readouts is None:
            return replace(self, readouts=4 if n_params <= LARGE else 1)
        return self

    def follows_growth(self, sublayers: Iterable[Any]) -> bool:
        """Say whether to find how perturbations grow in a network of these."""
        if self.growth is None:
            return any(not one.recurrent for one in sublayers)
        return self.growth

    def left_out(self, *, has_head: bool = True) -> dict[str, str]:
        """Figures that are null for want of effort or of logits, each with why."""
        found: dict[str, str] = {}
        for switch, off, figures in _FIGURES:
            value = getattr(self, switch)
            if value != off:
                continue
            why = f"{switch}={value}"
            if getattr(EFFORTS[self.name], switch) == value:
                why = f"left out by the effort {self.name}"
            if switch in OF_LOGITS and not has_head:
                why = NO_LOGITS
            found.update((figure, why) for figure in figures if figure not in found)
        return found

    def tiers_left_out(self) -> str:
        """What no switch is on for, in words; empty where everything is."""
        off = [tier for name, off, tier in _TIERS if getattr(self, name) == off]
        return ", ".join(off)

    def settings(self) -> dict[str, Any]:
        """The switches as a report repeats them."""
        switches = asdict(self)
        return {"effort": switches.pop("name"), **switches}


EFFORTS = {
    "quick": Effort("quick", bounds=False, growth=False),
    "standard": Effort(),
    "full": Effort("full", floor=True, probes=4, readouts=4, ball=True, growth=True),
}
"""Steps to choose from: quick has no bounds, standard has T0 and T1; full searches the
floor, takes four probes and four read-outs of any model (T2), follows the ball (T4) and
perturbations through every sublayer."""

SWITCHES = ("bounds", "floor", "probes", "readouts", "ball", "growth")
OF_LOGITS = ("probes", "readouts", "ball")

_T2 = ("estimate_t2", "estimate_t2_stderr", "sigma_by_site", "sigma_share")
_T3 = (
    *("sigma_t3", "sigma_t3_stderr", "calibration_z", "n_readouts", "n_probes"),
    *("nonlinearity", "weights_rel_l2", "decisions", "state_share"),
)
_BOUNDS = (
    *("bound_t0_ratio", "bound_t0", "bound_t1_ratio", "bound_t1_l2", "radius_l2"),
    *("bound_by_position", "binding_site", "binding_share", "violations"),
    *("first_violation", "elements_total", "elements_bounded", "elements_unbounded"),
    *("unbounded", "bounded_share", "bound_l2", "bound_ratio"),
)
_T4 = (
    *("certified_until_layer", "stopped_by", "certified_l2"),
    *("certified_stable", "certified_flipped"),
)

_TIERS = (
    ("bounds", False, "T0 and T1"),
    ("floor", False, "the floor"),
    ("readouts", 0, "T2"),
    ("ball", False, "T4"),
    ("growth", False, "growth"),
)

# what a switch turns off, by the fields of the report
_FIGURES: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("bounds", False, _BOUNDS),
    ("floor", False, ("floor_t1_ratio", "floor_ratio")),
    ("probes", 0, (*_T3, *_T2)),
    ("readouts", 0, _T2),
    ("ball", False, _T4),
    ("growth", False, ("growth",)),
)
