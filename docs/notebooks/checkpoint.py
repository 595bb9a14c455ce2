# %% [markdown]
# # A checkpoint, layer by layer
#
# The model that comes with the library, on 256 bytes of English. `load` takes a
# folder, a file or the name of a Hub repository instead.

# %%
import matplotlib.pyplot as plt
import numpy as np

import lyapunov


model = lyapunov.load()
text = b"The first thing that one asks of a recurrence is how long it remembers. " * 4
tokens = np.frombuffer(text, np.uint8)[:256].astype(int)
report = lyapunov.check(model, tokens, precisions=["bf16", "fp16"])
print(report.summary.recommendation)

# %% [markdown]
# ## How long it remembers
#
# An exponent of $\lambda$ nats per token is a memory of $-1/\lambda$ tokens. A layer has one
# for each channel and state; the largest belongs to what it forgets last.

# %%
layers = [row.layer for row in report.exponents.layers]
p50, p90 = (
    [getattr(row.memory_tokens, name) for row in report.exponents.layers]
    for name in ("p50", "p90")
)
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.bar(layers, p90, color="#9ecae1", label="90 % of the states forget by")
plt.bar(layers, p50, color="#3182bd", label="half of them by")
plt.xlabel("layer")
plt.ylabel("tokens")
plt.legend(frameon=False)

# %% [markdown]
# ## What rounding does, and what it may do at most
#
# The points are measured: the layer's output against exact arithmetic on the same input. The
# lines are certified for *every* execution of this kind, in any scan order, on any GPU that
# meets the constants that the report lists.

# %%
plt.figure(figsize=(6, 3), layout="constrained")
for run, color in zip(report.precisions, ("#d55e00", "#0072b2")):
    measured = np.array([row.local_l2 / row.reference_l2 for row in run.layers])
    bound = np.array([row.bound_t1_l2 / row.reference_l2 for row in run.layers])
    plt.semilogy(layers, bound, color=color, label=f"{run.precision}, bound (T1)")
    plt.semilogy(layers, measured, "o", color=color, label=f"{run.precision}, measured")
plt.xlabel("layer")
plt.ylabel("relative L2")
plt.legend(frameon=False, ncols=2)
[(run.precision, run.count("violations")) for run in report.precisions]

# %% [markdown]
# ## At the logits
#
# Predicted is an estimate (T3), and z says how well it is calibrated: near 1.

# %%
for run in report.precisions:
    out = run.output
    print(
        f"{run.precision}: measured {out.measured_rel_l2:.1e}, predicted "
        f"{out.sigma_t3:.1e} (z {out.calibration_z:.2f}), KL {out.kl_mean:.1e} nats, "
        f"{out.argmax_flips} of {out.argmax_total} top tokens changed"
    )
