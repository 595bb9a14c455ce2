"""A realistic report, made by hand: 24 layers, two precisions, nothing computed."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from lyapunov.findings._rules import advice, bounded_share, find, verdict
from lyapunov.results._check import (
    CheckpointFacts,
    Decisions,
    Exponents,
    HeadExponents,
    LayerChange,
    LayerDivergence,
    LayerExponents,
    MemoryTokens,
    OutputDivergence,
    ParameterChangeReport,
    PrecisionReport,
    ReferenceLoss,
    Report,
    Summary,
    TextDivergence,
    TokensFacts,
)


N_QUANTILES = 21
N_BINS = 24
N_POSITIONS = 64


def layer_exponents(layer: int, **changes) -> LayerExponents:
    rng = random.Random(layer)
    slow, fast = -(10 ** rng.uniform(-3.5, -1.5)), -rng.uniform(6, 22)
    quantiles = [
        -math.exp(math.log(-fast) + (math.log(-slow) - math.log(-fast)) * i / 20)
        for i in range(N_QUANTILES)
    ]
    weights = [
        0.2 + math.exp(-((i - 4) ** 2) / 20) + 1.8 * math.exp(-((i - 22) ** 2) / 6)
        for i in range(N_BINS)
    ]
    share = [w * rng.uniform(0.8, 1.2) for w in weights]
    row = LayerExponents(
        layer=layer,
        kind="mamba1",
        max=slow,
        min=fast,
        stderr=-slow / 40,
        stderr_method="blocks",
        memory_tokens=MemoryTokens(1.7, 45.0, -1 / slow, -1 / slow > 512),
        decay_min=3e-12,
        decay_max=1 + slow / 10,
        max_abs_state=10 ** rng.uniform(0, 2),
        max_abs_output=10 ** rng.uniform(0.5, 2),
        quantiles=quantiles,
        decay_histogram={
            "edges": [i / N_BINS for i in range(N_BINS + 1)],
            "share": [s / sum(share) for s in share],
        },
        decay_is_one={"fp32": 0.0, "bf16": 0.31, "fp16": 0.02},
        decay_is_zero={"fp32": 0.01, "bf16": 0.01, "fp16": 0.02},
        dt_min=1.2e-4,
        dt_max=9.1,
        dt_mean=0.31,
        finite_time={"token": [128, 256, 384, 512], "max": [slow] * 4},
        module=f"backbone.layers.{layer}.mixer",
    )
    return replace(row, **changes)


def delta_exponents(layer: int, **changes) -> LayerExponents:
    """Of a delta rule of two heads."""
    heads = HeadExponents(
        key_dim=4,
        max=[-0.02, -0.3],
        lower=[-0.4, -0.6],
        upper=[-0.01, -0.2],
        sum=[-1.6, -2.4],
        memory_tokens=[50.0, 1 / 0.3],
        unresolved=[0, 0],
        unwritten=[0, 2],
        rate_max=1.9,
        least_left=3e-6,
    )
    own = {"kind": "gated_delta", "max": -0.02, "heads": heads, **changes}
    return layer_exponents(layer, **own)


def layer_divergence(layer: int, precision: str, **changes) -> LayerDivergence:
    rng = random.Random(f"{layer}{precision}")
    unit = 2**-8 if precision == "bf16" else 2**-11
    reference = 40.0 * 1.12**layer
    local = reference * unit * rng.uniform(0.4, 0.9)
    ratio = rng.uniform(20, 110)
    by_position = [
        local / 8 * (1 + 0.3 * math.sin(i / 5)) * rng.uniform(0.7, 1.3)
        for i in range(N_POSITIONS)
    ]
    row = LayerDivergence(
        layer=layer,
        kind="mamba1",
        local_l2=local,
        local_max=local / 40,
        accumulated_l2=local * (1 + 0.4 * layer),
        accumulated_max=local * (1 + 0.4 * layer) / 40,
        bound_t0_ratio=rng.uniform(1.4, 9),
        bound_t1_l2=local * ratio,
        bound_t1_ratio=ratio,
        floor_t1_ratio=rng.uniform(5, 15),
        violations=0,
        elements_total=393216,
        reference_l2=reference,
        weights_l2=local * 0.6,
        bound_t0={"xz": 2.1, "conv": 1.4, "x_proj": 5.5, "gated": 3.0, "out": 9.0},
        local_by_position=by_position,
        bound_by_position=[v * ratio for v in by_position],
        accumulated_by_position=[v * (1 + 0.4 * layer) for v in by_position],
        max_abs_stored={"xz": 31.0, "conv": 18.5, "gated": 210.0, "out": 96.0},
        stagnation=0.002,
        radius_l2=0.02,
        binding_site=rng.choice(["gated", "x_proj", "conv"]),
        binding_share=rng.uniform(0.2, 0.9),
        sigma_share=rng.uniform(0.2, 1.8) / 24,
        certified_l2=local * ratio * 40**layer if layer < 3 else None,
        module=f"backbone.layers.{layer}.mixer",
    )
    return replace(row, **changes)


def output_divergence(precision: str, **changes) -> OutputDivergence:
    rng = random.Random(precision)
    kl = 2.1e-4 if precision == "bf16" else 3.3e-6
    row = OutputDivergence(
        measured_rel_l2=2.9e-2 if precision == "bf16" else 3.6e-3,
        measured_max=0.41 if precision == "bf16" else 0.05,
        argmax_flips=7 if precision == "bf16" else 0,
        argmax_ties=1 if precision == "bf16" else 0,
        argmax_total=512,
        kl_mean=kl,
        kl_max=kl * 60,
        kl_by_position=[kl * rng.lognormvariate(0, 0.8) for _ in range(N_POSITIONS)],
        margin_quantiles={"0": 0.001, "0.01": 0.02, "0.05": 0.1, "0.25": 0.6, "0.5": 2},
        estimate_t2=1.1,
        estimate_t2_stderr=0.2,
        sigma_t3=3.1e-2 if precision == "bf16" else None,
        sigma_t3_stderr=4e-3 if precision == "bf16" else None,
        sigma_withheld=None if precision == "bf16" else "z 1.9: biased rounding",
        calibration_z=0.97 if precision == "bf16" else 1.9,
        n_readouts=512,
        n_probes=4,
        certified_until_layer=3 if precision == "fp16" else 0,
        stopped_by="layer 3, exp(dt A)" if precision == "fp16" else "layer 0, gated",
        weights_rel_l2=1.1e-2,
        sigma_by_site={"gated": 0.5, "xz": 0.25, "conv": 0.2, "logits": 0.05},
        nonlinearity=0.03,
        decisions=Decisions(512, 104, 0, 431, 0, 1),
    )
    return replace(row, **changes)


def reference_loss(**changes) -> ReferenceLoss:
    row = ReferenceLoss(
        loss_bits_per_token=4.61,
        stderr=0.21,
        stderr_method="standard deviation of 23 sequence means / sqrt(23)",
        bits_per_byte=1.04,
        uniform_bits=math.log2(50277),
        unigram_bits=10.2,
        unigram_stderr=0.3,
        predicted=511,
        judged=True,
    )
    return replace(row, **changes)


def texts(n: int) -> list[TextDivergence]:
    return [
        TextDivergence(2e-2 * (1 + i / 4), 1e-4 * (1 + i), 1e-2, 3 * i, i % 2)
        for i in range(n)
    ]


def parameter_change(name: str = "bf16:A_log", n_layers: int = 24):
    layers = [
        LayerChange(
            layer=i,
            kind="mamba1",
            weights={"A_log": 1.7e-3},
            local_l2=0.02 * (i + 1),
            local_max=0.001,
            bound_l2=0.11 * (i + 1),
            bound_ratio=5.5,
            floor_ratio=2.1,
            violations=0,
            elements_total=393216,
            accumulated_l2=0.05 * (i + 1),
            reference_l2=40.0,
        )
        for i in range(n_layers)
    ]
    output = output_divergence(
        "bf16",
        argmax_flips=1,
        sigma_t3=None,
        estimate_t2=None,
        decisions=None,
    )
    return ParameterChangeReport(
        name,
        "rounding",
        layers,
        output,
        2.8e-2,
        0.02,
        {},
        weight_format="each number by itself",
        rounded=["mamba1.A_log"],
        kept=["embedding", "mamba1.in_proj"],
    )


def precision_report(precision: str, n_layers: int = 24, **changes) -> PrecisionReport:
    row = PrecisionReport(
        precision=precision,
        state_precision="fp32",
        execution=f"mamba_ssm prefill, {precision} weights, A_log and D in fp32",
        mode="prefill",
        measured_by="emulated",
        layers=[layer_divergence(i, precision) for i in range(n_layers)],
        output=output_divergence(precision),
    )
    return replace(row, **changes)


def example_exponents(layers: list[LayerExponents]) -> Exponents:
    known = [row for row in layers if row.max is not None]
    worst = max(known, key=lambda row: row.max or 0.0) if known else None
    return Exponents(
        max=worst.max if worst else None,
        min=min((row.min for row in known if row.min is not None), default=None),
        n_minus_inf=sum(row.n_minus_inf for row in layers),
        max_layer=worst.layer if worst else None,
        stderr=worst.stderr if worst else None,
        stderr_method="blocks" if worst else None,
        n_tokens=512,
        layers=layers,
    )


def example_report(
    n_layers: int = 24,
    precisions: tuple[str, ...] = ("bf16", "fp16"),
    *,
    layers: list[LayerExponents] | None = None,
    executions: list[PrecisionReport] | None = None,
    changes: Sequence[ParameterChangeReport] = (),
    skipped: int = 0,
    source: str = "state-spaces/mamba-130m-hf",
) -> Report:
    """Findings, verdict and recommendation come from `lyapunov.findings`."""
    if layers is None:
        layers = [layer_exponents(i) for i in range(n_layers)]
    if executions is None:
        executions = [precision_report(p, n_layers) for p in precisions]
    exponents = example_exponents(layers)
    changes = list(changes)
    findings = find(exponents, executions, changes=changes)
    bounded = bounded_share(executions, changes)
    word, code = verdict(
        findings, checked=len(layers) - skipped, skipped=skipped, bounded=bounded
    )
    return Report(
        tool={"name": "lyapunov-check", "version": "0.1.0"},
        settings={
            "precisions": list(precisions),
            "state_precision": "fp32",
            "mode": "prefill",
            "measure": "emulated",
            "layers": None,
            "length": 512,
            "batch": 1,
            "seed": 0,
        },
        environment={
            "python": "3.11.7",
            "jax": "0.10.2",
            "jaxlib": "0.10.2",
            "numpy": "2.3.1",
            "device": "cpu",
            "date": "2026-11-29T12:00:00+00:00",
            "command": None,
        },
        assumptions=[
            "Rounding is to nearest, ties to even, at the named stores.",
            "The scan's depth is at most 512 and its elements are combined in fp32.",
            "exp and softplus are within 2 units in the last place of fp32.",
            "Matrix products accumulate in fp32, in any order.",
        ],
        checkpoint=CheckpointFacts(
            source=source,
            architecture="mamba1",
            n_layers=n_layers,
            n_params=129_135_360,
            dtype="fp32",
            files=[{"name": "model.safetensors", "sha256": "ab" * 32}],
            n_blocks=n_layers,
        ),
        tokens=TokensFacts("bundled English text", 1, 512, "cd" * 32),
        exponents=exponents,
        precisions=executions,
        findings=findings,
        summary=Summary(
            verdict=word,
            checked=len(layers) - skipped,
            skipped=skipped,
            seconds=41.7,
            exit_code=code,
            bounded_share=bounded,
            **advice(exponents, executions, findings, changes),
        ),
        parameter_changes=changes,
        reference=reference_loss(),
    )


def troubled_report() -> Report:
    """A report in which most kinds of finding fire."""
    layers = [layer_exponents(i) for i in range(24)]
    layers[3] = layer_exponents(3, max=0.0021, decay_max=1.004)
    layers[5] = LayerExponents(layer=5, kind="mlp", reason="no recurrence")
    layers[7] = layer_exponents(7, max=-1e-9)
    layers[9] = layer_exponents(9, suspicions=["dt_bias is zero in every channel"])
    executions = [precision_report(p) for p in ("bf16", "fp16")]
    fp16 = list(executions[1].layers)
    fp16[11] = layer_divergence(
        11, "fp16", max_abs_stored={"gated": 31000.0, "out": 900.0}
    )
    fp16[12] = layer_divergence(
        12, "fp16", local_l2=math.inf, bound_t1_ratio=None, non_finite=12
    )
    bf16 = list(executions[0].layers)
    bf16[4] = layer_divergence(
        4,
        "bf16",
        violations=37,
        bound_t1_ratio=0.8,
        first_violation={
            "tensor": "gated",
            "batch": 0,
            "token": 17,
            "channel": 301,
            "measured": 0.31,
            "bound": 0.012,
        },
    )
    bf16[6] = layer_divergence(6, "bf16", stagnation=0.21)
    return example_report(
        layers=layers,
        executions=[
            replace(executions[0], layers=bf16),
            replace(executions[1], layers=fp16),
        ],
        skipped=1,
    )
