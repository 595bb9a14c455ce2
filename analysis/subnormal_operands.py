"""How tensor cores add products of subnormal numbers of fp16.

`python -m analysis.subnormal_operands` needs an NVIDIA GPU. One operand has magnitudes
from 2^-14 to 1, the other is at most so many multiples of 2^-24, which are subnormal
below 2^-14. Products are summed by Triton's `dot` and by cuBLAS, and held to exact
sums. Errors are counted in units of 2^-23 of the sum of |a| |b|, and of the same sum
with no operand below 2^-14. It writes subnormal_operands.json, with one product whole.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from studies.files import as_json, write
from studies.study import Study, promote


STUDY = Study(
    "analysis.subnormal_operands",
    "20 seconds on an H200",
    Path(__file__).parent / "results" / "subnormal_operands.json",
    ("torch", "triton"),
    gpu=True,
)
NORMAL, SPACING, UNIT = 2.0**-14, 2.0**-24, 2.0**-23
ROWS = 64
TERMS = (16, 64)
LARGEST = (1, 2, 4, 8, 64, 1024, 4096)
"""Of the second operand, in spacings; 1024 and more are normal numbers."""


def operands(terms: int, largest: int, rng: np.random.Generator):
    """Both operands, exact in fp16."""
    sizes = np.exp2(-14.0 * rng.random((ROWS, terms)))
    signs = rng.choice([-1.0, 1.0], (ROWS, terms))
    other = rng.integers(-largest, largest + 1, (terms, ROWS)) * SPACING
    return (sizes * signs).astype(np.float16), other.astype(np.float16)


def in_units(found, a, b) -> dict[str, float]:
    """The largest error, relative to both sums."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    error = np.abs(found.astype(np.float64) - a @ b)
    own = np.abs(a) @ np.abs(b)
    normal = np.maximum(np.abs(a), NORMAL) @ np.maximum(np.abs(b), NORMAL)
    share = lambda total: float(np.max(error / np.maximum(total, 1e-300)) / UNIT)
    return {"of_products": share(own), "of_normal_products": share(normal)}


def by_triton(a, b):
    """The product by `tl.dot`, in one tile."""
    import torch

    from .kernels.triton_products import product

    found = torch.empty(ROWS, ROWS, device="cuda")
    product(a, b, found, "ieee")
    return found


def by_cublas(a, b):
    """The product by `torch.mm`, which calls it, in fp32."""
    import torch

    return torch.mm(a, b, out_dtype=torch.float32)


def main(given: list[str] | None = None) -> None:
    """Measure everything."""
    asked = STUDY.parser(__doc__).parse_args(given)
    STUDY.begin(asked.out)
    import torch
    import triton

    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    example: dict[str, Any] = {}
    for terms in TERMS:
        for largest in LARGEST:
            a, b = operands(terms, largest, rng)
            on_gpu = [torch.from_numpy(x).cuda() for x in (a, b)]
            for kernel in (by_triton, by_cublas):
                found = kernel(*on_gpu).cpu().numpy()
                row = {"kernel": kernel.__name__, "terms": terms, "largest": largest}
                rows.append(row | in_units(found, a, b))
                print(json.dumps(rows[-1]), flush=True)
                if not example:
                    arrays = {"a": a[:2], "b": b, "found": found[:2]}
                    example = {k: x.astype(float).tolist() for k, x in arrays.items()}
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    where = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} | versions
    result = {"environment": where, "rows": rows, "example": example}
    write(STUDY.working(asked.out), as_json(result))
    promote(STUDY.working(asked.out), asked.out, [])


if __name__ == "__main__":
    main()
