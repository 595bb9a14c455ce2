"""Assert that an option is refused where nobody would look at it."""

import pytest

from lyapunov.command._declare import CHECK, DUMP, declared, name_of
from lyapunov.command._options import Options


UNREAD = {
    "audit": {
        *("tokens_are_text", "mode", "layers", "measure", "constants", "effort"),
        *("against", "round_weights", "device", "plan_alone", "baseline"),
        *("allow_partial", "show", "rank_weights", "quantise_activations"),
    },
    "plan": {
        *("baseline", "output", "reproduce", "source", "way", "show", "annotations"),
        "rank_weights",
    },
    "check": {"reproduce", "source", "plan_alone", "way", "show", "rank_weights"},
    "rank-weights": {
        *("tokens_are_text", "mode", "layers", "measure", "constants", "effort"),
        *("against", "round_weights", "baseline", "allow_partial", "precision"),
        *("state_precision", "annotations", "fail_on", "select", "ignore"),
        *("exit_zero", "source", "reproduce", "way", "show", "quantise_activations"),
    },
}
# of a file of weights without a configuration
OF_BLOCKS = {"list_blocks", "inputs", "random_inputs", "block_option", "weight_set"}
UNREAD = {question: found | OF_BLOCKS for question, found in UNREAD.items()}
UNREAD[DUMP] = UNREAD["audit"] | {
    *("tokens", "text", "length", "batch", "precision", "state_precision"),
    "reproduce",
}
ASKED = {"audit": "--audit emulated", DUMP: "--audit d.npz", "plan": "--plan"}
ASKED["rank-weights"] = "--rank-weights int8"
GIVEN = {"mode": "decode", "measure": "none", "constants": "measured"}
GIVEN |= {"effort": "quick", "layers": "0", "round_weights": "bf16", "batch": "2"}
GIVEN |= {"fail_on": "warning", "select": "LYA001", "ignore": "LYA001"}
GIVEN |= {"annotations": "github", "quantise_activations": "int8-token"}
GIVEN |= {"block_option": "chunk=256", "precision": "bf16", "length": "4"}
GIVEN |= {"random_inputs": "1", "state_precision": "bf16"}


@pytest.mark.parametrize("question", UNREAD)
def test_an_option_that_nobody_would_look_at_is_refused(run, fake, question):
    """Assert it of every option, whatever is asked."""
    options = declared(Options)
    found = {name for name, said in options.items() if question not in said.of}
    assert found == UNREAD[question]
    # each asks something itself
    others = {"source", "plan_alone", "reproduce", "way", "show", "rank_weights"}
    for name in found - others if question != CHECK else ():
        value = [] if options[name].click.get("is_flag") else [GIVEN.get(name, "x")]
        shown = name_of(name, options[name])
        result = run("m", *ASKED[question].split(), shown, *value)
        assert result.exit_code == 2
        told = "is not for" if name in OF_BLOCKS else f"{shown} is not for"
        assert told in result.stderr
    assert fake.opened == []
