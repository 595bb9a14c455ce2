"""The findings' texts: code, title, severity, and what `--explain` says.

A code keeps its meaning for ever; new ones are added at the end.
"""

from dataclasses import dataclass
from typing import Any

from lyapunov.results._check import Finding


ERROR = "error"
WARNING = "warning"


@dataclass(frozen=True)
class FindingKind:
    """Hold one entry of the catalogue: what a code stands for."""

    code: str
    title: str
    severity: str
    explanation: str
    """What it means, why it matters, what to do; several sentences."""


_KINDS = (
    FindingKind(
        "LYA001",
        "exponent not negative",
        ERROR,
        "A layer's largest Lyapunov exponent on these tokens is 0 or above: the "
        "product of its step Jacobians does not shrink, so a perturbation of the state "
        "is never forgotten and may grow without limit along the sequence. A trained "
        "Mamba layer has A = -exp(A_log) < 0 and dt > 0, so this needs a parameter "
        "that is zero, of the wrong sign or not finite; so does a delta rule, whose "
        "exponents are at most the mean of its log gates while beta |k|^2 <= 2. "
        "Look at A_log and dt_bias of the layer, and at how the file was written.",
    ),
    FindingKind(
        "LYA002",
        "values not finite",
        ERROR,
        "Infinities or NaN appeared, in the fp64 reference or in the execution under "
        "test. In fp16 the usual cause is overflow: the largest value is 65504, and "
        "products in the gate or the residual pass it. Everything downstream of the "
        "first such value is lost, so no figure of a later layer means anything. "
        "If only fp16 is affected, run in bf16 or keep the named layer in fp32; if the "
        "reference is affected, the checkpoint itself is damaged.",
    ),
    FindingKind(
        "LYA003",
        "measured above the bound",
        ERROR,
        "An element differs from the fp64 reference by more than the certified bound "
        "of its own execution allows. The bound holds for every scan order within the "
        "declared depth and every device that meets the declared constants, so "
        "rounding alone cannot explain the difference: either the implementation "
        "computes something else (a bug, another formula, a wrong layout), or it "
        "breaks one of the assumptions that the report lists, or the bound is wrong. "
        "Start from the first violation: its tensor, token and channel are named. "
        "A measured infinity under a finite bound counts too. --effort quick has no "
        "bounds, so that nothing exceeds one there.",
    ),
    FindingKind(
        "LYA004",
        "top token changes",
        WARNING,
        "At some positions the most likely next token is another one than in the fp64 "
        "reference, so greedy decoding takes another path from there. Of equal logits "
        "the lowest index is taken, on both sides; a change between exactly equal "
        "leaders of the reference is counted apart: there no token was the right one. "
        "Changes at positions where "
        "the reference's margin is small are what any rounding does; compare the "
        "share with the margin quantiles and the KL divergence, and weigh it against "
        "the noise of your benchmark: a task score can stay still, or improve, while "
        "many tokens change. If it matters, take the precision with the smaller KL.",
    ),
    FindingKind(
        "LYA005",
        "range at risk",
        WARNING,
        "A stored value comes within a factor of 8 of the largest number of its "
        "format (65504 for fp16, 448 for fp8_e4m3). These tokens passed, but another "
        "text, a longer one or a fine-tuned model can overflow, and one infinity ruins "
        "the sequence from there on. bf16 has the range of fp32 and is not affected; "
        "otherwise keep the named tensor in fp32 or scale it.",
    ),
    FindingKind(
        "LYA006",
        "marginal decay",
        WARNING,
        "The decay exp(dt A) is 1 in the state's format, or dt itself underflows: "
        "there the state adds without forgetting, and rounding errors add up with it "
        "instead of fading. The exponent of exact arithmetic is still negative; the "
        "computation does not see it. A few such decays are how a selective model "
        "skips a token; this fires when a channel's mean decay is 1, or one decay in a "
        "hundred. Keep the state (and the decay) in fp32; if it fires for fp32 itself, "
        "look at dt_bias and A_log.",
    ),
    FindingKind(
        "LYA007",
        "state stagnates",
        WARNING,
        "State updates fall below half a unit in the state's last place and are "
        "rounded away: the tokens leave no trace in the state. This is a limit of the "
        "mantissa, not of the range, so scaling does not help, and it biases the state "
        "in one direction instead of adding noise. It is why serving stacks keep the "
        "cached state in fp32. Use --state-precision fp32, or stochastic rounding, "
        "under which such updates are kept on average and this is not raised.",
    ),
    FindingKind(
        "LYA008",
        "dynamics look lost",
        WARNING,
        "dt_bias, A_log or D look zeroed, re-initialised or stored in a lower "
        "precision than training left them in, or a sublayer adds nothing, judged from "
        "the values and from what the layer does with data. Loaders have done this "
        "silently: an initialiser that runs after loading, a key that does not match, "
        "a cast of the whole model. The model still produces text, only worse. Compare "
        "the named parameters with the original file. Unusual values alone do not "
        "raise this; what begins with `hint:` is no sign of damage by itself. Where "
        "the whole network is as before training, LYA020 is said instead.",
    ),
    FindingKind(
        "LYA009",
        "errors unlike rounding",
        WARNING,
        "Of an audit: a sublayer's output at some token is more than 6 times as far "
        "from exact arithmetic as random roundings of the declared stores put it, root "
        "mean square over the output, and still within its certified bound. A right "
        "implementation stays near 1 and reaches 3 on hard inputs. Either its "
        "roundings all push one way (a constant input, a state that stagnates), or "
        "something is held in a lower precision than declared: a state in 16 bits, "
        "tf32 products, another epsilon. Look at the named sublayer's stored tensors, "
        "and give them in a dump: with them the bounds are sharper.",
    ),
    FindingKind(
        "LYA010",
        "worse than the baseline",
        ERROR,
        "A figure grew beyond a factor of 1.25 of what the report given by --baseline "
        "says for the same tokens and the same execution: the measured divergence, "
        "KL, changed top tokens, a certified bound, elements without one, or any "
        "violation more. The "
        "figures are deterministic on one machine; another machine or library "
        "version may move the last digits and a token near a tie, which the factor "
        "allows. Look at what changed between the two: the checkpoint's files, the "
        "version of lyapunov-check, of JAX, or of the implementation. If the change "
        "is wanted, write the new report as the baseline.",
    ),
    FindingKind(
        "LYA011",
        "decode ignores the limits of dt",
        WARNING,
        "The checkpoint limits dt (time_step_limit or dt_limit). "
        "The scans that read a prompt apply the limits; the "
        "steps that generate, of mamba_ssm and of transformers alike, do not. Where "
        "dt leaves the range on these tokens, a token that is read and the same token "
        "generated pass through different functions, in every precision. The fp64 "
        "reference of this check applies the limits in both modes; with --mode decode "
        "LYA018 says how far the steps are from it. Compare the logits of prefill and "
        "of steps on your own text; an implementation that limits dt in both is the "
        "remedy.",
    ),
    FindingKind(
        "LYA012",
        "training computes another function",
        WARNING,
        "Falcon Mamba normalises dt before dt_proj. The fused kernel that transformers "
        "calls in train mode (mamba_inner_fn of mamba_ssm) normalises it behind "
        "dt_proj instead, over all channels: another function of the same weights, in "
        "every precision. A model that is fine-tuned so is trained as one network and "
        "served as another. This check covers the function of inference. Train "
        "without the fused kernel, and compare losses in train and in eval mode.",
    ),
    FindingKind(
        "LYA013",
        "longer than the kernels' offsets reach",
        WARNING,
        "Kernels of mamba_ssm 2.3.2 multiply the index of a token or of a chunk by a "
        "stride in 32 bits. Past 2^31 the product wraps, and the kernel reads and "
        "writes elsewhere: a crash, or finite and wrong output without a word "
        "(state-spaces/mamba issue 1015, open). The length follows from the sizes of "
        "the layers and from the number of sequences at once, since they share one "
        "offset. Nothing emulated here wraps, so no other figure of this report shows "
        "it. Read the prompt in parts and pass the state on, or fewer sequences at "
        "once.",
    ),
    FindingKind(
        "LYA014",
        "adapter without gradient",
        WARNING,
        "The adapter changes modules whose weights the implementation reads directly "
        "instead of calling them, so that what PEFT wraps around them takes no part: "
        "no effect in training, and no gradient. That is so for some modules on every "
        "path and for others in the fused kernels of training only. Their lora_B "
        "stays at zero, or, where an adapter was trained otherwise, its merged model "
        "differs from the unmerged one. Look whether lora_B of these modules is zero; "
        "train without the fused kernels (slower, more memory), or take other "
        "targets.",
    ),
    FindingKind(
        "LYA015",
        "execution lost",
        ERROR,
        "The logits of the execution say nothing of the reference's: all of them are "
        "equal at half of the tokens or more (a norm whose input overflows when it is "
        "squared gives zeros), or their error, relative to the logits, is 0.9 or more "
        "(logits of zeros have 1), or the mean KL is 1 nat or more (e times the "
        "perplexity). Every value may be finite and every bound may hold: a bound that "
        "is infinite holds nothing. Look at the first layer whose values are huge: a "
        "scale of a quantised tensor that was lost, a norm's weight, a tensor of "
        "another layout. If the weights are as they should be, this format does not "
        "run this checkpoint; take one with more range or more bits.",
    ),
    FindingKind(
        "LYA016",
        "worse than a guess",
        ERROR,
        "The fp64 reference predicts this text worse than a uniform guess over the "
        "vocabulary would, by more than the standard error of its loss. That is the "
        "checkpoint's own function, in exact arithmetic: no precision is at fault, and "
        "every figure on rounding is about a network that does not work. Tensors that "
        "were zeroed, swapped, transposed, negated, shifted or written in another "
        "layout do this, and so does a text that the model was not made for (another "
        "language, another tokenizer's ids). Compare the file with its original, and "
        "the loss with the one that its authors publish. A network that was not "
        "trained yet lies near the guess and is called untrained instead (LYA020).",
    ),
    FindingKind(
        "LYA017",
        "worse than the text's frequencies",
        WARNING,
        "The fp64 reference predicts this text worse than somebody would who knows "
        "how often each token comes and nothing else, by more than the standard "
        "error. A trained language model is far better on text of its kind, from some "
        "tens of tokens on. Part of the network may be lost (a parameter zeroed or "
        "read in another convention, a layer that adds nothing), training may have "
        "just begun, or the text is not of its kind. Compare the loss with the one "
        "that the model's authors publish, or give a text that it was made for.",
    ),
    FindingKind(
        "LYA018",
        "another function than the model's",
        WARNING,
        "The implementation that was run, or is followed, limits dt otherwise than the "
        "checkpoint's config says, so that it computes another function of the same "
        "weights, in every precision. transformers (to 5.24) limits dt from below at "
        "time_step_min in Nemotron-H and Zamba2 when it reads a whole sequence, where "
        "the publishers' code goes by time_step_limit; no implementation limits dt in "
        "the steps that generate. The message says how far the logits of the two "
        "functions are apart, both in fp64; roundings are held to the bounds of the "
        "implementation's own function, so this is no violation. Compare the distance "
        "with what the precision does. Where it is larger, take an implementation that "
        "limits dt as the config says; neither of the two is a bug of rounding.",
    ),
    FindingKind(
        "LYA019",
        "adapter reaches part of the network",
        WARNING,
        "The adapter changes some of the recurrent sublayers or none, or its settings "
        "name modules that the base has not, or for which it has no weights, or "
        "updates are zero (lora_B before training). PEFT passes over a name that "
        "matches nothing as long as another matches: lists of targets made for "
        "another family (gate_proj in a network whose MLP has no gate, q_proj alone "
        "in a hybrid with few attention layers) train a small share of the network "
        "without a word. Where that is meant, ignore this code; else compare "
        "target_modules with the names of the base's modules, and look in the "
        "report's coverage for what was reached.",
    ),
    FindingKind(
        "LYA020",
        "looks untrained",
        WARNING,
        "Norms, D and matrices of every sublayer are as a constructor makes them: "
        "weights of norms and D are exactly 1, matrices have the fourth moment of a "
        "normal or uniform draw. This is a network made from a config, or a file that "
        "was written before anything was loaded into it. Bounds and exponents are "
        "right, and say nothing about a trained model; its loss is not judged. If a "
        "trained model was meant, look at how the weights were loaded: transformers "
        "names keys that it had to initialise anew.",
    ),
    FindingKind(
        "LYA021",
        "logits unlike rounding",
        ERROR,
        "Of an audit of a dump that has a run's logits and no sublayers: at some token "
        "the logits are more than 6 times as far from the fp64 reference as random "
        "roundings of the declared stores put them, beyond what rounding the weights "
        "does. That is an estimate (T3) and no bound; a right run stays near 1. "
        "Another checkpoint, shifted positions, a state or a cache that was lost, "
        "sampling parameters that a server applies before it returns logits "
        "(temperature, penalties, masks), log-probabilities called logits, or a lower "
        "precision than the dump says, do this; so does a router that chooses other "
        "experts, which moves logits by jumps. The message says from which token on, "
        "and what the difference looks like. Dump sublayers, too: they are held to "
        "certified bounds, and the first one that is wrong is named.",
    ),
    FindingKind(
        "LYA022",
        "stored keys can expand",
        WARNING,
        "A delta rule erases the share beta |k|^2 of what a key reads. Up to 2 no step "
        "expands; a sigmoid beta stays at 1 and below, and cannot in any format. Where "
        "beta is twice a sigmoid (linear_allow_neg_eigval) and the execution stores "
        "normalised keys in 16 bits, a key whose norm was rounded up makes "
        "beta |k|^2 - 1 exceed 1: by up to 1.6e-2 a token in bf16, 2e-3 in fp16. If "
        "the decay does not pay for it, the state grows along that key. Random keys "
        "cancel; the same key again and again (padding, runs of one token, tables) "
        "compounds, e-fold in a few hundred tokens. The message names the tokens and "
        "bounds the growth over the worst stretch of them; below a factor of 2 it is "
        "a hint. Kernels that normalise keys in fp32 registers, as those of decoding, "
        "do not do this; else run in fp16 or fp32, or keep such runs short.",
    ),
    FindingKind(
        "LYA023",
        "hand-over is no copy",
        ERROR,
        "Of an audit of a dump that has states and windows: what a call began with is "
        "not what the call before it left. Between calls a server copies bytes, so "
        "that a single bit is no rounding: a state that was lost, a block of the cache "
        "that another request has written or still holds, the state of a draft token "
        "that was rejected, a resumed request that goes on from an old state, a window "
        "in another format than was declared. Through a store of 8-bit integers half a "
        "step of a row is allowed. The message names the calls, the kind of hand-over, "
        "the first layer, and what the wrong state is, where the dump knows it. Look "
        "at the server's block table around that call; if the format of the window is "
        "told, give it (window_precision) or mend the server's option.",
    ),
    FindingKind(
        "LYA024",
        "quantised weights are not as told",
        WARNING,
        "Of a quantised checkpoint: its configuration and its tensors disagree about "
        "what was quantised, or a server makes other weights of them. An entry of the "
        "list of what was to be left alone (ignore, exclude_modules, "
        "modules_to_not_convert) that names no module protects nothing: a typing "
        "error, or a name of another library's tree; a server that goes by the list "
        "may take a plain matrix for codes. A module on the list that is stored as "
        "codes is read here as the tensors say. Matrices that vLLM joins into one "
        "(q, k, v; gate and up) and that have an FP8 scale each are rounded once more "
        "under the largest when they are loaded, which is a hint: half a step of FP8 "
        "at most; of NVFP4 the largest scale is taken for all, so that the others are "
        "off by a factor. Quantise such matrices with one scale together. Scales of "
        "activations that the configuration doesn't ask for are not read, a hint.",
    ),
    FindingKind(
        "LYA025",
        "activations are clipped",
        WARNING,
        "What a product of matrices reads is quantised under a scale that doesn't look "
        "at the values (static, a checkpoint's input_scale), and values stand at its "
        "end: whatever is larger is read as the largest code. Outliers of few channels "
        "carry much of what such a network computes, so that a small share can do most "
        "of the harm. A share below 1e-3 is a hint: the value that a scale was "
        "calibrated on stands there as well. Give a larger scale, calibrate on text "
        "like this one, or let the scale follow each token (fp8_e4m3-token).",
    ),
)

CATALOGUE: dict[str, FindingKind] = {kind.code: kind for kind in _KINDS}


def finding_of(code: str, layer: int | None, message: str, *more: Any) -> Finding:
    """A finding with the severity that the catalogue gives its code.

    **Arguments:**

    - `more`: value, limit and precision, as far as there are any.
    """
    return Finding(code, CATALOGUE[code].severity, layer, message, *more)


DOUBTS = frozenset(
    (
        *("LYA008", "LYA011", "LYA013", "LYA014"),
        *("LYA016", "LYA017", "LYA018", "LYA019", "LYA020"),
    )
)
"""Codes that doubt the checkpoint, the adapter or the function that was checked; the
others tell what rounding does. No verdict reads HELD above one of these."""
