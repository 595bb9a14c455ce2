"""Four trained models of equal size: data, networks, training and export."""
