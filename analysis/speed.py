"""T0 and T1 of a 130M-parameter Mamba-1 on a GPU, beside mamba_ssm's own forward.

`python -m analysis.speed` needs an NVIDIA GPU and mamba_ssm; it writes
speed.json and speed.md: the card's copy and matrix product rates as
measured here, the scan kernel with and without its error bound, T0 and T1 of 24 layers
over 8 x 2048 tokens in forwards of mamba_ssm in fp32, and where the time goes, kernel
by kernel. All times are warm and the smallest of several rounds. `--cpu` measures T0
and T1 on a CPU, in CPU seconds and exact passes of this package; either keeps what the
other found. `--small` runs all with little of everything, to see that it runs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
import jax
import jax.numpy as jnp
import numpy as np

from lyapunov.bounds.local import (
    operation_bounds,
    sublayer_bound,
    with_operator_norms,
)
from lyapunov.bounds.passes import exact_pass
from lyapunov.implementations.mamba_ssm.mamba1 import mamba_ssm_prefill
from lyapunov.recurrences import fused_scan
from lyapunov.recurrences.mamba1 import token
from lyapunov.sublayers.mamba1 import initial_state, mamba1
from studies.files import write
from studies.study import Study, promote

from . import pictures
from ._speed_agreement import agreement, interpreter, magnitude_sums, over_batch
from ._speed_inputs import (
    ON_CPU,
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
TILES = ((4, 1), (8, 1), (16, 2))


def seconds(run: Callable, rounds: int, clock: Callable = time.perf_counter) -> float:
    """The smallest of several rounds, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(rounds):
        began = clock()
        jax.block_until_ready(run())
        found.append(clock() - began)
    return min(found)


def as_a_check(works: list[Callable]) -> list:
    """What all of them find, by as many workers as a check has, on the host."""

    def on_the_host(work: Callable) -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, work())

    with ThreadPoolExecutor(4) as workers:
        sent = [workers.submit(on_the_host, work) for work in works]
        return [work.result() for work in sent]


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


def scans(shape: Shape, interpret: bool) -> dict:
    """Milliseconds of the kernel, tile by tile, and its share of the copy rate."""
    found: dict[str, Any] = {}
    execution = mamba_ssm_prefill("bf16")
    for bounded in (False, True):
        operands = scan_operands(shape, bounded, shape.batch)
        size = sum(x.nbytes for x in jax.tree.leaves(operands))
        at = interpreter(shape, execution, bounded)
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
                return over_batch(kernel)(*operands)

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


def bounds(shape: Shape, precision: str, on_gpu: bool) -> dict:
    """T0 and T1 of all layers, warm; each alone, and on a GPU by kernel.

    On a CPU, which others may be at work on, seconds are those of its cores.
    """
    clock = time.perf_counter if on_gpu else time.process_time
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

    own = [None, None] if exactly else own
    t0 = [
        partial(operation_bounds, execution, mamba1, record, held[i % 2], start)
        for i in layers
    ]
    t1 = [
        partial(sublayer_bound, *work.args[:-1], own[i % 2], start)
        for i, work in zip(layers, t0, strict=True)
    ]
    both = [work for pair in zip(t1, t0, strict=True) for work in pair]

    def reference():
        return [exact_pass(mamba1, given, held[i % 2], start) for i in layers]

    first, through = t0[0](), t1[0]()
    violations = sum(int(jnp.sum(c.violations)) for c in first.values())
    violations += int(jnp.sum(through.comparison.violations))
    found = {
        "violations": violations,
        "T0 sites": sorted(first),
        "operator norms, once a model, s": norms,
        "T0 s": seconds(lambda: as_a_check(t0), shape.rounds, clock),
        "T1 s": seconds(lambda: as_a_check(t1), shape.rounds, clock),
        "T0 and T1 s": seconds(lambda: as_a_check(both), shape.rounds, clock),
        "exact pass s": seconds(reference, shape.rounds, clock),
    }
    if on_gpu:
        in_turn = {"T0": lambda: as_a_check(t0), "T1": lambda: as_a_check(t1)}
        for tier, run in (*in_turn.items(), ("exact", reference)):
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
    parser.add_argument("--cpu", action="store_true", help="the part for CPUs alone")
    parser.add_argument(
        "--kept-forward",
        action="store_true",
        help="mamba_ssm's time as the run before found it",
    )
    parser.add_argument("--forward", action="store_true", help="mamba_ssm's part alone")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds")
    arguments = parser.parse_args(given)
    shape = SMALL if arguments.small else ON_CPU if arguments.cpu else Shape()
    if arguments.forward:
        print(json.dumps(forward(shape)))
        return
    STUDY.begin(arguments.out)
    working = STUDY.working(arguments.out)
    began = time.perf_counter()
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    # what this one leaves out
    result = {k: x for k, x in before.items() if (k == "on a CPU") != arguments.cpu}
    kept = before["mamba_ssm"] if arguments.kept_forward else None
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

    if arguments.cpu:
        jax.config.update("jax_enable_x64", True)
        result["on a CPU"] = {"shape": shape._asdict()}
        part("on a CPU: environment", environment)
        for precision in ("fp32", "bf16"):
            part(f"on a CPU: {precision}", lambda p=precision: bounds(shape, p, False))
        promote(working, arguments.out, failed)
        return
    result |= {"shape": shape._asdict(), "environment": {}}
    # before JAX holds any of the card's memory
    part("mamba_ssm", forward_apart if kept is None else lambda: kept)
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
