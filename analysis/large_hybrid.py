"""An 8B hybrid of random weights, checked layer by layer in little memory.

`python -m analysis.large_hybrid FOLDER [--tokens 64] [--keep]` writes a checkpoint of
Nemotron-H's layout into FOLDER (17 GB: 24 Mamba-2 mixers, 4 attentions and 28 MLPs of
width 4096, 256,000 tokens, bf16), runs `lyapunov-check` on it in a process of its own,
and writes large_hybrid.json: verdict, time, peak memory, and what was
found by kind of sublayer. With --keep the checkpoint stays, and is found again.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from studies.files import write as write_text
from studies.study import Study


STUDY = Study(
    "analysis.large_hybrid",
    "24 minutes on 2 busy cores",
    Path(__file__).parent / "results" / "large_hybrid.json",
    ("safetensors", "ml_dtypes"),
    more="17 GB of disk and 16 GiB of memory",
)
D_MODEL, D_INNER, D_STATE, HEADS, GROUPS = 4096, 8192, 128, 128, 8
D_HIDDEN, VOCABULARY = 16384, 256_000
# of 56: 24 M (Mamba-2), 4 * (attention), 28 - (MLP)
PATTERN = "M-M-M-M--M-M*-" * 4
LIMIT_GIB = 16
CONFIG = {
    "model_type": "nemotron_h",
    "architectures": ["NemotronHForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": D_HIDDEN,
    "hybrid_override_pattern": PATTERN,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "ssm_state_size": D_STATE,
    "mamba_num_heads": HEADS,
    "mamba_head_dim": D_INNER // HEADS,
    "n_groups": GROUPS,
    "chunk_size": 128,
    "torch_dtype": "bfloat16",
}


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Stored names below `layers.I.` and shapes of one sublayer."""
    conv = D_INNER + 2 * GROUPS * D_STATE
    if kind == "M":
        mixer = {
            "in_proj.weight": (D_INNER + conv + HEADS, D_MODEL),
            "conv1d.weight": (conv, 1, 4),
            "conv1d.bias": (conv,),
            "dt_bias": (HEADS,),
            "A_log": (HEADS,),
            "D": (HEADS,),
            "norm.weight": (D_INNER,),
            "out_proj.weight": (D_MODEL, D_INNER),
        }
    elif kind == "*":
        mixer = {
            "q_proj.weight": (4096, D_MODEL),
            "k_proj.weight": (1024, D_MODEL),
            "v_proj.weight": (1024, D_MODEL),
            "o_proj.weight": (D_MODEL, 4096),
        }
    else:
        mixer = {
            "up_proj.weight": (D_HIDDEN, D_MODEL),
            "down_proj.weight": (D_MODEL, D_HIDDEN),
        }
    return {"norm.weight": (D_MODEL,)} | {f"mixer.{k}": v for k, v in mixer.items()}


def drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A parameter as training begins with it, in bf16."""
    import ml_dtypes

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


def write(folder: Path) -> None:
    """The checkpoint, a file a layer; nothing is held but one layer."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    groups: list[dict[str, tuple[int, ...]]] = [
        {f"backbone.layers.{i}.{k}": v for k, v in shapes(kind).items()}
        for i, kind in enumerate(PATTERN)
    ]
    groups.append({"backbone.embeddings.weight": (VOCABULARY, D_MODEL)})
    groups.append(
        {"lm_head.weight": (VOCABULARY, D_MODEL), "backbone.norm_f.weight": (D_MODEL,)}
    )
    files = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file({k: drawn(k, v, rng) for k, v in group.items()}, folder / name)
        files |= dict.fromkeys(group, name)
        print(f"\rwriting {i + 1} of {len(groups)} files", end="", file=sys.stderr)
    print(file=sys.stderr)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG))


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


def main(given: list[str] | None = None) -> None:
    """Write the checkpoint, check it, write what was found."""
    parser = STUDY.parser(__doc__)
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint")
    options = parser.parse_args(given)
    STUDY.begin(options.out)
    if not (options.folder / "config.json").exists():
        write(options.folder)
    out = options.folder / "report.json"
    command = [
        str(Path(sys.executable).with_name("lyapunov-check")),
        str(options.folder),
        *("--length", str(options.tokens), "--tokens", "random"),
        *("--precision", "bf16", "-o", str(out)),
    ]
    began = time.perf_counter()
    done = subprocess.run(command, check=False, env={**os.environ, "COLUMNS": "100"})
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    report = json.loads(out.read_text())
    result = {
        "command": f"python -m analysis.large_hybrid FOLDER --tokens {options.tokens}",
        "environment": report["environment"],
        "n_params": report["checkpoint"]["n_params"],
        "pattern": PATTERN,
        "tokens": options.tokens,
        "exit_code": done.returncode,
        "verdict": report["summary"]["verdict"],
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "limit_gib": LIMIT_GIB,
        "within_limit": peak <= LIMIT_GIB,
        "exponents": {k: report["exponents"][k] for k in ("max", "min", "n_tokens")},
        "precisions": summary(report),
    }
    write_text(options.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
