# %% [markdown]
# # Rounding or a bug?
#
# Two runs differ. An audit does not compare them with each other, but each with exact
# arithmetic, and holds the distance to a certified bound of what *its* roundings may do.
#
# Here a server is played by the emulator. It says that it stores dt, B and C in bf16.

# %%
import dataclasses

import matplotlib.pyplot as plt
import numpy as np

import lyapunov
from lyapunov.formats import FP8_E4M3
from lyapunov.implementations import Emulated, executions_for


model = lyapunov.load()
ids = np.frombuffer(b"A run that is wrong looks much like one that rounds.", np.uint8)
ids = ids.astype(int)
(declared,) = executions_for(model.config, ["bf16"], measure="emulated")
print(declared.name, "| dt, B, C:", declared.sites["x_proj"].name)

# %% [markdown]
# ## Two servers
#
# One keeps its promise. The other rounds dt, B and C to 8 bits.

# %%
broken = dataclasses.replace(declared, sites=declared.sites | {"x_proj": FP8_E4M3})
ratios = {}
for name, execution in (("right", declared), ("wrong", broken)):
    records = list(lyapunov.trace(model, ids, runner=Emulated(execution)))
    lyapunov.write_dump(
        f"{name}.npz",
        records,
        ids,
        implementation="mamba_ssm",
        precision="bf16",
    )
    audit = lyapunov.audit(model, f"{name}.npz")
    (way,) = audit.variants
    ratios[name] = [max(row.ratio_t0 or 0, row.ratio_t1 or 0) for row in way.layers]
    print(f"{name}: {audit.summary.verdict}. {audit.summary.recommendation}")

# %% [markdown]
# ## Where
#
# Every layer, the largest distance over its certified bound. Above 1 no rounding explains it.

# %%
plt.figure(figsize=(6, 2.8), layout="constrained")
for name, marker in (("right", "o"), ("wrong", "x")):
    plt.semilogy(ratios[name], marker, label=name)
plt.axhline(1, color="#888", linewidth=0.8)
plt.xlabel("layer")
plt.ylabel("distance / bound")
plt.legend(frameon=False)

# %% [markdown]
# ## Would comparing logits have told?
#
# Hardly: the wrong one is farther off by a factor of two, and nothing says how far a right one
# may be.


# %%
def logits(execution):
    *_, head = lyapunov.trace(model, ids, runner=Emulated(execution))
    return np.asarray(head.logits(0, model.config.vocab_size))


exact = np.asarray(model.logits(ids))
one, other = logits(declared), logits(broken)
for name, a, b in (
    ("right, from exact arithmetic", one, exact),
    ("wrong, from exact arithmetic", other, exact),
    ("one from the other", one, other),
):
    print(f"{name}: {np.linalg.norm(a - b) / np.linalg.norm(exact):.1e}")
