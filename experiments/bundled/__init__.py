"""The bundled model: its text, its training, its scores and its card."""
