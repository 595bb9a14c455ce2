"""What `analysis.cross_check` runs: networks, lengths, batches, modes, precisions."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np


ROOT = Path(__file__).parents[1]
TRAINED = {
    "bundled": None,
    "mamba1": ROOT / "experiments" / "models" / "mamba1",
    "mamba2": ROOT / "experiments" / "models" / "mamba2",
    "mamba3": ROOT / "experiments" / "models" / "mamba3",
    "gpt_neox": ROOT / "experiments" / "models" / "gpt_neox",
}
"""Trained networks by name; None is the bundled one."""

# d_model and layers of the published sizes
SHAPES = {"130m": (768, 24), "2.8b": (2560, 64)}
VOCABULARY = 50280
MOST_EMULATED = 1024
"""Tokens up to which the emulator runs beside the kernels."""
LONGEST_ATTENTION = 2049
"""Bounds of attention hold every score in fp64, several times over."""
PLAIN = ("bf16", "fp16", "fp32")
ROW = '{"case"'
"""With which a line begins that a case's process prints for a row."""
EVERY = ("bf16", "bf16-cast", "bf16-amp", "fp16", "fp16-amp", "fp32")


class Case(NamedTuple):
    """One network on one set of tokens, in a process of its own."""

    model: str
    mode: str
    batch: int
    length: int
    precisions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Says all but the precisions."""
        return f"{self.model}, {self.mode}, {self.batch} x {self.length}"

    @property
    def large(self) -> bool:
        """Whether the bounds are worth a GPU, too."""
        return self.model.partition(" ")[2] in SHAPES

    @property
    def measures(self) -> list[str]:
        """Whose kernels run it, and the emulation beside them where it is small.

        transformers' flow differs from the emulator's of mamba_ssm, so its emulation
        is that of its own execution: transformers on the CPU.
        """
        attention = self.model == "gpt_neox"
        kernels = "transformers_cuda" if attention else "mamba_ssm"
        if self.large or self.batch * self.length > MOST_EMULATED:
            return [kernels]
        return [kernels, "transformers" if attention else "emulated"]


def cases() -> list[Case]:
    """All of them, those that say most first."""
    found = []
    trained = list(TRAINED)
    for batch, length in (
        (1, 512),
        (1, 2049),
        (8, 512),
        (1, 128),
        (1, 4096),
        (1, 8192),
    ):
        for model in trained:
            if model == "gpt_neox" and length > LONGEST_ATTENTION:
                continue
            every = model in ("bundled", "mamba1") and length in (512, 2049)
            found.append(
                Case(model, "prefill", batch, length, EVERY if every else PLAIN)
            )
        if length == 512:
            # steps of Mamba-3 need kernels that are not everywhere
            steps = [model for model in trained if model != "mamba3"]
            found += [Case(model, "decode", batch, 128, PLAIN) for model in steps]
    for family in ("mamba1", "mamba2"):
        found += [
            Case(f"{family} 130m", "prefill", 1, 2049, PLAIN),
            Case(f"{family} 130m", "prefill", 8, 2048, PLAIN),
            Case(f"{family} 130m", "prefill", 1, 8192, PLAIN),
            Case(f"{family} 2.8b", "prefill", 1, 512, PLAIN),
            Case(f"{family} 2.8b", "prefill", 1, 2049, PLAIN),
        ]
    return found


def add_case(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a study runs one case in a process of its own."""
    parser.add_argument("--rehearse", action="store_true", help="small, without a GPU")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--precisions", help=argparse.SUPPRESS)


def case_of(arguments: argparse.Namespace) -> Case | None:
    """The case that was asked for by these options."""
    if not arguments.case:
        return None
    model, mode, batch, length = arguments.case
    precisions = tuple(arguments.precisions.split(","))
    return Case(model, mode, int(batch), int(length), precisions)


def own_process(
    study: str, case: Case, arguments: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """The command that runs one case of a study's module, and its environment.

    torch has a part of the card as well. A large network is worth the card; bounds of
    small ones are computed on the cores, in many processes of one thread each.
    """
    command = [sys.executable, "-m", study, "--case", *map(str, case[:4])]
    command += ["--precisions", ",".join(case.precisions)]
    command += ["--scratch", str(arguments.scratch)]
    command += ["--rehearse"] if arguments.rehearse else []
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if case.large:
        environment["JAX_PLATFORMS"] = "cuda,cpu"
    else:
        environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    return command, environment


def told(out: str, said: str, returncode: int | None) -> tuple[list[dict], str]:
    """The rows that a case printed, a line each, and what ended it early, or nothing:
    the last line of what it said besides, and the one before where that is a hint."""
    rows = [line for line in out.splitlines() if line.startswith(ROW)]
    found = [json.loads(line) for line in rows]
    if not returncode:
        return found, ""
    lines = [x for x in said.splitlines() if x.strip() and not x.startswith(ROW)]
    most = 2 if lines and lines[-1].startswith("hint:") else 1
    return found, " ".join(lines[-most:])[:500] if lines else f"exit {returncode}"


def rehearsed() -> list[Case]:
    """A few small ones, for a machine without a GPU."""
    models = ("bundled", "mamba2", "gpt_neox")
    return [Case(model, "prefill", 1, 48, ("bf16",)) for model in models]


def tokens(model, case: Case) -> np.ndarray:
    """Held-out English text where tokens are bytes, else seeded ones."""
    from analysis.perturbation import english

    return english(model, case.batch * case.length).reshape(case.batch, case.length)


def source(name: str, folder: Path) -> str | None:
    """What `lyapunov.load` takes; random checkpoints are written once into `folder`."""
    if name in TRAINED:
        return None if TRAINED[name] is None else str(TRAINED[name])
    family, _, size = name.partition(" ")
    target = folder / name.replace(" ", "-")
    if not (target / "config.json").exists():
        write_random(target, family, *SHAPES[size])
    return str(target)


def _shapes(family: str, d_model: int) -> dict[str, tuple[int, ...]]:
    """Stored names below `mixer.` and shapes, as mamba_ssm makes them by default."""
    d_inner = 2 * d_model
    if family == "mamba1":
        rank, d_state = d_model // 16, 16
        return {
            "in_proj.weight": (2 * d_inner, d_model),
            "conv1d.weight": (d_inner, 1, 4),
            "conv1d.bias": (d_inner,),
            "x_proj.weight": (rank + 2 * d_state, d_inner),
            "dt_proj.weight": (d_inner, rank),
            "dt_proj.bias": (d_inner,),
            "A_log": (d_inner, d_state),
            "D": (d_inner,),
            "out_proj.weight": (d_model, d_inner),
        }
    heads, wide = d_inner // 64, d_inner + 2 * 128
    return {
        "in_proj.weight": (d_inner + wide + heads, d_model),
        "conv1d.weight": (wide, 1, 4),
        "conv1d.bias": (wide,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (d_inner,),
        "out_proj.weight": (d_model, d_inner),
    }


def _drawn(name: str, shape: tuple[int, ...], layers: int, rng) -> np.ndarray:
    """A parameter as mamba_ssm begins with it."""
    if name == "A_log":
        if len(shape) == 1:
            return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
        return np.log(
            np.tile(np.arange(1, shape[1] + 1, dtype=np.float32), (shape[0], 1))
        )
    if name in ("dt_bias", "dt_proj.bias"):
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape))
        return (dt + np.log(-np.expm1(-dt))).astype(np.float32)
    if name in ("D", "norm.weight"):
        return np.ones(shape, np.float32)
    fan = 4 if name.startswith("conv1d") else shape[-1]
    array = rng.random(shape, np.float32)
    array *= np.float32(2 * fan**-0.5)
    array -= np.float32(fan**-0.5)
    if name == "out_proj.weight":
        array *= np.float32(layers**-0.5)
    return array


def write_random(folder: Path, family: str, d_model: int, layers: int) -> None:
    """A checkpoint in mamba_ssm's layout, fp32, a file a layer; seeded.

    The configuration comes last, so that a folder that has one is whole.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    files: dict[str, str] = {}
    for i in range(layers + 1):
        if i < layers:
            group = {"norm.weight": np.ones(d_model, np.float32)} | {
                f"mixer.{name}": _drawn(name, shape, layers, rng)
                for name, shape in _shapes(family, d_model).items()
            }
            group = {f"backbone.layers.{i}.{k}": v for k, v in group.items()}
        else:
            embedding = rng.standard_normal((VOCABULARY, d_model), np.float32)
            group = {
                "backbone.embedding.weight": embedding * np.float32(0.02),
                "backbone.norm_f.weight": np.ones(d_model, np.float32),
            }
        file = f"model-{i:05d}.safetensors"
        save_file(group, folder / file)
        files |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "d_model": d_model,
        "n_layer": layers,
        "vocab_size": VOCABULARY,
        "ssm_cfg": {} if family == "mamba1" else {"layer": "Mamba2"},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        "tie_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
