"""A language model that feeds on itself: what the exponents of its layers don't say.

`python -m analysis.closed_loop` writes closed_loop.{json,md,png}.

The theorem on Mamba's exponents (arXiv 2406.00209) holds the inputs fixed. When a model
generates, its output becomes its input: the map from one token to the next is another
one, outside of the theorem, and a layer whose exponents are all negative may be part of
a loop that is chaotic. Two ways to close the loop on the bundled model:

- Soft: the next embedding is the mean of the embedding's rows under softmax(logits /
  temperature). The map is differentiable; its largest exponent is the growth of one
  tangent vector in states, windows and embedding together.
- Tokens: argmax or a draw. The derivative is 0 almost everywhere, so no exponent says
  anything. Instead, damage spreading: two copies, the states of one moved by a relative
  eps, both fed with their own tokens, drawn with the same random numbers. Counted are
  the pairs that part within the horizon, when, and how far states are apart then. Fed
  with the same text instead (teacher forcing), the same damage fades.
"""

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from studies.files import write
from studies.study import Study

from ._closed_loop_page import draw, table


STUDY = Study(
    "analysis.closed_loop",
    "minutes",
    Path(__file__).parent / "results" / "closed_loop.json",
    ("matplotlib",),
)
SETTINGS = {
    "prompt_tokens": 64,
    "prompts": 3,
    "temperatures": [0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 4.0, 7.0, 12.0, 30.0],
    "settle": 500,
    "tokens": 1500,
    "pairs": 32,
    "horizon": 384,
    "damage": [1e-6, 1e-4, 4e-3, 5e-2],
    "damage_temperatures": [0.0, 0.3, 0.6, 1.0],
}
SEED = 20240600209


class Loop(eqx.Module):
    """The bundled model as a map from one token to the next."""

    parameters: list[Any]
    flows: list[Any] = eqx.field(static=True)
    norm: Any
    head: Any
    embedding: Float[Array, "vocab d_model"]

    @classmethod
    def of(cls, model) -> "Loop":
        """All parameters of a model whose sublayers follow one another."""
        return cls(
            [model.parameters(one.layer) for one in model.sublayers],
            [one.flow for one in model.sublayers],
            model.final_norm(),
            model.head(0, model.config.vocab_size),
            model.embed(np.arange(model.config.vocab_size)),
        )

    def start(self) -> list[Any]:
        """States before the first token."""
        return [p.initial_state() for p in self.parameters]

    def step(
        self, states: list[Any], embedded: Float[Array, " d_model"]
    ) -> tuple[list[Any], Float[Array, " vocab"]]:
        """States after one token, and the logits of the next."""
        from lyapunov.arithmetic import Exact
        from lyapunov.sublayers.residual import Incoming, final_norm, logits, sublayer

        at, after = Exact(), []
        residual = embedded[None]
        hidden = jnp.zeros_like(residual)
        for flow, p, state in zip(self.flows, self.parameters, states, strict=True):
            incoming = Incoming(residual, hidden)
            residual, hidden, state = sublayer(at, flow, incoming, p, state)
            after.append(state)
        normed = final_norm(at, residual, hidden, self.norm)
        return after, logits(at, normed, self.head)[0]

    def fed(self, states, tokens):
        """States after given tokens, and the logits of the next."""

        def advance(states, token):
            return self.step(states, self.embedding[token])

        states, logits = jax.lax.scan(advance, states, tokens)
        return states, logits[-1]

    def soft_step(self, carried, temperature):
        """The loop closed through the mean embedding under the softmax."""
        states, embedded = carried
        states, logits = self.step(states, embedded)
        return states, jax.nn.softmax(logits / temperature) @ self.embedding


@eqx.filter_jit
def soft_growth(loop: Loop, prompt, temperature, settle: int, tokens: int, key):
    """Growth of a tangent vector after settling, in ten windows.

    **Returns:** log growth per token by window, and the mean distance between
    successive embeddings, 0 at a fixed point.
    """
    states, logits = loop.fed(loop.start(), prompt)
    carried = states, jax.nn.softmax(logits / temperature) @ loop.embedding
    flat, unravel = ravel_pytree(carried)
    step = lambda x: ravel_pytree(loop.soft_step(unravel(x), temperature))[0]

    def advance(carry, _):
        x, v = carry
        after, v = jax.jvp(step, (x,), (v,))
        size = jnp.linalg.norm(v)
        v = v / jnp.where(size > 0, size, 1)
        moved = jnp.linalg.norm(after[-width:] - x[-width:])
        return (after, v), (jnp.log(size), moved)

    width = loop.embedding.shape[1]
    v = jax.random.normal(key, flat.shape, jnp.float64)
    carry = flat, v / jnp.linalg.norm(v)
    carry, _ = jax.lax.scan(advance, carry, None, settle)
    carry, (growth, moved) = jax.lax.scan(advance, carry, None, tokens)
    return growth.reshape(10, -1).mean(axis=1), moved.mean()


@eqx.filter_jit
def damage(loop: Loop, prompts, eps, temperature, horizon: int, key):
    """Pairs of copies, one with damaged states, under the same random numbers.

    **Returns:** for each prompt and token whether the tokens differ, the relative
    distance of all states, and that distance when both are fed the first's tokens.
    """

    def pair(prompt, key):
        states, logits = loop.fed(loop.start(), prompt)
        flat, unravel = ravel_pytree(states)
        direction_key, noise_key = jax.random.split(key)
        v = jax.random.normal(direction_key, flat.shape, jnp.float64)
        moved = flat + eps * jnp.linalg.norm(flat) * v / jnp.linalg.norm(v)

        def distance(one, other):
            one, other = ravel_pytree(one)[0], ravel_pytree(other)[0]
            return jnp.linalg.norm(one - other) / jnp.linalg.norm(one)

        def choose(logits, noise):
            # argmax of logits / temperature + Gumbel noise is a draw at temperature
            return jnp.argmax(logits + temperature * noise)

        def advance(carry, key):
            (one, given), (other, others), forced = carry
            noise = jax.random.gumbel(key, given.shape, jnp.float64)
            token, its = choose(given, noise), choose(others, noise)
            one = loop.step(one, loop.embedding[token])
            other = loop.step(other, loop.embedding[its])
            forced, _ = loop.step(forced, loop.embedding[token])
            found = token != its, distance(one[0], other[0]), distance(one[0], forced)
            return (one, other, forced), found

        copy = unravel(moved)
        keys = jax.random.split(noise_key, horizon)
        carry = (states, logits), (copy, logits), copy
        return jax.lax.scan(advance, carry, keys)[1]

    return jax.vmap(pair)(prompts, jax.random.split(key, len(prompts)))


def passages(count: int, tokens: int) -> np.ndarray:
    """Pieces of the bundled held-out text, (count, tokens)."""
    import importlib.resources

    home = importlib.resources.files("lyapunov") / "assets" / "mamba1-bytes"
    text = np.frombuffer(home.joinpath("heldout.txt").read_bytes(), np.uint8)
    starts = np.linspace(0, len(text) - tokens, count).astype(int)
    return np.stack([text[s : s + tokens] for s in starts]).astype(np.int64)


def study(settings: dict) -> dict:
    """Soft loops over temperatures, then damage over sizes and temperatures."""
    import lyapunov

    loop = Loop.of(lyapunov.load())
    key = jax.random.key(SEED)
    prompts = jnp.asarray(passages(settings["prompts"], settings["prompt_tokens"]))
    soft = []
    for temperature in settings["temperatures"]:
        runs = [
            soft_growth(
                loop,
                prompt,
                jnp.asarray(temperature),
                settings["settle"],
                settings["tokens"],
                key,
            )
            for prompt in prompts
        ]
        soft.append(
            {
                "temperature": temperature,
                "exponents": [float(windows.mean()) for windows, _ in runs],
                "stderr": [
                    float(windows.std(ddof=1) / np.sqrt(len(windows)))
                    for windows, _ in runs
                ],
                "embedding_moves": [float(moved) for _, moved in runs],
            }
        )
        print(json.dumps(soft[-1]))
    starts = jnp.asarray(passages(settings["pairs"], settings["prompt_tokens"]))
    rows = []
    for temperature in settings["damage_temperatures"]:
        for eps in settings["damage"]:
            found = damage(
                loop, starts, jnp.asarray(eps), jnp.asarray(temperature),
                settings["horizon"], key,
            )  # fmt: skip
            rows.append({"temperature": temperature, "eps": eps} | summary(*found))
            print(json.dumps(rows[-1] | {"distance": None, "forced": None}))
    return {
        "command": "python -m analysis.closed_loop",
        "outside": "the theorem of arXiv 2406.00209 holds inputs fixed; a closed loop "
        "is another map, and nothing here follows from it or contradicts it",
        "settings": settings,
        "soft": soft,
        "damage": rows,
    }


def summary(differs, apart, forced) -> dict:
    """What a set of pairs did."""
    differs, apart, forced = (np.asarray(x) for x in (differs, apart, forced))
    parted = differs.any(axis=1)
    first = differs.argmax(axis=1)[parted]
    after = [row[t:].mean() for row, t in zip(differs[parted], first, strict=True)]
    last = apart[parted, -32:].mean(axis=1)
    return {
        "pairs": len(differs),
        "parted": int(parted.sum()),
        "first_token": float(np.median(first)) if parted.any() else None,
        "tokens_that_differ_after": float(np.mean(after)) if parted.any() else None,
        "distance_after": float(np.median(last)) if parted.any() else None,
        "distance": _short(np.median(apart, axis=0)),
        "forced": _short(np.median(forced, axis=0)),
    }


def _short(values) -> list[float]:
    """Four digits: what a figure shows."""
    return [float(f"{x:.4g}") for x in values]


def environment() -> dict:
    """What this was run on."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files."""
    out = STUDY.parser(__doc__).parse_args(given).out
    STUDY.begin(out)
    jax.config.update("jax_enable_x64", True)
    result = study(SETTINGS) | {"environment": environment()}
    draw(result, out.with_suffix(".png"))
    write(out, json.dumps(result) + "\n")
    write(out.with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
