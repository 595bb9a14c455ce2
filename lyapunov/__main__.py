"""`python -m lyapunov` is `lyapunov-check`."""

from lyapunov.command._cli import main


if __name__ == "__main__":
    main(prog_name="lyapunov-check")
