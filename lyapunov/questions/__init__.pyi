from ._audit import audit as audit
from ._cause import state_cause as state_cause, state_facts as state_facts
from ._changes import parameter_changes as parameter_changes
from ._check import check as check
from ._check_blocks import check_blocks as check_blocks
from ._check_mixer import check_mixer as check_mixer
from ._environment import environment as environment
from ._plan import Plan as Plan, plan as plan
from ._rank_weights import rank_weights as rank_weights
from ._training import StabilityCallback as StabilityCallback
from ._training_metrics import training_metrics as training_metrics
from ._watch import Watched as Watched, watch as watch
from ._weight_sets import rounded_weights as rounded_weights
