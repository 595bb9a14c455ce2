# %% [markdown]
# # Which state dtype, for this model?
#
# Decoding keeps a recurrent state in a cache. What does each format of it do to the text that
# this model writes? Weights and activations stay in bf16 throughout.

# %%
import matplotlib.pyplot as plt
import numpy as np

import lyapunov


model = lyapunov.load()
text = (
    b"Mr. Speaker, Mr. Vice President, my copartners in Government, gentlemen-and ladies:\n"
    b'The Constitution imposes upon me the obligation to "from time to time'
)
tokens = np.frombuffer(text, np.uint8)[:128].astype(int)
found = {}
for state in ("fp32", "fp16", "bf16", "int8-scaled-stochastic", "fp8_e4m3"):
    report = lyapunov.check(
        model,
        tokens,
        precisions="bf16",
        mode="decode",
        state_precision=state,
        effort="quick",
    )
    found[state] = report
    print(f"{state}: {report.summary.recommendation}")

# %% [markdown]
# ## By how much
#
# Mean KL divergence from the exact model, and how many of 128 greedy choices change. The bar
# of fp32 is what bf16 weights and activations do by themselves.

# %%
outputs = {state: one.precisions[0].output for state, one in found.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.6), layout="constrained")
left.barh(list(outputs), [out.kl_mean for out in outputs.values()], color="#d55e00")
left.set(xscale="log", xlabel="mean KL, nats a token")
right.barh(list(outputs), [out.argmax_flips for out in outputs.values()])
right.set(xlabel="top tokens changed, of 128", yticks=[])
left.invert_yaxis()
right.invert_yaxis()

# %% [markdown]
# ## Whether it grows
#
# Rounding that always pushes one way adds up along the text; rounding by chance does not.

# %%
plt.figure(figsize=(6, 2.6), layout="constrained")
for state, out in outputs.items():
    kl = np.asarray(out.kl_by_position).reshape(8, -1).mean(1)
    plt.semilogy(np.linspace(8, 120, 8), kl, label=state)
plt.xlabel("position")
plt.ylabel("mean KL, nats")
plt.legend(frameon=False, fontsize=7)

# %% [markdown]
# ## What to type
#
# For the first format; a format for which a stack has no flag is left out.

# %%
for flag in found["fp32"].summary.flags:
    print(f"{flag['stack']:<13} {flag['flag']}")
