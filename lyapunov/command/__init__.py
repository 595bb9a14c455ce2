"""The command `lyapunov-check`."""
