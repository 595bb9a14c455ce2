"""A trace from a file: what any stack did, written down by its user.

A dump is a NumPy .npz with one array for each key, or a .safetensors whose tensors have
these keys and whose metadata has the texts:

| key | what | shape |
|---|---|---|
| `format` | the text `lyapunov-dump-1` | () |
| `implementation` | whose flow it follows: `mamba_ssm`, `transformers`, or `vllm` with the flags that change what it computes, such as `vllm --enforce-eager` | () |
| `precision` | `bf16`, `fp16`, `fp32`, `bf16-cast`, ... | () |
| `tokens` | integers | (seq) or (batch, seq) |
| `state_precision` | of the cache that hands the state on, such as `fp32`; needed under `mamba_ssm` where the text was run in several calls | () |
| `window_precision` | of the window of a convolution, where it is not the activations' | () |
| `begins_at` | how many tokens stand before these, computed by others | () |
| `residual_in_fp32`, `fused_add_norm` | where they are not the checkpoint's | () |
| `kind` | how the text was run (`lyapunov.implementations._ways.KINDS`); `whole` if left out | () |
| `layer.I.input` | what sublayer I is given, the stream in front of its norm | (..., d_model) |
| `layer.I.residual`, `layer.I.hidden` | instead: the stream, and what is added to it | (..., d_model) |
| `layer.I.output` | what sublayer I adds to the stream: what its mixer, attention or MLP puts out, times the model's multiplier where it has one | (..., d_model) |
| `layer.I.stored.SITE` | a stored tensor, such as `xz`, `conv`, `x_proj`, `gated` | (..., its width) |
| `logits` | if wanted, or instead of all layers | (..., vocabulary) |
| `logprobs` | instead of `logits`: their log-softmax, in nats | (..., vocabulary) |
| `top_logprobs`, `top_ids` | instead: of the n most likely tokens, others may be among them; id -1 fills up | (..., n) |
| `positions` | where logits are of some tokens alone: row i follows token `positions[i]` | (rows) |
| `handed.C.how`, `.at`, `.source`, `.sharing`, `.counts`, `.note` | where call C goes on from what another left: what kind of hand-over, behind how many tokens, which call left it (-1: not seen), how many other requests share its blocks, whether its tokens are those above, what is known besides | () |
| `layer.I.handed.C.left.state`, `...taken.state` | of sublayer I: what was left, and what call C began with | as the cache has it |
| `layer.I.handed.C.left.window`, `...taken.window` | the same of the convolution's window | (d_conv - 1, channels) |
| `handed.alike` | how many more agreed bit for bit and are not written | () |

`...` is the shape of `tokens`: the text's own tokens in their order, whatever calls they
were computed in, without padding and without the rest of a batch. Several runs of the
same tokens go into one file under `run.NAME.kind`, `run.NAME.layer.I.input` and so on.
Layers may be left out. Where all are, the logits are held to what random roundings do
to them (T3), and nothing is certified. Values are float16, float32 or float64; uint16
is the bits of bf16, which NumPy does not have. In torch, for a transformers model:

```python
arrays = {"format": "lyapunov-dump-1", "implementation": "transformers",
          "precision": "bf16", "tokens": ids.numpy()}
def keep(key):
    return lambda *seen: arrays.__setitem__(
        key, (seen[-1][0] if isinstance(seen[-1], tuple) else seen[-1])
        .float().cpu().numpy())
for i, block in enumerate(model.backbone.layers):
    block.register_forward_pre_hook(keep(f"layer.{i}.input"))
    block.mixer.register_forward_hook(keep(f"layer.{i}.output"))
model(ids)
np.savez("dump.npz", **arrays)
```

What a server returns is enough for logits alone, here as a .safetensors in bf16. A
server that lists log-probabilities of a prompt says at token i how likely token i was:
that row follows token i - 1, and there is none behind the last one.

```python
words = {"format": "lyapunov-dump-1", "implementation": "transformers",
         "precision": "bf16"}
save_file({"tokens": ids, "logits": model(ids).logits}, "dump.safetensors", words)
```

The file is not trusted: nothing in it is unpickled, and names, dtypes, shapes and sizes
are checked before memory is taken.
"""  # noqa: E501

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._errors import DumpError
from ...models import Model
from ...sublayers import NetworkConfig
from .._registry import flow_names, followed, implementation_named
from .._trace import HeadRecord, SublayerRecord, Trace, traced_in_fp64
from .._ways import Variant, parse_variant
from ._arrays import AbstractArrays, Safetensors
from ._complete import check_complete, is_index
from ._handed import Handed, HandOver
from ._keys import FORMAT
from ._logits import KEYS, SeenLogits, as_fp64, check_shape, seen_logits
from ._npz import Npz
from ._sites import site_widths


SETTINGS = ("format", "implementation", "precision", "tokens")
SWITCHES = ("residual_in_fp32", "fused_add_norm")
OPTIONAL = ("state_precision", "window_precision", "begins_at", *SWITCHES)
MOST_TOKENS = 2**24
HINT = (
    "lyapunov.implementations.dump.file describes the keys; "
    "lyapunov.write_dump writes them"
)


class File:
    """A dump as a runner: its trace was made elsewhere.

    **Arguments:**

    - `path`: the .npz or .safetensors.
    - `run`: which of its runs `trace` gives; None is the first.

    **Raises:** `DumpError` that says what was found, and how it should be.
    """

    def __init__(self, path: str | os.PathLike, run: str | None = None):
        self.path = Path(path)
        self._npz: AbstractArrays = (
            Safetensors(self.path)
            if self.path.suffix.lower() == ".safetensors"
            else Npz(self.path)
        )
        if self._text("format") != FORMAT:
            raise DumpError(
                f"{self.path.name} is of format {self._text('format')!r}",
                hint=f"this version reads {FORMAT!r}",
            )
        self.implementation = self._text("implementation")
        if not followed(self.implementation):
            raise DumpError(
                f"no flow is known by the name {self.implementation!r}",
                hint=f"`implementation` is one of {', '.join(flow_names())}",
            )
        self.precision = self._text("precision")
        self.state_precision = (
            self._text("state_precision") if "state_precision" in self._npz else None
        )
        self.window_precision = (
            self._text("window_precision") if "window_precision" in self._npz else None
        )
        self.tokens = self._tokens()
        self._handed = Handed(self._npz)
        self._arrays: dict[str, dict[tuple[int, str], str]] = {}
        self._logits: dict[str, SeenLogits] = {}
        kinds: dict[str, str] = {}
        self._sort(kinds)
        self.runs: dict[str, Variant] = {
            name: self._variant(kinds.get(name))
            for name in dict.fromkeys((*self._arrays, *self._logits))
        }
        if run is not None and run not in self.runs:
            raise DumpError(
                f"{self.path.name} has no run {run!r}",
                hint=f"it has {', '.join(self.runs)}",
            )
        self._run = next(iter(self.runs)) if run is None else run

    @property
    def needs_state_precision(self) -> bool:
        """Whether the format of the cache is the stack's own choice.

        transformers' is fp32; mamba_ssm's is that of the weights, vLLM's and SGLang's
        an option, so that a guess would call right numbers a bug.
        """
        kept = implementation_named(self.implementation).state_precisions("decode")
        return (kept is None or len(kept) > 1) and self.precision != "fp32"

    @property
    def begins_at(self) -> int:
        """How many tokens of the text stand before the dump's, computed by others."""
        if "begins_at" not in self._npz:
            return 0
        array = self._npz.read("begins_at", kinds="iu", most=1, hint=HINT)
        return int(array.reshape(-1)[0]) if array.size == 1 else 0

    @property
    def hand_overs(self) -> list[HandOver]:
        """Where one call of the run goes on from what another left."""
        return self._handed.of(self._run)

    @property
    def hand_overs_alike(self) -> int:
        """How many more agreed in every bit when they were written down."""
        return self._handed.alike(self._run)

    def stored(self, layer: int) -> dict[str, Any]:
        """Stored tensors of a sublayer of the run, (batch, seq, width), by site."""
        found = self._arrays.get(self._run, {})
        return {
            key.removeprefix("stored."): self._values(name)
            for (own, key), name in found.items()
            if own == layer and key.startswith("stored.")
        }

    def start(self, model: Model, layer: int, like: Any) -> Any:
        """What the run starts from in a sublayer, in the flow's layout.

        **Raises:** `DumpError` where it begins behind other tokens, and what it took
        there is not in the dump.
        """
        if not self.begins_at:
            return like
        return self._handed.start(model, self._run, layer, like)

    def configured(self, config: NetworkConfig) -> NetworkConfig:
        """The checkpoint's switches, or the dump's own words instead."""
        given = {n: self._npz.flag(n) for n in SWITCHES if n in self._npz}
        return dataclasses.replace(config, **given)

    @traced_in_fp64
    def trace(self, model: Model, tokens=None) -> Trace:
        """Records of the sublayers in the dump, and the head where it has logits.

        Where a sublayer's `input` alone is known, the stream and what was added to it
        are the input and output of the sublayer before, but not beside another one.

        **Arguments:**

        - `tokens`: None, or the dump's own, (batch, seq).
        """
        if tokens is not None and not np.array_equal(tokens, self.tokens):
            raise DumpError(
                "these are not the tokens that the dump was made of",
                hint="leave the tokens out: the dump has them",
            )
        self.check(model)
        arrays = self._arrays.get(self._run, {})
        before, stands_beside = None, False
        for layer in model.sublayers:
            keys = {k: v for (i, k), v in arrays.items() if i == layer.layer}
            if not keys:
                before = None
                continue
            seen = {key: self._values(name) for key, name in keys.items()}
            output = seen["output"]
            stored = {
                key.removeprefix("stored."): x
                for key, x in seen.items()
                if key.startswith("stored.")
            }
            given = seen.get("input")
            if given is None:
                residual, hidden, before = seen["residual"], seen["hidden"], None
            else:
                residual, hidden = before or (given, jnp.zeros_like(given))
                stored["residual"] = given
                before = given, output
            if layer.shares or stands_beside:
                before = None
            stands_beside = layer.shares
            if model.config.sublayers[layer.layer].adds_out:
                stored["out"] = output
            yield SublayerRecord(
                layer.layer,
                layer.kind,
                residual,
                hidden,
                output,
                stored,
                {},
            )
        seen = self.logits
        if seen is not None and seen.everywhere:
            nothing = jnp.zeros((*self.tokens.shape, model.config.d_model))
            # only the logits are known of the head
            yield HeadRecord(
                nothing, nothing, lambda *rows: jnp.asarray(seen.values(*rows))
            )

    @property
    def logits(self) -> SeenLogits | None:
        """What there is of the run's logits."""
        return self._logits.get(self._run)

    @property
    def has_layers(self) -> bool:
        """Whether the run has records of sublayers."""
        return self._run in self._arrays

    def check(self, model: Model) -> None:
        """Hold names, shapes, dtypes and sizes of all runs to a model.

        **Raises:** `DumpError`.
        """
        config = model.config
        if self.tokens.max() >= config.vocab_size:
            raise DumpError(
                f"token {self.tokens.max()} is beyond the vocabulary of "
                f"{config.vocab_size}",
                hint="is the dump of another checkpoint?",
            )
        for layer in model.sublayers if self._arrays else ():
            if layer.aside or layer.embedded:
                raise DumpError(
                    f"{model.layout.architecture} has blocks that several layers "
                    "share and that read the embedding, which a dump does not hold",
                    hint="--audit transformers runs it here",
                )
        by_sizes: dict[Any, dict[str, int]] = {}
        for run, arrays in self._arrays.items():
            layers: dict[int, set[str]] = {}
            for (layer, key), name in arrays.items():
                if layer >= config.n_layers:
                    raise DumpError(
                        f"{name}: this model has {config.n_layers} sublayers",
                        hint="they count from 0; is the dump of another checkpoint?",
                    )
                sizes = config.sublayers[layer]
                if sizes not in by_sizes:
                    by_sizes[sizes] = site_widths(model, model.sublayers[layer])
                widths = by_sizes[sizes]
                site = key.removeprefix("stored.")
                if site != key and site not in widths:
                    raise DumpError(
                        f"{name}: no stored tensor is called {site[:60]!r}",
                        hint=f"one of {', '.join(widths)}",
                    )
                width = config.d_model if site == key else widths[site]
                batch, seq = self.tokens.shape
                check_shape(self._npz, name, (batch, seq), (width,))
                layers.setdefault(layer, set()).add(key)
            for layer, keys in layers.items():
                check_complete(run, layer, keys)
        for seen in self._logits.values():
            seen.check(config.vocab_size, config.padded_vocab_size)
        self._handed.check(model, self.tokens)
        if self.begins_at and self._logits:
            raise DumpError(
                f"the dump begins behind {self.begins_at} tokens that it does not "
                "have, and logits are of all tokens before them",
                hint="leave the logits out",
            )

    # ---- reading

    def _sort(self, kinds: dict[str, str]) -> None:
        """Sort the keys by run; what is not understood is an error."""
        logits: dict[str, dict[str, str]] = {}
        for name in self._npz:
            if name in SETTINGS or name in OPTIONAL:
                continue
            run, rest = "whole", name
            if name.startswith("run."):
                run, _, rest = name.removeprefix("run.").partition(".")
            parts = rest.split(".")
            known = ("input", "residual", "hidden", "output")
            of_layer = len(parts) >= 3 and parts[0] == "layer" and is_index(parts[1])
            if run and self._handed.takes(run, rest, name):
                continue
            if run and rest == "kind":
                kinds[run] = name
            elif run and rest in KEYS:
                logits.setdefault(run, {})[rest] = name
            elif (
                run
                and of_layer
                and (
                    (len(parts) == 3 and parts[2] in known)
                    or (len(parts) == 4 and parts[2] == "stored")
                )
            ):
                key = ".".join(parts[2:])
                self._arrays.setdefault(run, {})[int(parts[1]), key] = name
            else:
                raise DumpError(
                    f"the key {name[:80]!r} is not understood",
                    hint="keys are " + ", ".join(SETTINGS) + ", layer.I.input, "
                    f"layer.I.output, layer.I.stored.SITE, {', '.join(KEYS)}, or these "
                    "behind run.NAME.; lyapunov.serving writes handed.C",
                )
        batch, seq = self.tokens.shape
        for run, names in logits.items():
            self._logits[run] = seen_logits(self._npz, run, (batch, seq), names)
        lost = sorted(set(kinds) - set(self._logits) - set(self._arrays))
        if lost or not (self._arrays or self._logits):
            which = f"the run {lost[0][:60]!r}" if lost else self.path.name
            raise DumpError(
                f"{which} has no array of any layer and no logits",
                hint="layer.0.input and layer.0.output, or logits, are the least",
            )

    def _text(self, name: str) -> str:
        return self._npz.text(name, HINT)

    def _tokens(self) -> np.ndarray:
        tokens = self._npz.read("tokens", kinds="iu", most=MOST_TOKENS, hint=HINT)
        if tokens.ndim not in (1, 2) or 0 in tokens.shape or tokens.shape[-1] < 2:
            raise DumpError(
                f"tokens have shape {tokens.shape}",
                hint="(seq) or (batch, seq), at least 2 tokens a sequence",
            )
        if tokens.min() < 0:
            raise DumpError("a token is negative", hint="leave padding out")
        return np.atleast_2d(tokens).astype(np.int64)

    def _variant(self, name: str | None) -> Variant:
        return parse_variant("whole" if name is None else self._text(name))

    def _values(self, name: str):
        array = self._npz.read(name).reshape(*self.tokens.shape, -1)
        return jnp.asarray(as_fp64(array))
