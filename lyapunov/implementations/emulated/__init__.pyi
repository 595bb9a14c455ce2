from .implementation import EmulatedImplementation as EmulatedImplementation
from .runner import Emulated as Emulated
