from ._benchmark_noise import (
    accuracy_half_width as accuracy_half_width,
    benchmark_note as benchmark_note,
    questions_to_see as questions_to_see,
    unseen_share as unseen_share,
)
from ._catalogue import CATALOGUE as CATALOGUE, FindingKind as FindingKind
from ._rules import advice as advice, find as find
from ._verdict import select_findings as select_findings, verdict as verdict
