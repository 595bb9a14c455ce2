"""Quantised checkpoints: codes under scales, read as the numbers they mean."""
