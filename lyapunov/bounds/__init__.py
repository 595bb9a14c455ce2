"""How far rounding, rounded weights and perturbations can move a network."""
