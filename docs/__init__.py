"""The documentation: `pages` as they are written, and the makers of the others."""
