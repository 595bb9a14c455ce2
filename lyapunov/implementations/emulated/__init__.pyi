from .runner import Emulated as Emulated
