"""Three systems, each as every library takes it: functions that give exponents.

A maker returns a function without arguments, whose first call compiles. Exponents are
per unit of time for Lorenz-63, per step for the others.
"""

import contextlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


LORENZ_STEPS, DT = 100_000, 0.01
HENON_STEPS = 100_000
CHANNELS, TOKENS, LEADING = 1024, 4096, 16
SIGMA, RHO, BETA = 10.0, 28.0, 8.0 / 3.0
START = (1.0, 1.0, 1.0)
HENON_START = (0.1, 0.1)

Run = Callable[[], np.ndarray]


# ---- the systems in JAX and in NumPy


def flow(x):
    """Lorenz (1963)."""
    return jnp.stack(
        [
            SIGMA * (x[1] - x[0]),
            x[0] * (RHO - x[2]) - x[1],
            x[0] * x[1] - BETA * x[2],
        ]
    )


def lorenz(x, _=None):
    """One step of Runge and Kutta, of order 4."""
    k1 = flow(x)
    k2 = flow(x + DT / 2 * k1)
    k3 = flow(x + DT / 2 * k2)
    k4 = flow(x + DT * k3)
    return x + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def henon(x, _=None):
    """Henon (1976), a = 1.4 and b = 0.3."""
    return jnp.stack([1.0 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def numpy_flow(x, t):
    """The same for libraries of NumPy."""
    del t
    return np.array(
        [
            SIGMA * (x[1] - x[0]),
            x[0] * (RHO - x[2]) - x[1],
            x[0] * x[1] - BETA * x[2],
        ]
    )


def numpy_flow_jacobian(x, t):
    """Its derivative."""
    del t
    return np.array(
        [[-SIGMA, SIGMA, 0.0], [RHO - x[2], -1.0, -x[0]], [x[1], x[0], -BETA]]
    )


def numpy_henon(x, t):
    """The map."""
    del t
    return np.array([1.0 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])


def numpy_henon_jacobian(x, t):
    """Its derivative."""
    del t
    return np.array([[-2.8 * x[0], 1.0], [0.3, 0.0]])


def log_decays(channels: int = CHANNELS, tokens: int = TOKENS) -> np.ndarray:
    """(tokens, channels): a rate for each channel, a step size for each token."""
    rng = np.random.default_rng(0)
    rates = np.exp(rng.uniform(np.log(1e-3), np.log(1.8), channels))
    return -rates * rng.uniform(0.5, 1.5, (tokens, channels))


# ---- ours


def ours_dense(step, start, steps, unit, every=1) -> Run:
    """`lyapunov_spectrum` with its default method, or fewer orthonormalisations."""
    import lyapunov

    state = jnp.asarray(start)
    method = lyapunov.QR(block=every)

    def run():
        found = lyapunov.lyapunov_spectrum(step, state, steps, method=method)
        return np.asarray(found.exponents) / unit

    return run


def ours_diagonal(log_a: np.ndarray) -> Run:
    """`lyapunov_spectrum` of a diagonal recurrence: all exponents."""
    import lyapunov
    from lyapunov.recurrences import DecayAndDrive, DiagonalRecurrence

    state = jnp.zeros(log_a.shape[1])
    inputs = DecayAndDrive(jnp.asarray(log_a), jnp.zeros_like(jnp.asarray(log_a)))

    def run():
        found = lyapunov.lyapunov_spectrum(DiagonalRecurrence(), state, inputs)
        return np.asarray(found.exponents)

    return run


# ---- lyapax and chaotax


def counted(log_a: np.ndarray):
    """A diagonal system without inputs: time counts in the state, and has no slope."""
    a = jnp.exp(jnp.asarray(log_a))

    def step(x):
        t = jax.lax.stop_gradient(x[-1])
        return jnp.append(a[t.astype(int)] * x[:-1] + 1.0, t + 1.0)

    return step, jnp.append(jnp.zeros(log_a.shape[1]), 0.0)


def lyapax_run(step, start, steps, dt, k=None, *, jitted=True, every=1) -> Run:
    """lyapax, its call inside `jax.jit` unless told otherwise."""
    import lyapax

    def call(x):
        found = lyapax.lyapunov_spectrum(
            step, x, dt, steps, k=k, t_transient=0.0, seed=0, renorm_every=every
        )
        return found.exponents

    call = jax.jit(call) if jitted else call
    state = jnp.asarray(start)
    return lambda: np.asarray(call(state))


def chaotax_run(step, start, steps, dt, k=None) -> Run:
    """chaotax, whose spectrum cannot be called inside `jax.jit`."""
    import chaotax

    call = chaotax.lyapunov_spectrum(
        step,
        rollout_steps=steps,
        warmup_steps=0,
        discard_steps=0,
        dt=dt,
        num_exponents=k,
    )
    state = jnp.asarray(start)
    return lambda: np.asarray(call(state, key=jax.random.key(0)))


def chaotax_by_hand(log_a: np.ndarray) -> Run:
    """chaotax on each channel as a system of its own, split by the caller."""
    import chaotax

    a = jnp.exp(jnp.asarray(log_a))

    def one(a):
        def step(x):
            t = jax.lax.stop_gradient(x[1])
            return jnp.stack([a[t.astype(int)] * x[0] + 1.0, t + 1.0])

        run = chaotax.lyapunov(
            step, rollout_steps=len(a), warmup_steps=0, discard_steps=0, dt=1.0
        )
        return run(jnp.zeros(2), noise=jnp.asarray([1.0, 0.0]))

    call = jax.jit(jax.vmap(one, in_axes=1))
    return lambda: np.asarray(call(a))


# ---- lyapynov and clvlib


def lyapynov_run(kind, start, f, jacobian, steps, dt, p) -> Run:
    """lyapynov."""
    import lyapynov

    def run():
        make = lyapynov.ContinuousDS if kind == "flow" else lyapynov.DiscreteDS
        system = make(np.asarray(start), 0, f, jacobian, dt)
        return np.asarray(lyapynov.LCE(system, p, 0, steps, False))

    return run


def clvlib_run(start, f, jacobian, times, stepper, k=None) -> Run:
    """clvlib, whose functions take the time first."""
    from clvlib.numpy import lyap_exp_from_ic

    swap = lambda g: lambda t, x: g(x, t)

    def run():
        found = lyap_exp_from_ic(
            swap(f),
            swap(jacobian),
            np.asarray(start),
            times,
            stepper=stepper,
            n_lyap=k,
        )
        return np.asarray(found[0])

    return run


# ---- pynamicalsys and jitcode


def pynamicalsys_lorenz() -> Run:
    """Its own Lorenz system, RK4."""
    from pynamicalsys import ContinuousDynamicalSystem

    system = ContinuousDynamicalSystem(model="lorenz system")
    system.integrator("rk4", time_step=DT)

    def run():
        found = system.lyapunov(
            np.asarray(START), LORENZ_STEPS * DT, parameters=[SIGMA, RHO, BETA]
        )
        return np.asarray(found)

    return run


def pynamicalsys_henon() -> Run:
    """Its own Henon map."""
    from pynamicalsys import DiscreteDynamicalSystem

    system = DiscreteDynamicalSystem(model="henon map")

    def run():
        found = system.lyapunov(
            np.asarray(HENON_START), HENON_STEPS, parameters=[1.4, 0.3]
        )
        return np.asarray(found)

    return run


def jitcode_lorenz() -> Run:
    """An adaptive integrator in compiled C; vectors renewed every 0.1."""
    from jitcode import jitcode_lyap, y

    equations = [
        SIGMA * (y(1) - y(0)),
        y(0) * (RHO - y(2)) - y(1),
        y(0) * y(1) - BETA * y(2),
    ]

    def run():
        system = jitcode_lyap(equations, n_lyap=3, verbose=False)
        # a pyproject.toml where it compiles makes it fall back to Python, unsaid
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            system.set_integrator("dopri5")
        system.set_initial_value(np.asarray(START), 0.0)
        local = [
            system.integrate(t)[1]
            for t in np.arange(0.1, LORENZ_STEPS * DT + 0.05, 0.1)
        ]
        return np.mean(local, axis=0)

    return run


# ---- one table


def cases(small: bool = False) -> dict[str, dict[str, Callable[[], Run]]]:
    """Makers by system and library; `small` leaves a hundredth of the steps."""
    share = 100 if small else 1
    lorenz_steps, henon_steps = LORENZ_STEPS // share, HENON_STEPS // share
    log_a = log_decays(CHANNELS // 8, TOKENS // 16) if small else log_decays()
    times = np.arange(lorenz_steps + 1) * DT
    diagonal, first = counted(log_a)
    numpy_a = np.exp(log_a)
    f = lambda x, t: numpy_a[int(t)] * x + 1.0
    dense = lambda x, t: np.diag(numpy_a[int(t)])

    def rows(f, Df, t, x, V, dt=0.0, *args):
        del Df, dt, args
        return f(t, x), numpy_a[int(t)][:, None] * V

    d, n = log_a.shape[1], len(log_a)
    return {
        "lorenz": {
            "ours": lambda: ours_dense(lorenz, START, lorenz_steps, DT),
            "lyapax, jit": lambda: lyapax_run(lorenz, START, lorenz_steps, DT),
            "lyapax": lambda: lyapax_run(lorenz, START, lorenz_steps, DT, jitted=False),
            "chaotax": lambda: chaotax_run(lorenz, START, lorenz_steps, DT),
            "pynamicalsys": pynamicalsys_lorenz,
            "jitcode": jitcode_lorenz,
            "ours, every 10": lambda: ours_dense(lorenz, START, lorenz_steps, DT, 10),
            "lyapax, jit, every 10": lambda: lyapax_run(
                lorenz, START, lorenz_steps, DT, every=10
            ),
            "lyapynov": lambda: lyapynov_run(
                "flow", START, numpy_flow, numpy_flow_jacobian, lorenz_steps, DT, 3
            ),
            "clvlib": lambda: clvlib_run(
                START, numpy_flow, numpy_flow_jacobian, times, "rk4"
            ),
        },
        "henon": {
            "ours": lambda: ours_dense(henon, HENON_START, henon_steps, 1.0),
            "lyapax, jit": lambda: lyapax_run(henon, HENON_START, henon_steps, 1.0),
            "lyapax": lambda: lyapax_run(
                henon, HENON_START, henon_steps, 1.0, jitted=False
            ),
            "chaotax": lambda: chaotax_run(henon, HENON_START, henon_steps, 1.0),
            "pynamicalsys": pynamicalsys_henon,
            "ours, every 10": lambda: ours_dense(
                henon, HENON_START, henon_steps, 1.0, 10
            ),
            "lyapax, jit, every 10": lambda: lyapax_run(
                henon, HENON_START, henon_steps, 1.0, every=10
            ),
            "lyapynov": lambda: lyapynov_run(
                "map",
                HENON_START,
                numpy_henon,
                numpy_henon_jacobian,
                henon_steps,
                1,
                2,
            ),
            "clvlib": lambda: clvlib_run(
                HENON_START,
                numpy_henon,
                numpy_henon_jacobian,
                np.arange(henon_steps + 1.0),
                "discrete",
            ),
        },
        "diagonal": {
            "ours": lambda: ours_diagonal(log_a),
            "lyapax, jit": lambda: lyapax_run(diagonal, first, n, 1.0, LEADING),
            "chaotax": lambda: chaotax_run(diagonal, first, n, 1.0, LEADING),
            "chaotax, split by hand": lambda: chaotax_by_hand(log_a),
            "lyapynov": lambda: lyapynov_run(
                "map", np.zeros(d), f, dense, n, 1, LEADING
            ),
            "clvlib": lambda: clvlib_run(
                np.zeros(d), f, dense, np.arange(n + 1.0), rows, LEADING
            ),
        },
    }


def truth(system: str, small: bool = False) -> np.ndarray:
    """Exponents: of the limit for two of them, of these very tokens for the third."""
    if system == "lorenz":
        # Sprott (2003), Chaos and Time-Series Analysis; they add up to -41/3
        return np.array([0.9056, 0.0, -14.5723])
    if system == "henon":
        return np.array([0.41922, np.log(0.3) - 0.41922])
    log_a = log_decays(CHANNELS // 8, TOKENS // 16) if small else log_decays()
    return np.sort(log_a.mean(axis=0))[::-1]
