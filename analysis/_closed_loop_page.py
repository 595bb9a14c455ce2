"""The table and the figure of `analysis.closed_loop`."""

from pathlib import Path

import numpy as np

from studies.picture import pyplot, save


def table(result: dict) -> str:
    """Both parts in Markdown."""
    settings = result["settings"]
    lines = [
        "# A model that feeds on itself",
        "",
        f"`{result['command']}`. The theorem on exponents at most 0 (arXiv 2406.00209)",
        "holds the inputs of a layer fixed. Here the model's output is its next input:",
        "another map, outside the theorem. Nothing here follows from it or contradicts",
        "it.",
        "",
        "## Through the mean embedding under softmax(logits / temperature)",
        "",
        "Largest exponent of states, windows and embedding together, nats per token,",
        f"for {settings['prompts']} prompts, {settings['tokens']} tokens after "
        f"{settings['settle']} to settle.",
        "The layers alone, fed with a text, have exponents below 0: dt > 0 and A < 0.",
        chaotic(result["soft"]),
        "",
        "| temperature | exponent | standard error | embedding moves by |",
        "|---|---|---|---|",
    ]
    show = lambda values, form: ", ".join(format(x, form) for x in values)
    lines += [
        f"| {row['temperature']:g} | {show(row['exponents'], '+.3f')} | "
        f"{show(row['stderr'], '.3f')} | {show(row['embedding_moves'], '.2g')} |"
        for row in result["soft"]
    ]
    lines += [
        "",
        "## Through tokens: damage spreading",
        "",
        f"{settings['pairs']} pairs, states of one moved by a relative eps after "
        f"{settings['prompt_tokens']} tokens of text,",
        f"{settings['horizon']} tokens generated, the same random numbers for both; "
        "temperature 0 is argmax.",
        "Forced: the same damage under the same tokens, relative distance at the end:",
        "it fades. In the loop it fades as well until a token changes, which takes",
        "damage that moves logits by as much as they differ; from then on the two are",
        "as far apart as any two texts.",
        "",
        "| temperature | eps | pairs that part | at token (median) "
        "| tokens that differ after | distance after | forced |",
        "|---|---|---|---|---|---|---|",
    ]
    blank = lambda x, form: "" if x is None else format(x, form)
    lines += [
        f"| {row['temperature']:g} | {row['eps']:g} | {row['parted']} of {row['pairs']}"
        f" | {blank(row['first_token'], '.0f')}"
        f" | {blank(row['tokens_that_differ_after'], '.0%')}"
        f" | {blank(row['distance_after'], '.2f')} | {row['forced'][-1]:.1e} |"
        for row in result["damage"]
    ]
    shown = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    return "\n".join([*lines, "", shown, ""])


def chaotic(soft: list[dict]) -> str:
    """Where the exponent is above 0 beyond doubt, in words."""
    sure = [
        row["temperature"]
        for row in soft
        if all(
            x > 3 * error
            for x, error in zip(row["exponents"], row["stderr"], strict=True)
        )
    ]
    if not sure:
        return "At no temperature it is above 0 by three standard errors."
    shown = ", ".join(f"{t:g}" for t in sure)
    return (
        f"At temperatures {shown} it is above 0 by more than three standard\n"
        "errors for every prompt: two soft loops part, however near they start. At\n"
        "the lowest the map is nearly constant in pieces, and growth depends on rare\n"
        "steps; at the highest every prompt ends at a fixed point."
    )


def draw(result: dict, path: Path) -> None:
    """Exponent over temperature; distances over tokens, loop against forced."""
    figure, axes = pyplot().subplots(1, 3, figsize=(13, 4), layout="constrained")
    soft, rows = result["soft"], result["damage"]
    temperatures = [row["temperature"] for row in soft]
    for i in range(result["settings"]["prompts"]):
        axes[0].errorbar(
            temperatures,
            [row["exponents"][i] for row in soft],
            [2 * row["stderr"][i] for row in soft],
            marker="o", ms=4, lw=1, label=f"prompt {i + 1}",
        )  # fmt: skip
    axes[0].axhline(0, color="0.6", lw=0.8)
    axes[0].set(
        xscale="log",
        xlabel="temperature of the softmax",
        ylabel="largest exponent (nats per token)",
        title="soft loop",
    )
    axes[0].legend(frameon=False, fontsize=8)
    sizes = result["settings"]["damage"]
    widest = max(row["temperature"] for row in rows)
    for colour, eps in zip(("C0", "C1", "C2", "C3"), sizes, strict=False):
        mine = [row for row in rows if row["eps"] == eps]
        axes[1].plot(
            [row["temperature"] for row in mine],
            [100 * row["parted"] / row["pairs"] for row in mine],
            marker="o", ms=4, lw=1, color=colour, label=f"damage {eps:g}",
        )  # fmt: skip
        last = next(row for row in mine if row["temperature"] == widest)
        positive = lambda x: np.where(np.array(x) > 0, x, np.nan)
        axes[2].semilogy(positive(last["distance"]), color=colour, lw=1)
        axes[2].semilogy(positive(last["forced"]), color=colour, lw=1, ls=":")
    axes[1].set(
        xlabel="temperature of the draws (0: argmax)",
        ylabel=f"pairs that part within {result['settings']['horizon']} tokens (%)",
        title="tokens: damage that spreads",
        ylim=(-3, 103),
    )
    axes[1].legend(frameon=False, fontsize=8)
    axes[2].plot([], [], color="0.4", label="own tokens (median)")
    axes[2].plot([], [], color="0.4", ls=":", label="the same tokens")
    axes[2].set(
        xlabel="tokens after the damage",
        ylabel="relative distance of the states",
        title=f"at temperature {widest:g}",
    )
    axes[2].set_ylim(bottom=1e-9)
    axes[2].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, path)
