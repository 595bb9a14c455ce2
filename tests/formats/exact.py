"""Rounding in exact rationals: no floating-point operation decides anything here."""

from fractions import Fraction


def exponent(x: Fraction) -> int:
    """floor(log2 |x|) for x != 0."""
    n, d = abs(x.numerator), x.denominator
    guess = n.bit_length() - d.bit_length()
    return guess if Fraction(2) ** guess <= abs(x) else guess - 1


def round_exactly(x: Fraction, fmt) -> Fraction | None:
    """Nearest number of the format, ties to even; None beyond the largest."""
    if x == 0:
        return x
    place = max(exponent(x), fmt.min_exponent) - fmt.significand_bits + 1
    scaled = x / Fraction(2) ** place
    below = scaled.numerator // scaled.denominator
    rest = scaled - below
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
    rounded = (below + up) * Fraction(2) ** place
    return None if abs(rounded) > Fraction(fmt.largest) else rounded
