"""Checkpoints of random weights at published widths, written in seconds."""

import json
import math
import os
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from oracles.checkpoints.mamba_ssm import full_config
from oracles.networks import mamba3


PRIME = 2**22 - 3


def mamba1(folder: Path, layers: int, width: int, rank: int, vocabulary: int) -> None:
    """A Mamba-1 in transformers' layout: state 16, convolution 4, tied head."""
    inner, state = 2 * width, 16
    mixer = {
        "in_proj.weight": (2 * inner, width),
        "conv1d.weight": (inner, 1, 4),
        "conv1d.bias": (inner,),
        "x_proj.weight": (rank + 2 * state, inner),
        "dt_proj.weight": (inner, rank),
        "dt_proj.bias": (inner,),
        "A_log": (inner, state),
        "D": (inner,),
        "out_proj.weight": (width, inner),
    }
    config = {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "state_size": state,
        "conv_kernel": 4,
        "time_step_rank": rank,
        "num_hidden_layers": layers,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    _write(folder, config, mixer, "backbone.embeddings.weight", (vocabulary, width))


def mamba2(folder: Path, layers: int, width: int, vocabulary: int) -> None:
    """A Mamba-2 in mamba_ssm's layout: heads of 64, state 128, tied head."""
    inner, state, heads = 2 * width, 128, 2 * width // 64
    mixer = {
        "in_proj.weight": (2 * inner + 2 * state + heads, width),
        "conv1d.weight": (inner + 2 * state, 1, 4),
        "conv1d.bias": (inner + 2 * state,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (inner,),
        "out_proj.weight": (width, inner),
    }
    config = _of_mamba_ssm(layers, width, vocabulary, {"layer": "Mamba2"})
    _write(folder, config, mixer, "backbone.embedding.weight", (vocabulary, width))


def mamba3_small(folder: Path) -> None:
    """Two Mamba-3 sublayers of width 128, heads of 32, state 32."""
    form = {"layer": "Mamba3", "d_state": 32, "headdim": 32}
    config = _of_mamba_ssm(2, 128, 256, form)
    shapes = mamba3.shapes(config)
    rng = np.random.default_rng(0)
    save(folder, config, [{name: drawn(name, s, rng) for name, s in shapes.items()}])


def falcon_h1(folder: Path) -> None:
    """Two blocks of three sublayers each, as transformers draws them."""
    from oracles.checkpoints.configurations import CONFIGURATIONS
    from oracles.checkpoints.transformers import make, save

    form = next(iter(CONFIGURATIONS["falcon_h1"].values()))
    form = form | {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
    save(make("falcon_h1", **form), folder)


def _of_mamba_ssm(layers: int, width: int, vocabulary: int, form: dict) -> dict:
    sizes = {"d_model": width, "n_layer": layers, "vocab_size": vocabulary}
    return full_config({**sizes, "ssm_cfg": form})


def _write(folder: Path, config: dict, mixer: dict, embedding: str, rows) -> None:
    """A file a layer, so that nothing but one is held."""
    rng, width = np.random.default_rng(0), rows[1]
    layers = config.get("n_layer") or config["num_hidden_layers"]
    norm = {"norm.weight": (width,)}
    own = norm | {f"mixer.{name}": shape for name, shape in mixer.items()}
    groups = [
        {f"backbone.layers.{i}.{name}": shape for name, shape in own.items()}
        for i in range(layers)
    ]
    groups.append({embedding: rows, "backbone.norm_f.weight": (width,)})
    draw = lambda group: {k: quickly_drawn(k, shape, rng) for k, shape in group.items()}
    save(folder, config, map(draw, groups))


def drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A parameter as training begins with it, in bf16."""
    if name.endswith("A_log"):
        array = np.log(rng.uniform(1, 16, shape))
    elif name.endswith(("dt_bias", "dt_proj.bias")):
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape))
        array = dt + np.log(-np.expm1(-dt))
    elif name.endswith(("D", "norm.weight", "norm_f.weight")):
        array = np.ones(shape)
    else:
        columns = 4 if "conv1d" in name else shape[-1]
        array = rng.standard_normal(shape, np.float32)
        array *= np.float32(columns**-0.5)
    return array.astype(ml_dtypes.bfloat16)


class Repeated(NamedTuple):
    """A large matrix that has the same numbers again after a prime number of them, so
    that no two rows are one and billions are written in seconds."""

    part: np.ndarray
    shape: tuple[int, ...]


def quickly_drawn(
    name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray | Repeated:
    """As `drawn`, or `Repeated` where it is large."""
    if math.prod(shape) <= PRIME:
        return drawn(name, shape, rng)
    columns = shape[-1]
    part = drawn(name, (PRIME // columns + 1, columns), rng)
    return Repeated(part.ravel()[:PRIME], shape)


def save(folder: Path, config: dict, groups) -> None:
    """Safetensors by hand, a file a group, so that no package is needed for them.

    **Arguments:**

    - `groups`: by name bf16 arrays, `Repeated`, or shapes, which are holes in the file:
      they take no disk and are read as zeros.
    """
    folder.mkdir(parents=True)
    files = {}
    for i, arrays in enumerate(groups):
        header, end = {}, 0
        for name, array in arrays.items():
            shape = getattr(array, "shape", array)
            begin, end = end, end + 2 * math.prod(shape)
            place = [begin, end]
            header[name] = {"dtype": "BF16", "shape": [*shape], "data_offsets": place}
        told = json.dumps(header).encode()
        file = f"model-{i + 1:05d}.safetensors"
        with (folder / file).open("wb") as out:
            out.write(len(told).to_bytes(8, "little") + told)
            for array in arrays.values():
                if isinstance(array, Repeated):
                    whole, rest = divmod(math.prod(array.shape), PRIME)
                    for _ in range(whole):
                        out.write(array.part.view(np.uint8).data)
                    out.write(array.part[:rest].view(np.uint8).data)
                elif isinstance(array, tuple):
                    out.seek(2 * math.prod(array), os.SEEK_CUR)
                else:
                    assert array.dtype == ml_dtypes.bfloat16
                    out.write(array.tobytes())
            out.truncate(out.tell())
        files |= dict.fromkeys(arrays, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
