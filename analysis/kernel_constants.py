"""The constants behind the executions, measured on a GPU over all 2^32 floats.

`python -m analysis.kernel_constants [--budget S]` needs an NVIDIA GPU with nvcc, torch,
Triton and mamba_ssm. It writes kernel_constants.json and .md after every function: the
largest error over the bound that the executions declare, in ulp, the constant that
would have held, the worst argument; then what sums inside matrix products lose, and a
picture. `--apply` reads the committed file and writes
lyapunov/implementations/measured.json (`lyapunov.implementations.read_measured`).

All finite fp32 arguments are tried where the bound says anything; NaN and infinities
are not. Sums are sampled, not exhaustive: they are reported and never applied.
"""

import ctypes
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lyapunov.arithmetic.rules.scans import EXP_MINUS_88
from lyapunov.implementations import write_measured
from studies.files import write as write_text
from studies.study import Study, promote

from . import pictures
from ._kernel_functions import FIELDS, FUNCTIONS, Function, figures
from ._kernel_products import DEPTHS, products


HERE = Path(__file__).parent
STUDY = Study(
    "analysis.kernel_constants",
    "80 seconds on an H200",
    HERE / "results" / "kernel_constants.json",
    ("mamba_ssm", "triton", "matplotlib"),
    gpu=True,
    more="nvcc",
)
SOURCE = HERE / "kernels" / "functions.cu"
FLAGS = (
    *("-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda"),
    "--use_fast_math",
)
BINADE = 2**23
ALL = 2**32


# ---- functions


def compiler() -> str:
    """Path of nvcc, on PATH or where CUDA is installed by default."""
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def build(folder: Path, capability: tuple[int, int]) -> ctypes.CDLL:
    """Compile the CUDA functions for this GPU."""
    library = folder / "functions.so"
    architecture = f"{capability[0]}{capability[1]}"
    subprocess.run(
        [
            *(compiler(), *FLAGS),
            f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
            *("-shared", "-Xcompiler", "-fPIC", "-o", str(library), str(SOURCE)),
        ],
        check=True,
    )
    loaded = ctypes.CDLL(str(library))
    loaded.run_function.argtypes = (
        *(ctypes.c_int, ctypes.c_uint32, ctypes.c_uint32),
        ctypes.c_void_p,
    )
    return loaded


def computer(function: Function, library):
    """A map from (first, x) to what the function makes of the fp32 numbers x."""
    import torch

    if function.program == "cuda":
        if library is None:
            raise RuntimeError("nvcc did not compile the functions")

        def by_cuda(first, x):
            out = torch.empty_like(x)
            torch.cuda.synchronize()
            code = library.run_function(
                function.which, first, x.numel(), out.data_ptr()
            )
            if code:
                raise RuntimeError(f"CUDA error {code} in {function.name}")
            return out

        return by_cuda
    if function.program == "triton":
        from .kernels.triton_functions import apply

        def by_triton(first, x):
            del first
            out = torch.empty_like(x)
            apply(function.which, x, out)
            return out

        return by_triton
    functional = {"softplus", "silu"}
    place = torch.nn.functional if function.which in functional else torch
    call = getattr(place, str(function.which))
    return lambda first, x: call(x)


def floats(first: int, count: int, device: str):
    """The fp32 numbers whose bits are first, first + 1, ..."""
    import torch

    bits = torch.arange(first, first + count, dtype=torch.int64, device=device)
    return bits.to(torch.int32).view(torch.float32)


def measure(function: Function, compute, chunks, device: str, count: int) -> dict:
    """The largest of each figure over the chunks, and where.

    **Arguments:**

    - `chunks`: the first bits of each chunk of `count` numbers.

    `broken_claims` counts what `decay` rules out besides: an exponential above 1 of an
    argument up to 0, or not flushed below -88.
    """
    import torch

    started = time.time()
    largest: dict[str, tuple[float, int]] = {}
    binades: dict[int, float] = {}
    violations = tried = broken = 0
    for first in chunks:
        x = floats(first, count, device)
        computed = compute(first, x)
        found = figures(function, x, computed)
        for name, values in found.items():
            values = torch.nan_to_num(values, nan=math.inf, posinf=math.inf)
            most, at = (v.item() for v in values.max(dim=0))
            if name not in largest or most > largest[name][0]:
                largest[name] = (most, first + int(at))
            if name == "ratio":
                violations += int((values > 1.0).sum())
                tried += int((values > 0.0).sum())
        if function.reference == "exp":
            wrong = (x <= 0) & (computed > 1.0)
            wrong = wrong | ((x < -88) & (computed > EXP_MINUS_88))
            broken += int(wrong.sum())
        width = min(BINADE, count)
        for i, ulp in enumerate(found["ulp"].view(-1, width).amax(dim=1).tolist()):
            binade = (first + i * width) // BINADE
            binades[binade] = max(binades.get(binade, 0.0), ulp)
    return {
        "program": function.program,
        "reference": function.reference,
        "sets": list(function.sets),
        "largest_argument": _number(function.largest),
        "documented": function.numbers(),
        "arguments_off": tried,
        "violations": violations,
        "broken_claims": broken,
        "figures": {
            name: {"largest": _number(most), "bits": bits, "at": _number(_float(bits))}
            for name, (most, bits) in largest.items()
        },
        "ulp_by_binade": {str(k): round(v, 3) for k, v in binades.items() if v},
        "seconds": round(time.time() - started, 2),
    }


def _float(bits: int) -> float:
    import numpy as np

    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _number(x: float):
    """JSON has no infinity."""
    return x if math.isfinite(x) else str(x)


# ---- files


def environment() -> dict:
    """GPU, driver and versions."""
    import mamba_ssm
    import torch
    import triton

    query = "--query-gpu=name,driver_version"
    asked = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[0]
    try:
        said = subprocess.run([compiler(), "--version"], capture_output=True, text=True)
        nvcc = said.stdout.strip().splitlines()[-1]
    except (OSError, IndexError):
        nvcc = "none"
    return {
        "gpu": asked.rsplit(",", 1)[0].strip(),
        "driver": asked.rsplit(",", 1)[1].strip(),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "nvcc": nvcc,
        "nvcc_flags": " ".join(FLAGS),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "mamba_ssm": mamba_ssm.__version__,
        "command": " ".join(["python -m analysis.kernel_constants", *sys.argv[1:]]),
    }


def write(document: dict, out: Path) -> None:
    """The document, and a table beside it."""
    write_text(out, json.dumps(document, indent=1) + "\n")
    write_text(out.with_suffix(".md"), table(document))


def failures(document: dict) -> list[str]:
    """What was not measured, and why."""
    rows = [(name, row) for name, row in document["functions"].items()]
    rows += [
        (f"{row['program']}, {row['format']}, {row['terms']}", row)
        for row in document["products"]
    ]
    return [f"{name}: {row['error']}" for name, row in rows if "error" in row]


def _shown(x) -> str:
    return f"{x:.4g}" if isinstance(x, (int, float)) else str(x)


def table(document: dict) -> str:
    """The document for people."""
    about = document["environment"]
    lines = [
        "# Constants of the kernels' arithmetic, measured",
        "",
        f"{about['gpu']}, driver {about['driver']}, CUDA {about['cuda']}, torch "
        f"{about['torch']}, Triton {about['triton']}, mamba_ssm {about['mamba_ssm']}. "
        f"`{about['command']}`.",
        "",
        "All finite fp32 arguments. error / bound: at most 1 where the constants hold; "
        "scale: all constants of the function times this would still hold.",
        "",
        "| function | sets | violations | error / bound | scale | ulp | worst at |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in document["functions"].items():
        if "error" in row:
            lines.append(f"| {name} | | not run: {row['error']} | | | | |")
            continue
        of = row["figures"]
        cells = [_shown(of[k]["largest"]) for k in ("ratio", "scale", "ulp")]
        sets = ", ".join(row["sets"]) or "reported only"
        lines.append(
            f"| {name} | {sets} | {row['violations']} | {' | '.join(cells)} "
            f"| {_shown(of['ratio']['at'])} |"
        )
    lines += [
        "",
        "Sums inside matrix products (sampled): the accumulator_unit that would have "
        "held, over the declared one.",
        "",
        "| program | format | terms | depth | needed / declared |",
        "|---|---|---|---|---|",
    ]
    for row in document["products"]:
        last = row.get("error") or _shown(row["ratio"])
        lines.append(
            f"| {row['program']} | {row['format']} | {row['terms']} "
            f"| {row.get('depth', '')} | {last} |"
        )
    return "\n".join(lines) + "\n"


def run(out: Path, budget: float) -> dict:
    """Everything, on the GPU; what no time is left for is named in the file."""
    import torch

    started = time.time()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    document = {"environment": environment(), "functions": {}, "products": []}
    count = 2**26
    with tempfile.TemporaryDirectory() as scratch:
        try:
            library = build(Path(scratch), torch.cuda.get_device_capability())
        except (OSError, subprocess.CalledProcessError) as error:
            # Triton's and torch's functions are still worth having
            library = None
            print(f"nvcc: {error}", flush=True)
        for function in FUNCTIONS:
            row: dict = {"error": "no time left"}
            if time.time() - started < 0.8 * budget:
                try:
                    compute = computer(function, library)
                    row = measure(
                        function, compute, range(0, ALL, count), "cuda", count
                    )
                except Exception as error:  # the others are still worth having
                    row = {"error": f"{type(error).__name__}: {error}"[:300]}
            document["functions"][function.name] = row
            write(document, out)
            short = {k: v["largest"] for k, v in row.get("figures", {}).items()}
            print(
                function.name, row.get("error", short), row.get("seconds"), flush=True
            )
    cases = [("cublas", n) for n in ("bf16", "fp16", "fp32", "tf32")]
    cases += [("triton", n) for n in ("bf16", "fp16", "fp32", "tf32")]
    for program, name in cases:
        for terms in DEPTHS:
            about = {"program": program, "format": name, "terms": terms}
            try:
                if time.time() - started > budget:
                    raise TimeoutError("no time left")
                row = products(name, program, terms, "cuda")
            except Exception as error:
                row = about | {"error": f"{type(error).__name__}: {error}"[:300]}
            document["products"].append(row)
            print(program, name, terms, row.get("error", row.get("ratio")), flush=True)
        write(document, out)
    document["seconds"] = round(time.time() - started, 1)
    write(document, out)
    pictures.kernel_constants(document, out.with_suffix(".png"))
    return document


def main(given: list[str] | None = None) -> None:
    """Measure, or apply what was measured."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("--budget", type=float, default=200.0, help="seconds")
    parser.add_argument(
        "--apply",
        action="store_true",
        help="measure nothing; write the committed result into the library",
    )
    options = parser.parse_args(given)
    if options.apply:
        assert STUDY.committed is not None
        write_measured(json.loads(STUDY.committed.read_text()), FIELDS)
        return
    STUDY.begin(options.out)
    working = STUDY.working(options.out)
    document = run(working, options.budget)
    promote(working, options.out, failures(document))


if __name__ == "__main__":
    main()
