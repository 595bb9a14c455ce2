"""T0 and T1 of a 130M-parameter Mamba-1 on a GPU, beside mamba_ssm's own forward.

`python -m analysis.speed` needs an NVIDIA GPU and mamba_ssm; it writes
speed.json and speed.md: the card's copy and matrix product rates as
measured here, the scan kernel with and without its error bound, T0 and T1 of 24 layers
over 8 x 2048 tokens in forwards of mamba_ssm in fp32, and where the time goes, kernel
by kernel. All times are warm and the smallest of several rounds. `--small` runs the
same on a CPU with little of everything, to see that it runs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.arithmetic import Exact
from lyapunov.arithmetic.rules.sums import sum_of_magnitudes
from lyapunov.bounds.local import (
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from lyapunov.bounds.passes import exact_pass
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.recurrences import fused_scan
from lyapunov.recurrences.mamba1 import in_blocks, selective_scan, token
from lyapunov.sublayers.mamba1 import initial_state, mamba1
from studies.files import write
from studies.study import Study, promote

from . import pictures
from ._speed_inputs import (
    SMALL,
    Shape,
    incoming,
    parameters,
    record_of,
    rounded,
    scan_operands,
)
from ._speed_page import page
from ._speed_profile import by_kernel


STUDY = Study(
    "analysis.speed",
    "minutes on an H200",
    Path(__file__).parent / "results" / "speed.json",
    ("matplotlib",),
    more="an NVIDIA GPU with mamba_ssm, or --small, which measures what it can",
)
TILES = ((4, 1), (8, 1), (8, 2), (16, 1), (16, 2), (16, 4), (32, 2), (32, 4))


def seconds(run: Callable, rounds: int) -> float:
    """The smallest of several rounds, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return min(found)


def host_seconds(run: Callable, rounds: int) -> float:
    """What it takes until all work is on its way, the smallest of several rounds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        results = run()
        found.append(time.perf_counter() - began)
        jax.block_until_ready(results)
    return min(found)


def limits(shape: Shape) -> dict:
    """Copy rate and rates of matrix products: what the card gives JAX."""
    x = jnp.ones(shape.copied, jnp.float64)
    copy = jax.jit(lambda x: x + 1.0)
    copied = seconds(lambda: copy(x), shape.rounds)
    found = {"copy GB/s": 16 * shape.copied / copied / 1e9}
    for dtype in (jnp.float64, jnp.float32):
        a = jnp.ones((shape.square, shape.square), dtype)
        product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        took = seconds(lambda a=a, product=product: product(a), shape.rounds)
        rate = 2 * shape.square**3 / took / 1e12
        found[f"matmul {jnp.dtype(dtype).name} TFLOP/s"] = rate
    return found


def _interpreter(shape: Shape, execution, bounded: bool):
    if not bounded:
        return Exact(observes=False)
    return execution.bounded(
        shape.seq, execution.site_numbers(), execution.constants.model(), centred=True
    )


def _over_batch(run: Callable) -> Callable:
    return jax.vmap(run, in_axes=(0, 0, 0, 0, None, None, None))


def _magnitudes(shape: Shape, dt, u, B, C, A):
    """Sums of magnitudes behind y and the state."""
    zeros = jnp.zeros((shape.d_state, shape.d_inner))
    run = lambda dt, u, B, C: selective_scan(
        Exact(), dt, abs(u), abs(B), abs(C), A, jnp.ones(shape.d_inner), zeros
    )
    return jax.jit(jax.vmap(run))(dt, u, B, C)


def agreement(shape: Shape, interpret: bool) -> dict:
    """The compiled kernel against XLA's loop: largest relative distance.

    Relative to the sum of magnitudes behind a value; to the error itself for errors.
    """
    found = {}
    shape = shape._replace(seq=min(shape.seq, 256))
    execution = mamba_ssm_prefill("bf16")
    for bounded in (False, True):
        operands = scan_operands(shape, bounded, 2)

        @jax.jit
        @_over_batch
        def fused(*operands, bounded=bounded):
            at = _interpreter(shape, execution, bounded)
            kernel = at.kernel(shape.d_state)
            assert kernel is not None
            return fused_scan.in_kernel(
                at, token, kernel.numbers, operands, interpret=interpret
            )[:2]

        @jax.jit
        @_over_batch
        def looped(*operands, bounded=bounded):
            at = _interpreter(shape, execution, bounded)
            return in_blocks(at, *operands)

        (y, state), (y2, state2) = fused(*operands), looped(*operands)
        of = (lambda x: x.value) if bounded else (lambda x: x)
        dt, u, B, C, A, _, _ = [getattr(x, "value", x) for x in operands]
        sizes = _magnitudes(shape, dt, u, B, C, A)
        name = "bounded" if bounded else "exact"
        for what, one, other, size in (
            ("y", y, y2, sizes[0]),
            ("state", state, state2, sizes[1]),
        ):
            far = jnp.max(jnp.abs(of(one) - of(other)) / size)
            found[f"{name} {what}, values"] = float(far)
            if bounded:
                far = jnp.max(jnp.abs(one.error / other.error - 1.0))
                found[f"{name} {what}, errors"] = float(far)
    return found


def magnitude_sums(shape: Shape) -> dict:
    """Smallest and largest of |W| x as the bounds find it over what it is in fp64."""
    rng = np.random.default_rng(3)
    found = {}
    for terms in (shape.d_model, shape.d_inner):
        x = jnp.asarray(rng.exponential(size=(1024, terms)))
        worst = jnp.full_like(x, 2 - 2.0**-23)
        matrix = jnp.asarray(rng.normal(size=(512, terms)))
        worst_matrix = jnp.full_like(matrix, 1 + 2.0**-10 - 2.0**-23)
        for name, a, w in (("plain", x, matrix), ("worst", worst, worst_matrix)):
            exact = jnp.matmul(a, jnp.abs(w).T, precision="highest")
            ratio = jax.jit(sum_of_magnitudes)(a, w) / exact
            found[f"{name}, {terms}"] = [float(ratio.min()), float(ratio.max())]
    return found


def scans(shape: Shape, interpret: bool) -> dict:
    """Milliseconds of the kernel, tile by tile, and its share of the copy rate."""
    found: dict[str, Any] = {}
    execution = mamba_ssm_prefill("bf16")
    for bounded in (False, True):
        operands = scan_operands(shape, bounded, shape.batch)
        size = sum(x.nbytes for x in jax.tree.leaves(operands))
        at = _interpreter(shape, execution, bounded)
        # as in T0 and T1: read by the kernel, not compiled into it
        taken = at.kernel(shape.d_state)
        assert taken is not None
        numbers = taken.numbers
        rows = {}
        for tile in TILES:
            if shape.d_inner % tile[0]:
                continue

            @jax.jit
            def run(numbers, *operands, at=at, tile=tile):
                kernel = lambda *given: fused_scan.in_kernel(
                    at, token, numbers, given, tile=tile, interpret=interpret
                )[:2]
                return _over_batch(kernel)(*operands)

            try:
                took = seconds(partial(run, numbers, *operands), shape.rounds)
            except Exception as problem:
                rows[f"{tile}"] = str(problem)[:200]
                continue
            rows[f"{tile}"] = took * 1e3
        times = [x for x in rows.values() if isinstance(x, float)]
        written = (1 + bounded) * 8 * shape.batch * shape.seq * shape.d_inner
        found["bounded" if bounded else "exact"] = {
            "ms": min(times, default=None),
            "tiles, ms": rows,
            "chosen": str(fused_scan.tiling(shape.d_inner, shape.d_state)),
            "GB moved": (size + written) / 1e9,
        }
    return found


def bounds(shape: Shape, precision: str, profiled: bool) -> dict:
    """T0 and T1 of all layers, warm; each alone, and by kernel."""
    execution = mamba_ssm_prefill(precision)
    given = incoming(shape)
    own = [parameters(shape, seed) for seed in range(2)]
    exactly = precision == "fp32"
    # what is compiled once for all layers is not a layer's time
    with_operator_norms(rounded(parameters(shape, 2), execution))
    began = time.perf_counter()
    held = [with_operator_norms(rounded(p, execution)) for p in own]
    norms = (time.perf_counter() - began) / len(held) * shape.layers
    record = record_of(execution, given, held[0])
    start = initial_state(held[0])
    layers = range(shape.layers)

    def t0():
        return [
            operation_bounds(execution, mamba1, record, held[i % 2], start)
            for i in layers
        ]

    def t1():
        return [
            sublayer_bound(
                execution,
                mamba1,
                record,
                held[i % 2],
                None if exactly else own[i % 2],
                start,
            )
            for i in layers
        ]

    def reference():
        return [exact_pass(mamba1, given, own[i % 2], start) for i in layers]

    first = operation_bounds(execution, mamba1, record, held[0], start)
    through = sublayer_bound(
        execution, mamba1, record, held[0], None if exactly else own[0], start
    )
    violations = sum(int(jnp.sum(c.violations)) for c in first.values())
    violations += int(jnp.sum(through.comparison.violations))
    found = {
        "violations": violations,
        "T0 sites": sorted(first),
        "operator norms, once a model, s": norms,
        "T0 s": seconds(t0, shape.rounds),
        "T1 s": seconds(t1, shape.rounds),
        "T0 s until all is sent": host_seconds(t0, shape.rounds),
        "T1 s until all is sent": host_seconds(t1, shape.rounds),
        "T0 and T1 s": seconds(lambda: (t0(), t1()), shape.rounds),
        "exact pass s": seconds(reference, shape.rounds),
    }
    if profiled:
        for tier, run in (("T0", t0), ("T1", t1), ("exact", reference)):
            try:
                found[f"{tier} ms by kernel"] = by_kernel(run)
            except Exception as problem:
                print(f"no profile of {tier}: {problem!r}"[:500], flush=True)
    return found


def forward(shape: Shape) -> dict:
    """Seconds of mamba_ssm's own fp32 forward; for a process of its own."""
    import torch
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    torch.manual_seed(0)
    config = MambaConfig(
        d_model=shape.d_model, n_layer=shape.layers, vocab_size=shape.vocabulary
    )
    network = MambaLMHeadModel(config, device="cuda", dtype=torch.float32).eval()
    ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.seq), device="cuda")

    def timed(run) -> float:
        found = []
        with torch.no_grad():
            for _ in range(shape.rounds + 3):
                torch.cuda.synchronize()
                began = time.perf_counter()
                run(ids)
                torch.cuda.synchronize()
                found.append(time.perf_counter() - began)
        return min(found[3:])

    return {
        "whole, s": timed(network),
        "layers alone, s": timed(network.backbone),
        "torch": torch.__version__,
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def environment() -> dict:
    """The card, its driver, and what it ran."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        card = "none"
    return {
        "card and driver": card,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "devices": [str(device) for device in jax.devices()],
        "python": sys.version.split()[0],
        "command": " ".join(["python -m analysis.speed", *sys.argv[1:]]),
    }


def _write(result: dict, out: Path) -> None:
    write(out, json.dumps(result, indent=1) + "\n")
    write(out.with_suffix(".md"), page(result))


def main(given: list[str] | None = None) -> None:
    """Run the study and write its files, part by part."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--small", action="store_true", help="a network for CPUs")
    parser.add_argument("--forward", action="store_true", help="mamba_ssm's part alone")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds")
    arguments = parser.parse_args(given)
    shape = SMALL if arguments.small else Shape()
    if arguments.forward:
        print(json.dumps(forward(shape)))
        return
    STUDY.begin(arguments.out)
    working = STUDY.working(arguments.out)
    began = time.perf_counter()
    result: dict[str, Any] = {"shape": shape._asdict()}
    failed: list[str] = []

    def part(name: str, work: Callable) -> None:
        if time.perf_counter() - began > arguments.budget:
            print(f"no time left for {name}", flush=True)
            failed.append(f"{name}: no time left")
            return
        try:
            found = work()
        except Exception as problem:
            found = None
            print(f"{name} failed: {problem!r}"[:2000], flush=True)
        if found is None:
            failed.append(f"{name}: did not run")
        else:
            place = result
            *above, last = name.split(": ")
            for key in above:
                place = place.setdefault(key, {})
            place[last] = found
        _write(result, working)
        gone = time.perf_counter() - began
        print(f"{gone:.0f} s: {name}: {json.dumps(found)[:3000]}", flush=True)

    def forward_apart() -> dict | None:
        command = [sys.executable, "-m", "analysis.speed", "--forward"]
        if arguments.small:
            command.append("--small")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            print(done.stderr[-1500:], flush=True)
            return None
        return json.loads(done.stdout.splitlines()[-1])

    result["environment"] = {}
    # before JAX holds any of the card's memory
    part("mamba_ssm", forward_apart)
    jax.config.update("jax_enable_x64", True)
    part("environment", environment)
    interpret = not fused_scan.has_gpu()
    part("agreement", lambda: agreement(shape, interpret))
    part("sums of magnitudes", lambda: magnitude_sums(shape))
    part("limits", lambda: limits(shape))
    part("scan", lambda: scans(shape, interpret))
    part("bounds: fp32", lambda: bounds(shape, "fp32", True))
    part("bounds: bf16", lambda: bounds(shape, "bf16", True))
    pictures.speed(result, working.with_suffix(".png"))
    promote(working, arguments.out, failed)


if __name__ == "__main__":
    main()
