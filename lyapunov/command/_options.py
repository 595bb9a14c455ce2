"""The options, each declared once: what click reads, who looks at it, what it becomes.

A new option is a field here, and what reads it. One with `argument` goes to `check` or
`audit` under that name by itself. Nothing heavy is imported before the work.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lyapunov.command import _declare
from lyapunov.command._block_options import BlockOptions
from lyapunov.command._declare import (
    AUDIT,
    BLOCKS,
    CHECK,
    CHECKED,
    DUMP,
    EVERY,
    INPUT,
    OF_A_CHECK,
    OF_A_MODEL,
    OF_A_TEXT,
    OF_CHECKPOINTS,
    OUTPUT,
    PLAN,
    RANK,
    SHOW,
    VERDICT,
    option,
)
from lyapunov.command._measure import MeasureChoice
from lyapunov.command._refusals import refuse
from lyapunov.formats._operand_table import ACTIVATIONS_TOLD
from lyapunov.formats._table import PRECISIONS, STATE_PRECISIONS, STATE_PRECISIONS_TOLD
from lyapunov.formats._weight_table import formats_in_words
from lyapunov.implementations._registry import (
    gpu_names,
    is_recorded,
    source_names,
)
from lyapunov.questions._effort import EFFORTS
from lyapunov.sublayers.groups import GROUPS as WEIGHT_GROUPS


CODES = "Codes or their beginnings, as LYA004 or LYA; repeatable, or with commas."


@dataclasses.dataclass(frozen=True)
class Options(BlockOptions):
    """Everything that was typed, in the types that the work expects.

    **Raises:** `LyapunovError` for what goes together with nothing here, and for what
    cannot be read or written: before the long work.
    """

    revision: str | None = option(
        INPUT, of=OF_CHECKPOINTS, help="Branch, tag or commit."
    )
    tokens: str | None = option(
        INPUT,
        of=OF_A_TEXT,
        metavar="FILE|random",
        shell_complete=_declare.paths,
        help="A .npy of integers, (seq) or (batch, seq); a text file; or random ids.  "
        "[default: English text where there is a tokenizer, else random]",
    )
    tokens_are_text: bool = option(
        INPUT,
        of=OF_A_CHECK,
        is_flag=True,
        help="The ids of a .npy are text, so that the loss on them is judged.",
    )
    text: str | None = option(
        INPUT, of=OF_A_TEXT, help="A text to check on, where there is a tokenizer."
    )
    length: int | None = option(
        INPUT,
        of=(*OF_A_TEXT, BLOCKS),
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens a sequence.  [default: the file's, else 512]",
    )
    batch: int | None = option(
        INPUT,
        of=(*OF_A_TEXT, BLOCKS),
        type=click.IntRange(min=1),
        metavar="N",
        help="Sequences, each another passage, spread over all devices that there are. "
        " [default: the file's, else 1]",
    )
    seed: int = option(
        INPUT,
        of=EVERY,
        argument="seed",
        default=0,
        type=click.IntRange(min=0),
        metavar="N",
        help="Of random tokens and probes.",
    )
    precision: tuple[str, ...] = option(
        CHECKED,
        of=(*OF_A_MODEL, BLOCKS),
        argument="precisions",
        multiple=True,
        type=click.Choice(PRECISIONS),
        callback=_declare.each_once,
        metavar="FORMAT",
        help=f"One of {', '.join(PRECISIONS)}: with -cast A_log and D are cast as "
        "well, with -amp weights stay fp32 under autocast; repeatable.  "
        "[default: bf16 and fp16]",
    )
    state_precision: str | None = option(
        CHECKED,
        of=(*OF_A_MODEL, BLOCKS),
        argument="state_precision",
        type=click.Choice(STATE_PRECISIONS),
        metavar="FORMAT",
        help=f"Of the recurrent state in its cache: {STATE_PRECISIONS_TOLD}.  "
        "[default: the implementation's]",
    )
    mode: str = option(
        CHECKED,
        of=(*OF_A_CHECK, BLOCKS),
        argument="mode",
        default="prefill",
        type=click.Choice(("prefill", "decode")),
        help="The whole sequence at once, or step by step.",
    )
    layers: tuple[int, ...] | None = option(
        CHECKED,
        of=(*OF_A_CHECK, BLOCKS),
        argument="layers",
        callback=_declare.layers,
        metavar="LIST",
        help="Sublayers to check, as 0,3-7.  [default: all]",
    )
    measure: str = option(
        CHECKED,
        of=(*OF_A_CHECK, BLOCKS),
        argument="measure",
        default="emulated",
        type=MeasureChoice(),
        help="What runs in the lower precision: the emulator of mamba_ssm's flow, "
        "another implementation "
        f"({', '.join(gpu_names())} need a GPU), or nothing. Names of servers take "
        "their flags, as 'vllm_emulated -tp 2'.",
    )
    constants: str = option(
        CHECKED,
        of=(*OF_A_CHECK, BLOCKS),
        argument="constants",
        default="documented",
        type=click.Choice(("documented", "measured")),
        help="Of the arithmetic between stores: what documents promise of every GPU, "
        "or what all fp32 arguments gave on an H200.",
    )
    effort: str = option(
        CHECKED,
        of=(*OF_A_CHECK, BLOCKS),
        argument="effort",
        default="standard",
        type=click.Choice(tuple(EFFORTS)),
        help="quick is exponents, what was measured, the prediction (T3) and advice, "
        "without any bound; standard adds T0 and T1; full adds the floor, T2 and T4, "
        "takes four probes and follows perturbations through every sublayer.",
    )
    against: str | None = option(
        CHECKED,
        of=OF_A_CHECK,
        argument="against",
        metavar="OTHER",
        shell_complete=_declare.paths,
        help="Hold another checkpoint of the same network, or a folder with a LoRA "
        "adapter, against this one.",
    )
    round_weights: tuple[str, ...] = option(
        CHECKED,
        of=OF_A_CHECK,
        argument="round_weights",
        multiple=True,
        callback=_declare.groups,
        metavar="FORMAT[:GROUP]",
        help="Hold this one against itself with weights rounded, as bf16:A_log, or as "
        "quantisers do: int8, fp8_e4m3. Formats: "
        f"{formats_in_words()}. Groups: {', '.join(WEIGHT_GROUPS)}, a kind of "
        "sublayer, or a parameter; repeatable.",
    )
    rank_weights: str | None = option(
        CHECKED,
        of=(RANK,),
        argument="format",
        callback=_declare.group,
        metavar="FORMAT[:GROUP]",
        help="Which matrices should stay in 16 bits: rank all by what quantising each "
        "does at the logits, predicted by one reverse pass, the first ones measured; "
        "with the list of those to ignore. Formats as of --round-weights.",
    )
    quantise_activations: str | None = option(
        CHECKED,
        of=OF_A_CHECK,
        argument="quantise_activations",
        callback=_declare.operand,
        metavar="FORMAT",
        help="Of --measure emulated: quantise what products of matrices read, as W8A8 "
        f"and W4A4 do. One of {ACTIVATIONS_TOLD}. Left out: as the checkpoint's "
        "configuration has it, as far as it is known; config: the same, or an error.",
    )
    source: str | None = option(
        CHECKED,
        "--audit",
        of=(AUDIT, DUMP),
        argument="source",
        metavar="SOURCE",
        help="Rounding or bug? Run the text whole, by steps, in chunks, padded and in "
        f"a batch, each held to its bounds: {', '.join(source_names())} or a dump, "
        "FILE.npz or .safetensors.",
    )
    way: tuple[str, ...] = option(
        CHECKED,
        of=(AUDIT, DUMP),
        argument="variants",
        multiple=True,
        metavar="NAME",
        help="Of --audit: run the text so, as steps, chunks:61,rest or compiled (by "
        "torch.compile); repeatable.  [default: all but compiled]",
    )
    reproduce: Path | None = option(
        CHECKED,
        of=(AUDIT,),
        type=click.Path(path_type=Path),
        metavar="FILE.py",
        help="With --audit transformers: write what was found wrong as a script that "
        "needs torch and transformers alone.",
    )
    device: str | None = option(
        CHECKED,
        of=(*OF_A_CHECK, RANK, BLOCKS),
        argument="device",
        metavar="NAME",
        help="The one where it runs, as gpu:1.  [default: JAX's first, and all for a "
        "--batch]",
    )
    distributed: str | None = option(
        CHECKED,
        of=EVERY,
        metavar="JOB",
        help="Share the checkpoints with the other processes of a job, a GPU each, of "
        "one host or several; the first gives one report. auto is what srun or mpirun "
        "say, else HOST:PORT,PROCESS/PROCESSES, with the first one's address.",
    )
    show: Path | None = option(
        INPUT,
        of=(SHOW,),
        type=click.Path(path_type=Path),
        metavar="REPORT",
        help="Show a .json of an earlier run, or write it in other forms (-o).",
    )
    plan_alone: bool = option(
        CHECKED,
        "--plan",
        of=(PLAN, RANK),
        is_flag=True,
        help="Say what time and memory a check would take, and stop.",
    )
    fail_on: str = option(
        VERDICT,
        argument="fail_on",
        default="error",
        type=click.Choice(("error", "warning")),
        help="Lowest severity that makes the exit code 1.",
    )
    select: tuple[str, ...] = option(
        VERDICT,
        argument="select",
        multiple=True,
        callback=_declare.codes,
        metavar="CODE",
        help=CODES,
    )
    ignore: tuple[str, ...] = option(
        VERDICT,
        argument="ignore",
        multiple=True,
        callback=_declare.codes,
        metavar="CODE",
        help="Codes that do not count; the longer of two matches wins.",
    )
    baseline: Path | None = option(
        VERDICT,
        of=(CHECK,),
        type=click.Path(path_type=Path),
        metavar="REPORT",
        help="An earlier .json of the same checkpoint and tokens: what grew by more "
        "than a quarter is an error, and of the other findings only new ones count.",
    )
    exit_zero: bool = option(
        VERDICT,
        argument="exit_zero",
        is_flag=True,
        help="Exit code 0 in spite of findings.",
    )
    allow_partial: bool = option(
        VERDICT,
        of=OF_A_CHECK,
        argument="allow_partial",
        is_flag=True,
        help="Sublayers that were skipped are no failure.",
    )
    json_output: bool = option(
        OUTPUT,
        "--json",
        is_flag=True,
        help="One JSON document on stdout, errors included.",
    )
    output: tuple[Path, ...] = option(
        OUTPUT,
        *("-o", "--output"),
        of=(CHECK, AUDIT, DUMP, SHOW, RANK, BLOCKS),
        multiple=True,
        type=click.Path(path_type=Path),
        callback=_declare.each_once,
        metavar="FILE",
        help="Write the report, by suffix .json, .html, .md, .tex or .csv, or its "
        "figures: .pdf, .svg or .png; repeatable.",
    )
    annotations: str | None = option(
        OUTPUT,
        of=(CHECK, AUDIT, DUMP, SHOW, BLOCKS),
        type=click.Choice(("github",)),
        help="Write the findings on stderr, too, as GitHub shows them by a job.",
    )
    color: str = option(
        OUTPUT,
        default="auto",
        type=click.Choice(("auto", "always", "never")),
        help="NO_COLOR and FORCE_COLOR are heeded.",
    )
    no_progress: bool = option(OUTPUT, is_flag=True, help="No progress on stderr.")
    quiet: bool = option(
        OUTPUT,
        *("-q", "--quiet"),
        is_flag=True,
        help="Findings and verdict only; no progress.",
    )
    verbose: bool = option(
        OUTPUT, *("-v", "--verbose"), is_flag=True, help="Say more on stderr."
    )
    no_compile_cache: bool = option(
        OUTPUT,
        is_flag=True,
        help="Do not keep what is compiled for the next run (also "
        "LYAPUNOV_COMPILE_CACHE=0; -v says where it is).",
    )
    debug: bool = option(
        OUTPUT,
        is_flag=True,
        envvar="LYAPUNOV_DEBUG",
        help="A traceback with every error (also LYAPUNOV_DEBUG=1).",
    )

    @property
    def question(self) -> str:
        """Which question is asked, of those that options are declared for."""
        if self.show is not None:
            return SHOW
        if self.rank_weights is not None:
            return RANK
        if (asked := self.of_blocks) is not None:
            return asked
        if self.source is None:
            return PLAN if self.plan_alone else CHECK
        return DUMP if is_recorded(self.source) else AUDIT

    def __post_init__(self):
        refuse(self)

    @functools.cached_property
    def earlier(self) -> Mapping[str, Any] | None:
        """The report of `--baseline`, read once."""
        if self.baseline is None:
            return None
        from lyapunov.findings._baseline_file import read_baseline

        return read_baseline(self.baseline)

    # ---- what they become

    def arguments(self) -> dict[str, Any]:
        """What goes to the question's function; what was not said is its default."""
        return {
            said.argument: getattr(self, name)
            for name, said in _declare.declared(Options).items()
            if said.argument and self.question in said.of
            if getattr(self, name) or name not in ("precision", "way")
        }
