from ._from_torch import from_torch as from_torch
from ._language_model import (
    Model as Model,
    Sublayer as Sublayer,
    VocabularySlice as VocabularySlice,
)
from ._load import load as load
from ._tokens import Tokens as Tokens, choose_tokens as choose_tokens
