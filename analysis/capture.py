"""A few tokens of the trained networks on real kernels, kept for tests without a GPU.

`python -m analysis.capture` needs an NVIDIA GPU with mamba_ssm and transformers; it
writes tests/data/captured/NAME.npz: what one layer read and stored, with the tokens,
the execution's name and the environment. `tests/bounds/test_captured.py` holds them to
the bounds anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._cross_cases import ROOT, TRAINED, Case, tokens


FOLDER = ROOT / "tests" / "data" / "captured"
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
    from lyapunov._run import _runner
    from lyapunov._trace import HeadRecord
    from lyapunov.executions import executions_for

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
    made = _runner(model, execution, wanted.measure) if runner is None else runner
    arrays = {"tokens": ids}
    for one in made.trace(model, ids):
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


def main() -> None:
    """All that are wanted, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    arguments = parser.parse_args()
    for wanted in WANTED:
        if arguments.names and not any(x in wanted.name for x in arguments.names):
            continue
        path = write(arguments.folder, wanted, record(wanted), environment(wanted))
        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
