"""Training steps of published shapes with random weights: how fast, how much memory."""
