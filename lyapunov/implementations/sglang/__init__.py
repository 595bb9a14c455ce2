"""SGLang's flow of Mamba networks, emulated."""
