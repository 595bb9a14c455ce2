# %% [markdown]
# # The exponents of a recurrence of your own
#
# Any JAX function `(state, input) -> state` will do. First a system that everybody knows.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lyapunov


def lorenz(x):
    return jnp.array(
        [10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]]
    )


def step(x, _, dt=0.01):
    a = lorenz(x)
    b = lorenz(x + dt / 2 * a)
    c = lorenz(x + dt / 2 * b)
    return x + dt / 6 * (a + 2 * b + 2 * c + lorenz(x + dt * c))


with jax.enable_x64(True):
    start = jnp.array([1.0, 2.0, 20.0])
    found = lyapunov.lyapunov_spectrum(step, start, jnp.zeros((50_000, 1)), k=3)
    exponents, interval = found.exponents / 0.01, found.interval(0.95) / 0.01
    time, history = found.history_tokens * 0.01, found.history / 0.01
for value, (low, high) in zip(exponents, interval):
    print(f"{value:8.3f}  ({low:.3f} to {high:.3f})")

# %% [markdown]
# A unit of time is a hundred steps. The literature has 0.906, 0 and -14.57.

# %%
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.plot(time, history[:, :2])
plt.axhline(0.906, color="#888", linewidth=0.8)
plt.ylim(-0.5, 1.5)
plt.xlabel("time")
plt.ylabel("exponents")

# %% [markdown]
# ## A driven network
#
# A recurrent network forgets where it started if its largest exponent is below 0. How far
# the weights can grow before it does not:

# %%
rng = np.random.default_rng(0)
W = rng.normal(size=(32, 32)) / np.sqrt(32)
inputs = rng.normal(size=(3000, 32)) * 0.3
scales, largest = np.linspace(0.5, 2.5, 9), []
with jax.enable_x64(True):
    for scale in scales:
        net = lambda h, u, s=scale: jnp.tanh(s * W @ h + u)
        one = lyapunov.lyapunov_spectrum(net, jnp.zeros(32), jnp.asarray(inputs), k=1)
        largest.append(float(one.exponents[0]))
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.plot(scales, largest, "o-")
plt.axhline(0, color="#888", linewidth=0.8)
plt.xlabel("scale of the weights")
plt.ylabel("largest exponent, nats a step")
np.round(largest, 2)

# %% [markdown]
# ## What an exponent does not say
#
# A decay of 1 that is interrupted by $e^{-50}$ every 1000 tokens has a negative exponent, and
# forgets nothing in between: what rounding injects at every token adds up.

# %%
log_decay = np.zeros((4000, 1))
log_decay[999::1000] = -50.0
exponent = log_decay.mean()
gain = lyapunov.bounds.persistent_gain(log_decay)
formula = 1 / (1 - np.exp(exponent))
print(f"exponent {exponent:.3f}: 1 / (1 - e^exponent) = {formula:.1f}")
print(f"what rounding adds up to, in units of one rounding: {gain.max():.0f}")
