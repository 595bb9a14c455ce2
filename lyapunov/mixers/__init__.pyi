from ._capture import Call as Call
from ._file import StoredBlock as StoredBlock, blocks_of_file as blocks_of_file
from ._found import FoundMixer as FoundMixer, find_mixers as find_mixers
from ._kind import MixerKind as MixerKind
from ._kinds import KINDS as KINDS
from ._mixer import Mixer as Mixer, mixer as mixer
from ._model import model_of_call as model_of_call
from ._scans import (
    chunk_scan_call as chunk_scan_call,
    selective_scan_call as selective_scan_call,
)
