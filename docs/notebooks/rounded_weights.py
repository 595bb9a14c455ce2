# %% [markdown]
# # Which weights can be rounded, and to what?
#
# Quantised files hold weights in few bits. `round_weights` holds a checkpoint against itself
# with weights rounded so, in exact arithmetic: what is left is the change of the weights alone.

# %%
import matplotlib.pyplot as plt
import numpy as np

import lyapunov


model = lyapunov.load()
text = (
    b"Four bits a weight are enough for some parameters, and for others they are not. "
)
tokens = np.frombuffer(text * 2, np.uint8)[:128].astype(int)
FORMATS = ["bf16", "fp8_e4m3-row", "int8-row", "int4", "nf4", "nvfp4"]
report = lyapunov.check(
    model, tokens, measure="none", effort="quick", round_weights=FORMATS
)
for change in report.parameter_changes:
    out = change.output
    print(
        f"{change.name:<22} KL {out.kl_mean:.1e}, {out.argmax_flips:2} of "
        f"{out.argmax_total} top tokens; to first order {change.predicted_rel_l2:.1e}, "
        f"measured {out.measured_rel_l2:.1e}"
    )

# %%
names = [change.name.split(":")[0] for change in report.parameter_changes]
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.barh(names, [c.output.kl_mean for c in report.parameter_changes], color="#8a5a9e")
plt.xscale("log")
plt.xlabel("mean KL, nats a token")
plt.gca().invert_yaxis()

# %% [markdown]
# ## Group by group
#
# Which parameters are the sensitive ones in four bits? A group behind a colon is rounded alone.

# %%
GROUPS = ("in_proj", "x_proj", "out_proj", "embedding_and_head")
report = lyapunov.check(
    model,
    tokens,
    measure="none",
    effort="quick",
    round_weights=[f"int4:{group}" for group in GROUPS],
)
plt.figure(figsize=(6, 2.2), layout="constrained")
plt.barh(GROUPS, [c.output.kl_mean for c in report.parameter_changes])
plt.xscale("log")
plt.xlabel("mean KL, nats a token")
{c.name: c.output.argmax_flips for c in report.parameter_changes}
