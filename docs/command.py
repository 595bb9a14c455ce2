"""The page of the command line, from the options as they are declared."""

from docs.tables import plain


def command() -> dict[str, str]:
    """Every option with its text, by group, and the exit codes."""
    from lyapunov.command import _cli, _declare
    from lyapunov.command._options import Options

    context = _cli.main.make_context("lyapunov-check", [], resilient_parsing=True)
    params = {param.name: param for param in _cli.main.get_params(context)}
    said = _declare.declared(Options)
    parts = [
        "# The command",
        "```text\nlyapunov-check [OPTIONS] [CHECKPOINT]...\n```",
        "A folder, a file, or `org/name` of the Hugging Face Hub; without one, the "
        "bundled model.",
    ]
    groups = {
        g: [n for n, one in said.items() if one.group == g] for g in _declare.GROUPS
    }
    for title, names in (groups | {"Information": list(_cli.INFORMATION)}).items():
        parts.append(f"## {title}")
        for name in names:
            record = params[name].get_help_record(context) if name in params else None
            if record:
                parts.append(f"`{record[0]}`\n:   {plain(record[1])}")
    parts.append(
        f"## Exit codes\n\n```text\n{_cli.EPILOG.replace(chr(8), '').strip()}\n```"
    )
    return {"command.md": "\n\n".join(parts)}
