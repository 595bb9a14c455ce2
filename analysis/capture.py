"""A few tokens of the trained networks on real kernels, kept for machines without.

`python -m analysis.capture` needs an NVIDIA GPU with mamba_ssm and transformers; it
writes tests/data/captured/NAME.npz: what one layer read and stored, with the tokens,
the execution's name and the environment. `tests/bounds/test_captured.py` holds them to
the bounds anew.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from studies.study import Study

from ._cross_cases import ROOT, TRAINED, Case, tokens


FOLDER = ROOT / "tests" / "data" / "captured"
STUDY = Study(
    "analysis.capture",
    "minutes on an H200",
    FOLDER,
    ("mamba_ssm", "transformers"),
    gpu=True,
)
LAYER = 2
PREFILL, DECODE = 66, 24
"""Tokens: of a prefill more than the 64 of a chunk of Mamba-3."""


class Captured(NamedTuple):
    """Which run."""

    model: str
    mode: str
    precision: str
    measure: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.model}-{self.mode}-{self.precision}"


WANTED = [
    Captured("mamba1", "prefill", "bf16", "mamba_ssm"),
    Captured("mamba1", "prefill", "fp16", "mamba_ssm"),
    Captured("mamba1", "prefill", "fp32", "mamba_ssm"),
    Captured("mamba1", "decode", "bf16", "mamba_ssm"),
    Captured("mamba2", "prefill", "bf16", "mamba_ssm"),
    Captured("mamba2", "decode", "bf16", "mamba_ssm"),
    Captured("mamba3", "prefill", "bf16", "mamba_ssm"),
    Captured("gpt_neox", "prefill", "bf16", "transformers_cuda"),
]


def record(wanted: Captured, runner: Any = None) -> dict[str, np.ndarray]:
    """The arrays of one layer in a run, by tensor.

    **Arguments:**

    - `runner`: whoever runs the execution instead of its own kernels.
    """
    import jax

    jax.config.update("jax_enable_x64", True)
    import lyapunov
    from lyapunov.implementations import (
        HeadRecord,
        executions_for,
        implementation_named,
    )

    model = lyapunov.load(str(TRAINED[wanted.model]))
    length = PREFILL if wanted.mode == "prefill" else DECODE
    ids = tokens(model, Case(wanted.model, wanted.mode, 1, length, ()))
    execution = executions_for(
        model.config,
        [wanted.precision],
        architecture=model.layout.architecture,
        mode=wanted.mode,
        measure=wanted.measure,
    )[0]
    if runner is None:
        trace = implementation_named(wanted.measure).runner(execution).trace(model, ids)
    else:
        trace = runner.trace(model, ids)
    arrays = {"tokens": ids}
    for one in trace:
        if not isinstance(one, HeadRecord) and one.layer == LAYER:
            kept = {"incoming/residual": one.residual, "incoming/hidden": one.hidden}
            kept |= {"output": one.output}
            kept |= {f"stored/{site}": array for site, array in one.stored.items()}
            for name, array in kept.items():
                # fp32 holds whatever a kernel stores
                arrays[name] = np.asarray(array, np.float32)
    return arrays


def environment(wanted: Captured) -> dict:
    """What ran."""
    import mamba_ssm
    import torch
    import transformers

    return wanted._asdict() | {
        "layer": LAYER,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "mamba_ssm": mamba_ssm.__version__,
        "transformers": transformers.__version__,
        "command": "python -m analysis.capture",
    }


def write(folder: Path, wanted: Captured, arrays: dict, about: dict) -> Path:
    """One file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{wanted.name}.npz"
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, about=np.array(json.dumps(about)), **arrays)
    part.replace(path)
    return path


class Held(NamedTuple):
    """A captured sublayer, and its bounds."""

    about: dict
    record: Any
    """What it read and stored: a `SublayerRecord`."""
    t0: dict
    t1: Any
    arguments: tuple
    """(execution of its kind, flow, parameters, original parameters, start)."""

    @property
    def t1_ratio(self) -> float:
        """T1 over the error measured, L2."""
        found = self.t1.comparison
        return float(found.bound_square.sum() / found.measured_square.sum()) ** 0.5

    @property
    def violations(self) -> int:
        """Elements above T0 or T1."""
        every = [*self.t0.values(), self.t1.comparison]
        return sum(int(one.violations.sum()) for one in every)

    @property
    def unbounded(self) -> int:
        """Elements without a finite bound."""
        every = [*self.t0.values(), self.t1.comparison]
        return sum(int(one.unbounded.sum()) for one in every)


def read(path: Path) -> tuple[dict, dict]:
    """(about, arrays) of a file; nothing in it is code."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    return json.loads(str(arrays.pop("about"))), arrays


def held(path: Path, constants: str = "documented") -> Held:
    """A captured sublayer under its execution's bounds, anew.

    **Arguments:**

    - `constants`: `documented`, or `measured` as `lyapunov.check` has them.
    """
    import jax.numpy as jnp

    import lyapunov
    from lyapunov.bounds.local import (
        operation_bounds,
        sublayer_bound,
        with_operator_norms,
    )
    from lyapunov.implementations import (
        SublayerRecord,
        executions_for,
        with_measured,
    )

    about, arrays = read(path)
    model = lyapunov.load(str(TRAINED[about["model"]]))
    execution = executions_for(
        model.config,
        [about["precision"]],
        architecture=model.layout.architecture,
        mode=about["mode"],
        measure=about["measure"],
    )[0]
    if constants == "measured":
        execution = with_measured(execution)
    sublayer = model.sublayers[about["layer"]]
    of = execution.of(sublayer.kind)
    wide = lambda name: jnp.asarray(arrays[name], jnp.float64)
    stored = {
        name.removeprefix("stored/"): wide(name)
        for name in arrays
        if name.startswith("stored/")
    }
    one = SublayerRecord(
        sublayer.layer,
        sublayer.kind,
        wide("incoming/residual"),
        wide("incoming/hidden"),
        wide("output"),
        stored,
        {},
    )
    parameters = with_operator_norms(model.parameters(sublayer.layer, of))
    original = with_operator_norms(model.parameters(sublayer.layer))
    start = model.start(parameters)
    t0 = operation_bounds(of, sublayer.flow, one, parameters, start)
    arguments = of, sublayer.flow, parameters, original, start
    t1 = sublayer_bound(of, sublayer.flow, one, *arguments[2:])
    return Held(about, one, t0, t1, arguments)


def main(given: list[str] | None = None) -> None:
    """All that are wanted, or those named."""
    parser = STUDY.parser(__doc__, "--folder")
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    arguments = parser.parse_args(given)
    STUDY.begin(arguments.out / "captured")
    for wanted in WANTED:
        if arguments.names and not any(x in wanted.name for x in arguments.names):
            continue
        path = write(arguments.out, wanted, record(wanted), environment(wanted))
        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
