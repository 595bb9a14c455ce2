"""What the words of a report mean: for `--explain WORD`, and for the documentation."""

from typing import NamedTuple

from lyapunov.formats._table import PRECISIONS
from lyapunov.implementations._ways import KINDS as WAYS
from lyapunov.sublayers.kinds import KINDS


class Word(NamedTuple):
    """One thing with a name, or several, and what it is."""

    names: tuple[str, ...]
    """As they are printed, the shortest first."""
    text: str


GLOSSARY = (
    Word(
        ("λ", "exponent", "exponents", "λ max", "λ min", "exp", "exp max", "exp min"),
        "Lyapunov exponent, in nats per token: the growth rate of a perturbation of a "
        "layer's state along the tokens given, inputs held fixed. Below 0 one "
        "perturbation is forgotten. It does not say that rounding is small: rounding "
        "injects an error at every token. λ max and λ min are the largest and the "
        "smallest over channels and states; ± is a standard error for similar text.",
    ),
    Word(
        ("β", "beta", "rate", "key", "gate", "write"),
        "Of a delta rule: a state fades by its gate, is read at the token's key, and "
        "the share β |k|² of what is read gives way to the value: that is a write, and "
        "β its rate, a sigmoid or twice one.",
    ),
    Word(
        ("λ max ≥", "λ max ≤", "bracket", "least left", "delta rule"),
        "Of a delta rule, whose steps (1 - β k k') D on the keys of a head do not "
        "commute, exponents are no means of decays. The largest is the growth of the "
        "direction that grows most over the text, and lies for certain between these: "
        "the mean log determinant over the number of keys, and the mean of the largest "
        "log decay (more where β |k|² exceeds 2). Least left is the least share "
        "|1 - β |k|²| of what a key reads that a write leaves; the smallest exponent "
        "measures nothing else: the epsilon of the keys' norm, and the format in which "
        "β becomes 1. It is -inf only where a step is singular. Exponents known by "
        "their sums alone are of directions that fp64 does not tell apart at some "
        "token: their mean stands for each, and the smallest is at most that. Decays "
        "are the gates.",
    ),
    Word(
        ("coordinates", "no.", "method", "trajectory"),
        "Of exponents alone: how many coordinates of the state share one, its place "
        "from the largest down, how they were computed, and of how many tokens.",
    ),
    Word(
        ("memory", "memory p50", "memory p90", "memory max"),
        "After how many tokens a factor e of the state is left: -1 / exponent. p50 and "
        "p90 are percentiles over channels and states; a star: some remember for "
        "longer than the text is long.",
    ),
    Word(
        ("decay", "decay min", "decay max"),
        "exp(dt A), what is left of the state after one token. 1-4e-5 is 1 less 4e-5.",
    ),
    Word(
        ("dt", "dt min", "dt mean", "dt max"),
        "Time step of a selective recurrence, softplus of a projection of the token.",
    ),
    Word(
        ("|state| max", "|output| max", "largest stored"),
        "Largest magnitudes, to be compared with the largest number of a format: "
        "65504 in fp16, 448 in fp8_e4m3.",
    ),
    Word(
        ("gain", "+1", "1 token later", "farthest", "growth of perturbations"),
        "How one perturbed token grows through a sublayer that has no exponent, beside "
        "those that have: gain is the relative change of the stream behind the "
        "sublayer for one in front of it; +k is what it adds to the stream k tokens "
        "later. Medians over the sublayers of a kind.",
    ),
    Word(
        ("checkpoint", "network", "audited"),
        "What was looked at: the folder, file or Hub repository; its family, size and "
        "stored format; of an audit also who ran it.",
    ),
    Word(
        PRECISIONS,
        "Formats of weights and activations. bf16 has 8 significant bits and the range "
        "of fp32; fp16 has 11, and ends at 65504. With -cast A_log and D are cast as "
        "well; with -amp weights stay in fp32 under torch's autocast.",
    ),
    Word(
        tuple(KINDS),
        "Kinds of sublayers: selective recurrences of the Mamba papers, delta rules "
        "(Gated DeltaNet, Kimi Delta Attention), attention, MLPs, mixtures of experts, "
        "and Zamba's block that several places share.",
    ),
    Word(
        ("#", "layer", "layers", "kind", "module", "sublayer", "sublayers", "note"),
        "A row is a sublayer: one mixer, attention, MLP or mixture of experts with the "
        "norm before it. Sublayers are counted from 0; a layer of config.json may hold "
        "several. module is where the network has it.",
    ),
    Word(
        ("rel L2", "local", "local L2", "local max"),
        "Measured: how far the execution's output of a sublayer is from the "
        "reference's on the same input, L2 over all tokens and channels, relative to "
        "the reference. Of logits: after each token's mean, which softmax does not "
        "see, is taken away.",
    ),
    Word(
        ("accumulated", "accumulated L2"),
        "Measured against the reference's own run from the text on: errors of earlier "
        "sublayers are in it.",
    ),
    Word(
        ("weights alone L2",),
        "How far rounding the weights alone moves a sublayer's output: computed, not "
        "estimated.",
    ),
    Word(
        ("T0", "T0 bound/measured"),
        "Certified bound of one operation, all between two stored tensors, on what the "
        "execution itself fed into it; shown over what was measured, the smallest of "
        "the sublayer's tensors.",
    ),
    Word(
        ("T1", "T1 bound/measured", "T1 bound L2", "T1 radius L2", "bound"),
        "Certified bound of a sublayer's output on the execution's own input, shown "
        "over what was measured: 2.0× means that no execution of the declared kind "
        "is more than twice as far off as this one was. It holds for any scan order "
        "within the declared depth, any fused multiply-add, any device that meets the "
        "constants listed as assumptions. Below 1 it would be violated.",
    ),
    Word(
        ("viol", "above bound", "elements", "without a finite bound", "no bound"),
        "Elements that differ from the reference by more than their certified bound: "
        "more than 0 is no rounding. A star: some elements have no finite bound, and "
        "neither hold nor violate; a dash: none has one.",
    ),
    Word(
        ("floor", "free roundings"),
        "The largest error that a search for signs of the roundings found, over the "
        "measured one. No bound that lets every rounding choose its sign can be "
        "smaller. T1 may lie below it, since it does not let stored tensors choose: "
        "it knows which way they were rounded. Of --effort full.",
    ),
    Word(
        ("bound lost", "bound lost at", "share of radius", "certified radius"),
        "The store whose operations cost the T1 radius most, and its share: where a "
        "sharper rule would pay.",
    ),
    Word(
        ("error from", "share of variance"),
        "Which sublayers and stores the predicted variance at the logits comes from.",
    ),
    Word(
        ("stagnation",),
        "Share of the state's updates below half a unit in its last place: they are "
        "rounded away, and the tokens leave no trace (LYA007).",
    ),
    Word(
        ("logits", "max"),
        "The output before softmax, against the fp64 reference's. max: the largest "
        "difference of one logit.",
    ),
    Word(
        ("KL", "KL mean", "KL max"),
        "Kullback-Leibler divergence of the execution's next-token distribution from "
        "the reference's, in nats a token.",
    ),
    Word(
        ("flips", "ties", "of", "tokens"),
        "flips: positions whose most likely token is another than in the reference, of "
        "equal logits the lowest index on both sides. ties: changes between exactly "
        "equal leaders of the reference, counted apart. of: all positions.",
    ),
    Word(
        ("margin", "margin at"),
        "The reference's largest logit less its second, at quantiles over tokens: a "
        "small margin flips under any rounding.",
    ),
    Word(
        ("T3", "predicted", "sigma", "1 sigma", "probe", "probes"),
        "An estimate of the distance of the logits: runs with random roundings "
        "(probes), and what rounding the weights alone does. Withheld where z is not "
        "between 0.7 and 1.3.",
    ),
    Word(
        ("z", "z, rms", "z at token"),
        "How far a run is, over what random roundings of its stores are expected to "
        "do, root mean square: near 1 where they behave at random. In an audit the "
        "largest at any token; above 6 is suspicious (LYA009).",
    ),
    Word(
        ("T2", "worst case"),
        "An estimate of the largest distance of the logits that roundings can make, to "
        "first order. Of --effort full.",
    ),
    Word(
        ("T4", "certified"),
        "Certified from the text on: through how many sublayers the ball that holds "
        "every execution of the declared kind stays smaller than the stream, and "
        "which top tokens no rounding can change. Of --effort full.",
    ),
    Word(
        ("top tokens", "predicted stable", "certified stable", "4 sigma"),
        "Tokens whose leader keeps 4 predicted standard deviations from every other "
        "(an estimate), or a certified distance; flipped: those that changed all the "
        "same.",
    ),
    Word(
        ("position",),
        "Mean KL of the last quarter of the positions over that of the first: whether "
        "the error grows along the text.",
    ),
    Word(("texts",), "Least, median and most over the sequences of a batch."),
    Word(
        ("cause",),
        "What limits the state's format: range, mantissa or stagnation.",
    ),
    Word(
        ("loss", "uniform guess", "bits a token", "the text's frequencies"),
        "Of the fp64 reference on this text, beside what guessing, and counting how "
        "often each token comes, would need. A checkpoint that is worse than a guess "
        "is an error, whatever else holds (LYA016).",
    ),
    Word(
        ("reference", "fp64 reference"),
        "The checkpoint's function in double precision, which everything else is "
        "compared with.",
    ),
    Word(
        ("execution", "precision", "emulated", "measured by", "state", "declared kind"),
        "Who computes in the lower precision and how: a format for every stored "
        "tensor, and constants for the arithmetic between them. The declared kind is "
        "every computation that keeps these promises. emulated: the emulator follows "
        "mamba_ssm's flow.",
    ),
    Word(
        ("mode", "prefill", "decode"),
        "Which of an implementation's two programs an execution declares (--mode), "
        "each with formats and constants of its own: prefill takes many tokens in one "
        "call; decode one token a call, from a state that is held in a cache.",
    ),
    Word(
        ("way", *WAYS),
        "Of an audit: how a text is cut into calls and what stands around it (--way). "
        "Each call is in one of the modes: whole is one prefill, steps are decode, "
        "chunks are prefills that hand their state on. In exact arithmetic all ways "
        "give the same numbers, so that what tells them apart is rounding or a bug. "
        "A check follows one mode, as whole or by steps.",
    ),
    Word(
        ("HELD", "BOUNDS HELD, BUT", "EXPONENTS NEGATIVE, BUT", "MEASURED, BUT", "BUT"),
        "HELD: every bound held and every exponent is negative; nothing that was "
        "selected counts against it. BUT: so it is, and a warning doubts the "
        "checkpoint, the adapter or the function that was checked.",
    ),
    Word(
        ("FINDINGS",),
        "Something failed: a finding at or above --fail-on. The exit code is 1.",
    ),
    Word(
        ("MEASURED",),
        "As a verdict: --effort quick looked for no bounds, and nothing was found. Of "
        "logits: the relative L2 distance from the reference's, as the execution was "
        "run.",
    ),
    Word(
        ("INCOMPLETE", "UNBOUNDED", "NOTHING TO HOLD", "NOTHING NEW"),
        "INCOMPLETE: sublayers were skipped. UNBOUNDED: fewer than half of the "
        "elements, or of some sublayers' outputs, have a finite bound. Both exit with "
        "2 unless --allow-partial. NOTHING TO HOLD: no recurrence, and nothing was "
        "measured. NOTHING NEW: the baseline has these findings as well.",
    ),
    Word(
        ("effect L2", "effect max", "bound L2", "bound/effect", "weights moved"),
        "Of changed weights, in exact arithmetic: what the change does to a sublayer "
        "on the base's own input, and the certified bound for every weight set that is "
        "elementwise as close.",
    ),
    Word(
        ("reference L2", "stderr", "± stderr"),
        "Norm of the reference's output; standard error of the largest exponent.",
    ),
    Word(
        ("of bound", "run", "verdict", "first at", "stores, of bound"),
        "Of an audit: the way that was run (run), the largest distance over its "
        "certified bound (of bound; above 1 is no rounding), and where it is first "
        "exceeded. rounding, suspicious, bug, in range, unbounded and not run are its "
        "verdicts.",
    ),
    Word(
        ("against", "output, of bound"),
        "Of an audit: what the logits are compared with, and a sublayer's output "
        "over its bound.",
    ),
    Word(
        (
            *("cold", "warm", "runs", "programs", "stage", "effort"),
            *("weights", "device", "devices"),
        ),
        "Of a plan: seconds with compiling (cold) and with what an earlier run kept "
        "(warm); runs: forwards in fp64; programs: what XLA compiles; weights: bytes "
        "of the checkpoint; devices: over how many a batch is spread.",
    ),
)

_BY_NAME = {name.casefold(): word for word in GLOSSARY for name in word.names}


def explained(name: str) -> Word | None:
    """The entry of a word as it is printed; None for one that there is not."""
    return _BY_NAME.get(" ".join(name.split()).casefold())
