"""Any network that holds state-space blocks."""
