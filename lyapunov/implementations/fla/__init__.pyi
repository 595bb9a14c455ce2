from .implementation import FlaImplementation as FlaImplementation
from .networks import fla_network as fla_network
