"""Fine-tuning in several precisions: data, networks, training, and what it shows."""
