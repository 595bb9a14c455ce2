"""What each family of models writes into its settings and calls its tensors."""
