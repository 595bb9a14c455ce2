"""Names of transformers that are used here, from the modules that define them.

Its own `__init__` takes every family's by `*`: a third of what pyright took.
"""

from transformers.cache_utils import DynamicCache as DynamicCache
from transformers.modeling_utils import PreTrainedModel as PreTrainedModel
from transformers.models.auto.configuration_auto import AutoConfig as AutoConfig
from transformers.models.auto.modeling_auto import (
    AutoModelForCausalLM as AutoModelForCausalLM,
)
from transformers.models.auto.tokenization_auto import AutoTokenizer as AutoTokenizer
from transformers.models.gpt_neox.configuration_gpt_neox import (
    GPTNeoXConfig as GPTNeoXConfig,
)
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXForCausalLM as GPTNeoXForCausalLM,
)
from transformers.models.mamba.configuration_mamba import MambaConfig as MambaConfig
from transformers.models.mamba.modeling_mamba import (
    MambaForCausalLM as MambaForCausalLM,
)
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import (
    Mamba2ForCausalLM as Mamba2ForCausalLM,
)
from transformers.tokenization_utils_tokenizers import (
    PreTrainedTokenizerFast as PreTrainedTokenizerFast,
)
from transformers.trainer import Trainer as Trainer
from transformers.trainer_callback import TrainerCallback as TrainerCallback
from transformers.training_args import TrainingArguments as TrainingArguments

__version__: str
