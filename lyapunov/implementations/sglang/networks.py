"""SGLang 0.5.23: Mamba-1, Mamba-2 and delta rules; see `_served`."""

from .._served_wanted import Rules
from .._stacks import SGLANG_STACK


# Chunks are cut in the stream of all packed texts
# (`_query_start_loc_to_chunk_indices_offsets` in `mamba2_metadata.py`): those of a text
# that is served alone begin with its calls. The state that a call leaves is made once
# more, from the one in front of the last chunk (`_chunk_state_varlen_kernel`).
SGLANG_RULES = Rules(
    "sglang", SGLANG_STACK, on_a_grid=False, last_again=True, compiles=False
)
