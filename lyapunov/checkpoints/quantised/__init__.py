"""Quantised checkpoints: codes under scales, read as the numbers that they stand for."""
