"""Assert what is said of blocks in files of weights without a configuration."""
