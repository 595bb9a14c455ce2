"""Mamba-2 on SGLang's own operators: bounds and estimates beside what is measured.

`python -m analysis.sglang_kernels` needs an NVIDIA GPU with Triton, and SGLang 0.5.23
or its kernel files (LYAPUNOV_SGLANG_FILES). It is `analysis.vllm_kernels` of another
stack: the trained Mamba-2 runs whole, by steps, handed over, behind other texts in one
stream, whose chunks it shares, and what the operators are handed is broken on purpose.
It writes sglang_kernels.json and .md. `--smoke` runs a tiny network on a CPU, in
Triton's interpreter (`TRITON_INTERPRET=1`).
"""

from pathlib import Path

from studies.study import Study

from ._sglang_cases import cases, smoke
from .vllm_kernels import Asked, conduct


STUDY = Study(
    "analysis.sglang_kernels",
    "15 minutes beside an H200 with 16 cores; it goes on where it ended",
    Path(__file__).parent / "results" / "sglang_kernels.json",
    ("torch", "triton"),
    gpu=True,
    more="SGLang 0.5.23, or the files of its kernels",
)
ASKED = Asked("Mamba-2 on SGLang's operators", cases, smoke)


def main(given: list[str] | None = None) -> None:
    """Run what is missing, or one case of it."""
    conduct(STUDY, __doc__, ASKED, given)


if __name__ == "__main__":
    main()
