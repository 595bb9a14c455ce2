"""How exponents, dt and decays move in training, and what they say of rounding."""
