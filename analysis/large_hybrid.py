"""Large hybrids of random weights, checked a layer at a time: time and peak memory.

`python -m analysis.large_hybrid FOLDER [CASE ...] [--device gpu] [--tokens 64]` writes
each case's checkpoint into FOLDER and runs `lyapunov-check` on it as users do, in a
process of its own. A case is MODEL:SUBLAYERS, at the published widths of Nemotron-H-8B
or of Granite-4-H's mixtures of experts; of two depths memory should be one. With
`:sparse` behind it matrices are holes in the files: a model that no disk holds is read
from end to end. It writes large_hybrid.json: seconds, those of compiling and of waiting
for weights, peak memory of the host and of the device, and what was found by kind of
sublayer. Cases of other runs stay in the result.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from studies.files import write as write_text
from studies.study import Study, promote

from ._large_models import WHOLE, write
from .first_answer import environment, run


STUDY = Study(
    "analysis.large_hybrid",
    "15 minutes on 2 quiet cores, 4 on an H200",
    Path(__file__).parent / "results" / "large_hybrid.json",
    more="17 GB of disk and 16 GiB of memory for a whole Nemotron-H-8B",
)
CASES = {
    "cpu": ["nemotron-h-8b:8", "nemotron-h-8b:12", "granite-4-h-tiny:8"],
    "gpu": [
        *("nemotron-h-8b:8", "granite-4-h-small:8"),
        *("nemotron-h-8b:26", "nemotron-h-8b:52"),
    ],
}
"""Without any named; the whole last."""


class Case(NamedTuple):
    """A checkpoint, and how deep."""

    model: str
    sublayers: int
    sparse: bool

    @classmethod
    def named(cls, text: str) -> "Case":
        """**Raises:** `ArgumentTypeError` for what names none."""
        model, _, rest = text.partition(":")
        depth, _, form = rest.partition(":")
        if model not in WHOLE or not depth.isdecimal() or form not in ("", "sparse"):
            raise argparse.ArgumentTypeError(
                f"no case {text}: MODEL:SUBLAYERS[:sparse] with {', '.join(WHOLE)}"
            )
        if not 0 < int(depth) <= WHOLE[model]:
            raise argparse.ArgumentTypeError(f"{model} has {WHOLE[model]} sublayers")
        return cls(model, int(depth), form == "sparse")

    def __str__(self) -> str:
        return f"{self.model}:{self.sublayers}{':sparse' * self.sparse}"


COUNTS = {"sublayers": 0, "violations": 0, "unbounded": 0}


def summary(report: dict) -> dict:
    """What the report says, by kind of sublayer."""
    found = {}
    for precision in report["precisions"]:
        kinds: dict[str, dict] = {}
        for row in precision["layers"]:
            kind = kinds.setdefault(row["kind"], dict(COUNTS))
            kind["sublayers"] += 1
            kind["unbounded"] += row.get("elements_unbounded", 0)
            kind["violations"] += row["violations"]
            kind.setdefault("t1_ratio", []).append(row["bound_t1_ratio"])
        for kind in kinds.values():
            ratios = [r for r in kind.pop("t1_ratio") if r is not None]
            kind["t1_ratio"] = [min(ratios), max(ratios)] if ratios else None
        found[precision["precision"]] = {
            "kinds": kinds,
            "rel_l2": precision["output"]["measured_rel_l2"],
            "sigma_t3": precision["output"]["sigma_t3"],
            "calibration_z": precision["output"]["calibration_z"],
        }
    return found


def measured(case: Case, asked: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """One case: written, checked and taken away again."""
    folder = asked.folder / str(case).replace(":", "-")
    began = time.perf_counter()
    if not folder.exists():
        write(folder, case.model, case.sublayers, sparse=case.sparse)
    wrote = time.perf_counter() - began
    out = cache / "report.json"
    arguments = [
        *(str(folder), "--length", str(asked.tokens), "--tokens", "random"),
        *("--precision", "bf16", "-o", str(out)),
    ]
    entry: dict[str, Any] = {"case": str(case), "device": asked.device}
    entry |= {"tokens": asked.tokens, "write_seconds": wrote}
    entry |= run(arguments, cache, asked.device, asked.limit)
    if not asked.keep:
        shutil.rmtree(folder)
    if "failed" not in entry:
        report = json.loads(out.read_text())
        entry |= {
            "n_params": report["checkpoint"]["n_params"],
            "verdict": report["summary"]["verdict"],
            "exponents": {k: report["exponents"][k] for k in ("max", "min")},
            "precisions": summary(report),
        }
    return entry


def key(entry: dict[str, Any]) -> tuple[str, ...]:
    """What one figure stands for."""
    return tuple(str(entry[name]) for name in ("case", "device", "tokens"))


def main(given: list[str] | None = None) -> None:
    """Measure the cases that were asked for and write them beside those known."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("folder", type=Path, help="of the checkpoints")
    parser.add_argument("cases", nargs="*", type=Case.named, metavar="CASE")
    parser.add_argument("--device", choices=tuple(CASES), default="cpu")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds a case")
    parser.add_argument("--within", type=float, default=7200.0, help="seconds in all")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints")
    asked = parser.parse_args(given)
    STUDY.begin(asked.out)
    asked.folder.mkdir(parents=True, exist_ok=True)
    working, known = STUDY.working(asked.out), STUDY.committed
    result: dict[str, Any] = {"environments": {}, "cases": []}
    if known is not None and known.exists():
        result = json.loads(known.read_text())
    place = f"{asked.device}, {time.strftime('%Y-%m-%dT%H:%M', time.gmtime())}"
    result["environments"][place] = environment(asked.device)
    ended, failed = time.monotonic() + asked.within, []
    with tempfile.TemporaryDirectory() as cache:
        for case in asked.cases or map(Case.named, CASES[asked.device]):
            left = ended - time.monotonic()
            if left < 0:
                failed.append(f"{case}: no time left")
                continue
            asked.limit = min(asked.limit, left)
            entry = measured(case, asked, Path(cache)) | {"environment": place}
            if "failed" in entry:
                failed.append(f"{case}: {entry['failed']}")
            others = [one for one in result["cases"] if key(one) != key(entry)]
            result["cases"] = [*others, entry]
            used = {one["environment"] for one in result["cases"]}
            kept = {k: v for k, v in result["environments"].items() if k in used}
            result |= {"environments": kept}
            write_text(working, json.dumps(result, indent=1) + "\n")
            told = {k: v for k, v in entry.items() if isinstance(v, float | int | str)}
            print(json.dumps(told), file=sys.stderr, flush=True)
    promote(working, asked.out, failed)


if __name__ == "__main__":
    main()
