from ._checkpoint import Checkpoint as Checkpoint, open_checkpoint as open_checkpoint
from ._network import NetworkLayout as NetworkLayout
from .families._architectures import (
    list_architectures as list_architectures,
    recognise as recognise,
)
