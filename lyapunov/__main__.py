"""`python -m lyapunov` is `lyapunov-check`."""

from lyapunov._cli import main


if __name__ == "__main__":
    main(prog_name="lyapunov-check")
