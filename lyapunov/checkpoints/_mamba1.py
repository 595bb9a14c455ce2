"""Mamba-1 language models in the two layouts that people have."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .._errors import CorruptCheckpointError, UnsupportedCheckpointError
from ..models.config import Mamba1Config
from ._checkpoint import Checkpoint
from ._files import listing, quote
from ._tensors import WEIGHT_DTYPES


_CHUNK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Mamba1Layout:
    """A recognised Mamba-1 model; each of its arrays is read when it is asked for.

    Every array comes in its stored type, and is refused where it holds a value that
    is not finite.

    **Arguments:**

    - `checkpoint`: where the tensors lie.
    - `config`: sizes and switches.
    - `dtype`: the type that most weights are stored in.
    - `n_params`: number of parameters; a tied head counts once.
    """

    checkpoint: Checkpoint = field(repr=False)
    config: Mamba1Config
    dtype: str
    n_params: int
    names: dict[str, str] = field(repr=False)
    """Stored names of `embedding`, `final_norm` and `head`, and the layers' prefix."""
    architecture: str = "mamba1"

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """The weights of one layer.

        **Arguments:**

        - `i`: 0 to `n_layers - 1`.

        **Returns:** a dictionary with

        - `norm`: (d_model)
        - `in_proj`: (2 * d_inner, d_model), rows x then z
        - `in_proj_bias`: (2 * d_inner), where the model has one
        - `conv_weight`: (d_inner, d_conv), the oldest tap first
        - `conv_bias`: (d_inner), where the model has one
        - `x_proj`: (dt_rank + 2 * d_state, d_inner), rows dt, B, C
        - `dt_proj`: (d_inner, dt_rank)
        - `dt_bias`: (d_inner)
        - `A_log`: (d_inner, d_state)
        - `D`: (d_inner)
        - `out_proj`: (d_model, d_inner)
        - `out_proj_bias`: (d_model), where the model has one
        """
        if not 0 <= i < self.config.n_layers:
            raise IndexError(f"layer {i} of a model of {self.config.n_layers} layers")
        arrays = {}
        for key, (suffix, _) in layer_tensors(self.config).items():
            name = f"{self.names['layers']}{i}.{suffix}"
            array = finite(self.checkpoint.read(name), name)
            arrays[key] = array[:, 0, :] if key == "conv_weight" else array
        return arrays

    def embedding(self, rows) -> np.ndarray:
        """Rows of the embedding: integers (n) to (n, d_model)."""
        name = self.names["embedding"]
        return finite(self.checkpoint.read_rows(name, np.asarray(rows)), name)

    def final_norm(self) -> np.ndarray:
        """The weight of the norm before the head, (d_model)."""
        name = self.names["final_norm"]
        return finite(self.checkpoint.read(name), name)

    def head(self, start: int, stop: int) -> np.ndarray:
        """Rows of the head, (stop - start, d_model); of the embedding when tied."""
        name = self.names["head"]
        return finite(self.checkpoint.read_rows(name, start, stop), name)


def layer_tensors(c: Mamba1Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a layer is made of: key to stored name (after the prefix) and shape."""
    mixer: dict[str, tuple[str, tuple[int, ...]]] = {
        "in_proj": ("in_proj.weight", (2 * c.d_inner, c.d_model)),
        "in_proj_bias": ("in_proj.bias", (2 * c.d_inner,)),
        "conv_weight": ("conv1d.weight", (c.d_inner, 1, c.d_conv)),
        "conv_bias": ("conv1d.bias", (c.d_inner,)),
        "x_proj": ("x_proj.weight", (c.dt_rank + 2 * c.d_state, c.d_inner)),
        "dt_proj": ("dt_proj.weight", (c.d_inner, c.dt_rank)),
        "dt_bias": ("dt_proj.bias", (c.d_inner,)),
        "A_log": ("A_log", (c.d_inner, c.d_state)),
        "D": ("D", (c.d_inner,)),
        "out_proj": ("out_proj.weight", (c.d_model, c.d_inner)),
        "out_proj_bias": ("out_proj.bias", (c.d_model,)),
    }
    absent = set()
    if not c.conv_bias:
        absent.add("conv_bias")
    if not c.proj_bias:
        absent |= {"in_proj_bias", "out_proj_bias"}
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "norm": ("norm.weight", (c.d_model,))
    }
    found |= {
        key: (f"mixer.{name}", shape)
        for key, (name, shape) in mixer.items()
        if key not in absent
    }
    return found


def recognise_mamba1(checkpoint: Checkpoint, config: Mamba1Config) -> Mamba1Layout:
    """Hold the tensors to the configuration, by name, shape and type."""
    names = _top_names(checkpoint, config)
    expected = {
        names["embedding"]: (config.padded_vocab_size, config.d_model),
        names["final_norm"]: (config.d_model,),
        names["head"]: (config.padded_vocab_size, config.d_model),
    }
    for i in range(config.n_layers):
        for suffix, shape in layer_tensors(config).values():
            name = f"{names['layers']}{i}.{suffix}"
            if name not in checkpoint.tensors:
                _missing(checkpoint, name, config, names["layers"])
            expected[name] = shape
    for name, shape in expected.items():
        found = checkpoint.shape(name)
        if found != shape:
            raise CorruptCheckpointError(
                f"{quote(name)} has shape {found}; config.json asks for {shape}",
                hint="take config.json and weights from the same place",
            )
        if checkpoint.dtype(name) not in WEIGHT_DTYPES:
            raise UnsupportedCheckpointError(
                f"{quote(name)} is stored as {checkpoint.dtype(name)}:"
                " quantised weights are not covered",
                hint="check the checkpoint that it was quantised from",
            )
    _no_strangers(checkpoint, config, names, expected)
    _check_tie(checkpoint, config, names)
    share: Counter[str] = Counter()
    for name in expected:
        share[checkpoint.dtype(name)] += checkpoint.tensor(name).size
    return Mamba1Layout(
        checkpoint, config, share.most_common(1)[0][0], share.total(), names
    )


def _top_names(checkpoint: Checkpoint, config: Mamba1Config) -> dict[str, str]:
    for root in ("backbone.", ""):  # a bare backbone is stored without its prefix
        if f"{root}norm_f.weight" in checkpoint.tensors:
            break
    else:
        root = "backbone."
    plural, singular = f"{root}embeddings.weight", f"{root}embedding.weight"
    embedding = singular if singular in checkpoint.tensors else plural
    return {
        "embedding": embedding,
        "final_norm": f"{root}norm_f.weight",
        "head": embedding if config.tie_embeddings else "lm_head.weight",
        "layers": f"{root}layers.",
    }


def _missing(
    checkpoint: Checkpoint, name: str, config: Mamba1Config, prefix: str
) -> None:
    indices = {
        n.removeprefix(prefix).split(".")[0]
        for n in checkpoint.tensors
        if n.startswith(prefix)
    }
    raise CorruptCheckpointError(
        f"no tensor {quote(name)}: config.json asks for {config.n_layers} layers,"
        f" the weights hold tensors of {len(indices)}",
        hint="take config.json and weights from the same place",
    )


def _no_strangers(
    checkpoint: Checkpoint, config: Mamba1Config, names: dict[str, str], expected: dict
) -> None:
    """Refuse tensors that the model would have to use and that nobody expects."""
    root = names["layers"].removesuffix("layers.")
    inside = (root,) if root else ("layers.",)
    tied_head = {"lm_head.weight"} if config.tie_embeddings else set()
    strangers = [
        name
        for name in checkpoint.tensors
        if name.startswith((*inside, "lm_head.")) and name not in expected
        if name not in tied_head
    ]
    if strangers:
        raise CorruptCheckpointError(
            f"{len(strangers)} tensors that config.json leaves no place for:"
            f" {listing(strangers)}",
            hint="take config.json and weights from the same place",
        )


def _check_tie(
    checkpoint: Checkpoint, config: Mamba1Config, names: dict[str, str]
) -> None:
    if not config.tie_embeddings or "lm_head.weight" not in checkpoint.tensors:
        return
    head = checkpoint.tensor("lm_head.weight")
    embedding = checkpoint.tensor(names["embedding"])
    same = head == embedding  # the same bytes of the same file
    if not same and (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        same = all(
            head.read_rows(i, min(i + _CHUNK_ROWS, head.shape[0])).tobytes()
            == embedding.read_rows(i, min(i + _CHUNK_ROWS, head.shape[0])).tobytes()
            for i in range(0, head.shape[0], _CHUNK_ROWS)
        )
    if not same:
        raise CorruptCheckpointError(
            "config.json says that the head is the embedding;"
            f" lm_head.weight and {names['embedding']} differ",
            hint="for a head of its own, set tie_word_embeddings (transformers)"
            " or tie_embeddings (mamba_ssm) to false in config.json",
        )


def finite(array: np.ndarray, name: str) -> np.ndarray:
    """The array itself; a `CorruptCheckpointError` where it holds NaN or inf."""
    sound = np.isfinite(array)
    if sound.all():
        return array
    bad = array.size - int(np.count_nonzero(sound))
    nan = int(np.count_nonzero(np.isnan(array)))
    raise CorruptCheckpointError(
        f"{quote(name)} holds {nan} NaN and {bad - nan} infinite values"
        f" among {array.size}",
        hint="the weights are damaged, or training diverged: take an earlier save",
    )
