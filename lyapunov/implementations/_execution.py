"""An execution as data: formats of the stored sites, constants of what is between."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from .._devices import chosen_device
from .._errors import UsageError
from ..arithmetic import BoundedArithmetic, RoundingModel
from ..arithmetic._form import WHOLE, Form
from ..formats import FORMATS, Format, Precision, StateFormat
from ..formats._table import PRECISIONS
from ._ways import Variant


@dataclasses.dataclass(frozen=True)
class InnerConstants:
    """What the arithmetic between two stores promises. Relative errors.

    `*_argument` multiplies |argument| and stands for the rounded product by log2(e)
    in front of a base-2 exponential. `silu_size` multiplies |argument| too, and
    `turn_absolute` is of cosines and sines; both stand for approximate instructions.
    """

    unit: float
    underflow: float
    accumulator_unit: float
    exp_relative: float
    exp_argument: float
    softplus_relative: float
    softplus_argument: float
    softplus_absolute: float
    silu_relative: float
    silu_argument: float
    rsqrt_relative: float
    tanh_relative: float = 0.0
    silu_size: float = 0.0
    turn_absolute: float = 0.0
    operand_normal: float = 0.0

    def on_tensor_cores(self, fmt: Format) -> "InnerConstants":
        """Find the constants where matrices of a format are multiplied there.

        Products are aligned to the largest exponent, and what is beyond the width of
        the adder is cut off. A subnormal operand's exponent is the smallest normal
        number's, however small it is: in fp16 a sum of 16 such products was off by 828
        units of 2^-23 of their sizes on an H200, and by 0.9 where each operand counts
        as a normal number at least (`analysis.subnormal_operands`).
        """
        normal = fmt.smallest_normal if fmt.is_reduced else 0.0
        return dataclasses.replace(self, operand_normal=normal)

    def model(self) -> RoundingModel:
        """The constants as scalars that can be traced (needs 64-bit JAX)."""
        return _model(self, _here())


@dataclasses.dataclass(frozen=True)
class Depths:
    """How many additions a term goes through at most, by the number of terms."""

    accumulation: Callable[[int], int]
    """Matrix products."""
    reduction: Callable[[int], int]
    """Norms."""
    scan: Callable[[int], int]
    """The scan over a sequence of that many tokens."""


@dataclasses.dataclass(frozen=True)
class Always:
    """A depth that does not depend on the length; equal ones compile once."""

    depth: int

    def __call__(self, tokens: int) -> int:
        """So many, however long the text is."""
        del tokens
        return self.depth


@runtime_checkable
class Place(Protocol):
    """Whatever says which sublayer is meant."""

    @property
    def layer(self) -> int:
        """Its number."""
        ...

    @property
    def kind(self) -> str:
        """What it is."""
        ...


@dataclasses.dataclass(frozen=True)
class Execution:
    """A flow with a format at every site and the constants it promises."""

    name: str
    """For people: 'mamba_ssm prefill, bf16'."""
    implementation: str
    mode: str
    precision: str
    state_precision: str
    sites: dict[str, Format]
    """Stored sites; what is not named stays in fp32 registers. `state`: what a cache
    holds of the recurrent state after every token; the read-out is made before."""
    parameters: dict[str, Format]
    """Format of each parameter group; `default` for the ones not named."""
    constants: InnerConstants
    depths: Depths
    assumptions: tuple[str, ...]
    kind: str
    """Kind of sublayers that sites, parameters and constants are those of."""
    dt_limit: tuple[float, float] | None = None
    """Between which this program clips dt after softplus, whatever the model says;
    None: as the model says. Bounds are those of the program's own function."""
    form: Form = WHOLE
    """In which recurrences run; several `calls` where all are of this execution and
    round nothing in between."""
    compiled: bool = False
    """Whether a compiler joins operations, so that a value may or may not be rounded
    where a site would store it (`_compiled`)."""
    kinds: dict[str, "Execution"] = dataclasses.field(default_factory=dict, repr=False)
    """Of the same program, for kinds of sublayers that differ from this one: other
    sites, parameters, constants or depths."""
    layers: dict[int, "Execution"] = dataclasses.field(default_factory=dict, repr=False)
    """Of single sublayers, by their number, which differ from others of their kind:
    what a checkpoint's configuration says of each module. All of a kind, or none; made
    last, of `of(kind)`."""

    @functools.cached_property
    def runs_in(self) -> Precision:
        """What `precision` names: a format, and whether weights are cast."""
        return Precision.named(self.precision)

    @property
    def variant(self) -> Variant:
        """The way to run a text in its mode."""
        return Variant("steps" if self.mode == "decode" else "whole")

    @property
    def stored_every(self) -> int:
        """Tokens from one store of the state in its cache to the next."""
        kept = self.form.chunked and "state" in self.sites
        return (self.form.chunk or 1) if kept else self.form.period

    def of(self, kind: str) -> "Execution":
        """What holds inside a sublayer of this kind.

        **Raises:** `UsageError` for a kind that this program does not run, and for one
        whose sublayers differ: of those `at` tells.
        """
        differing = [n for n, one in self.layers.items() if one.kind == kind]
        if differing:
            raise UsageError(
                f"sublayers of kind {kind!r} are not all executed alike in {self.name}"
                f" (sublayer {differing[0]})",
                hint="ask for a sublayer, Execution.at(model.sublayers[0])",
            )
        return self._of_kind(kind)

    def at(self, place: Place) -> "Execution":
        """What holds inside one sublayer.

        **Arguments:**

        - `place`: whatever has its number and kind, such as `Sublayer` or a record.

        **Raises:** `UsageError` for a kind that this program does not run.
        """
        own = self.layers.get(place.layer)
        return self._of_kind(place.kind) if own is None else own

    def every(self, kind: str) -> list["Execution"]:
        """Those that hold inside sublayers of this kind, one of all that store the same
        tensors and so run the same programs.

        **Raises:** `UsageError` for a kind that this program does not run.
        """
        own = [one for one in self.layers.values() if one.kind == kind]
        alike = {tuple(one.sites): one for one in own or [self._of_kind(kind)]}
        return list(alike.values())

    def mapped(self, change: Callable[["Execution"], "Execution"]) -> dict[str, Any]:
        """`kinds` and `layers` with each execution changed, for `replace`."""
        return {
            "kinds": {kind: change(one) for kind, one in self.kinds.items()},
            "layers": {number: change(one) for number, one in self.layers.items()},
        }

    def _of_kind(self, kind: str) -> "Execution":
        if kind in self.kinds:
            return self.kinds[kind]
        if kind == self.kind:
            return self
        known = ", ".join(sorted({self.kind, *self.kinds}))
        raise UsageError(
            f"{self.name} declares nothing for sublayers of kind {kind!r}; it has "
            f"{known}",
            hint="--measure emulated, or --measure none for the exponents alone",
        )

    def parameter_format(self, name: str) -> Format:
        """The format that a parameter is held in.

        **Raises:** `UsageError` for one of which nobody said whether autocast casts it.
        """
        if name not in self.parameters and self.runs_in.autocast:
            raise UsageError(
                f"{self.name} does not say whether {name!r} of {self.kind} is cast",
                hint=f"--precision {self.runs_in.format}",
            )
        return self.parameters.get(name, self.parameters["default"])

    def in_windows(self, tokens: int) -> "Execution":
        """The same steps, so many of them between two stores of the state."""
        inside = self.mapped(lambda one: one.in_windows(tokens))
        form = dataclasses.replace(self.form, period=tokens)
        depths = dataclasses.replace(self.depths, scan=Always(tokens))
        return dataclasses.replace(self, form=form, depths=depths, **inside)

    def begun(self, tokens: int) -> "Execution":
        """The same behind so many tokens of a text, for programs whose chunks are
        counted from the text's start."""
        if not tokens:
            return self
        inside = self.mapped(lambda one: one.begun(tokens))
        if self.form.grid is None:
            return dataclasses.replace(self, **inside)
        form = dataclasses.replace(self.form, grid=self.form.grid + tokens)
        return dataclasses.replace(self, form=form, **inside)

    def behind(self, tokens: int) -> "Execution":
        """The same, packed behind so many tokens of other texts, for programs whose
        chunks are cut in the stream of all of them."""
        inside = self.mapped(lambda one: one.behind(tokens))
        same = all(
            one is getattr(self, table)[name]
            for table, changed in inside.items()
            for name, one in changed.items()
        )
        form = self.form
        if tokens and form.in_stream:
            form = dataclasses.replace(form, grid=tokens)
        elif same:
            return self
        return dataclasses.replace(self, form=form, **inside)

    def site_numbers(self) -> dict:
        """Numbers of the formats of all stored sites."""
        here = _here()
        return {name: _numbers(f, here) for name, f in self.sites.items()}

    def bounded(
        self,
        seq: int,
        sites,
        model,
        *,
        anchors=None,
        centred: bool = False,
        keeps: Any = None,
    ) -> BoundedArithmetic:
        """The interpreter that bounds this execution over `seq` tokens."""
        return BoundedArithmetic(
            sites,
            model,
            accumulation_depth=self.depths.accumulation,
            reduction_depth=self.depths.reduction,
            scan_depth=self.scan_depth(seq),
            anchors=anchors,
            centred=centred and not self.compiled,
            keeps=keeps,
            form=self.form,
            as_functions=True,
        )

    def scan_depth(self, seq: int) -> int:
        """Additions that a term goes through: of one scan those of all its calls, in
        chunks, which lie within a call, those of one."""
        each = [self.depths.scan(tokens) for tokens in self.form.calls or (seq,)]
        return max(each) if self.form.chunked else sum(each)


def _here() -> tuple:
    """What arrays made now depend on: the device, and whether fp64 is on."""
    config: Any = jax.config
    return chosen_device(), config.jax_enable_x64


# A number is a transfer of its own, some 0.1 ms each to a GPU, and a sublayer has about
# seventy: they are sent once, not once a sublayer.
@functools.lru_cache(maxsize=256)
def _numbers(form: Format, here: tuple):
    del here
    with jax.ensure_compile_time_eval():
        return form.numbers()


@functools.lru_cache(maxsize=256)
def _model(constants: InnerConstants, here: tuple) -> RoundingModel:
    del here
    values = dataclasses.asdict(constants)
    with jax.ensure_compile_time_eval():
        return RoundingModel(
            **{name: jax.device_put(np.float64(v)) for name, v in values.items()}
        )


def any_order(terms: int) -> int:
    """Any bracketing of a sum: a term goes through at most so many additions."""
    return terms


def parse_precision(precision: str, implementation: str) -> tuple[Format, str]:
    """`bf16`, `bf16-cast` or `bf16-amp`: (format, "", "cast" or "amp").

    **Raises:** `UsageError` for a format that no implementation runs in.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"{implementation} does not run in {precision}",
            hint=f"one of {', '.join(PRECISIONS)}",
        )
    found = Precision.named(precision)
    return FORMATS[found.format], found.variant


def assume_formats(sites: dict[str, Format], parameters: dict[str, Format]) -> str:
    """One line for the report that says what is held in which format."""
    stored = sorted({f.name for k, f in sites.items() if k != "state"})
    default = parameters["default"]
    text = (
        f"tensors written to memory are rounded to {', '.join(stored)}, to nearest "
        f"even; parameters are held in {default.name}"
    )
    for name in sorted({f.name for f in parameters.values()} - {default.name}):
        others = sorted(k for k, f in parameters.items() if f.name == name)
        text += f", {', '.join(others)} in {name}"
    return text


def assume_state(state: Format | None) -> str:
    """One line for the report on what is done with the recurrent state."""
    if state is None:
        return "the recurrent state stays in fp32 registers"
    if not isinstance(state, StateFormat):
        how = ", to nearest even"
    else:
        how = ", stochastically" if state.stochastic else ", to nearest even"
        if state.integer:
            how += (
                ", under one fp32 scale a channel chosen at each store, its largest "
                f"state over {state.largest:.0f}"
            )
        elif state.scaled:
            how += (
                ", under one power of two a channel chosen at each store so that the "
                "largest state just fits"
            )
    return (
        f"the recurrent state is rounded to {state.element} at every "
        f"token{how}; what is read out of it is not"
    )


def one_addition(tokens: int) -> int:
    """A state that is stored at every token: each starts from a stored number."""
    del tokens
    return 1
