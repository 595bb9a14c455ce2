"""What implementations compute, in their order, with every stored tensor named."""
