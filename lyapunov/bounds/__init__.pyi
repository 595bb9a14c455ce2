from .adjoint import Adjoints as Adjoints
from .ball import Ball as Ball, Certified as Certified
from .end_to_end import EndToEnd as EndToEnd, EndToEndEstimate as EndToEndEstimate
from .floor import floor_l2 as floor_l2
from .local import (
    Comparison as Comparison,
    SublayerBound as SublayerBound,
    Violation as Violation,
    first_violation as first_violation,
    operation_bounds as operation_bounds,
    sublayer_bound as sublayer_bound,
    with_operator_norms as with_operator_norms,
)
from .operator_norm import operator_norm_bound as operator_norm_bound
from .parameters import (
    SublayerChange as SublayerChange,
    change_bound as change_bound,
    sublayer_change as sublayer_change,
)
from .passes import bounded_pass as bounded_pass, exact_pass as exact_pass
from .perturbation import (
    exponent_bound as exponent_bound,
    largest_decay_bound as largest_decay_bound,
    one_off_bound as one_off_bound,
    persistent_bound as persistent_bound,
    persistent_gain as persistent_gain,
)
from .probes import Probes as Probes
from .segments import SublayerAudit as SublayerAudit, audit_sublayer as audit_sublayer
from .stochastic import ReadOutBound as ReadOutBound, read_out_bound as read_out_bound
from .sublayer_perturbation import (
    SublayerPerturbation as SublayerPerturbation,
    sublayer_perturbation as sublayer_perturbation,
)
