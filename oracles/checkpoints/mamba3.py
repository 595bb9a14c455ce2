"""Settings of small Mamba-3 mixers, as mamba_ssm's `ssm_cfg` has them."""

SISO = {"layer": "Mamba3", "d_state": 8, "headdim": 8}
MIMO = {**SISO, "is_mimo": True, "mimo_rank": 3}
CONFIGS = {
    "SISO": SISO,
    "SISO, groups, norm, all pairs turn": {
        **SISO, "ngroups": 2, "is_outproj_norm": True, "rope_fraction": 1.0,
    },
    "SISO, slowest rate": {**SISO, "A_floor": 0.7},
    "MIMO": MIMO,
    "MIMO, groups, norm": {**MIMO, "ngroups": 3, "is_outproj_norm": True},
}  # fmt: skip
