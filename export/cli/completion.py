"""`plaudit completion`."""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from embed.cli.app import completion_script, load
from embed.cli.arguments import arguments_of
from embed.options import literals_of

SCRIPT = """\
# Completes plaudit's commands, options and values in bash. If none of these fit, files are completed.
_plaudit() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" given words=""
    given="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}"
    [[ "${{COMP_WORDS[1]}}" =~ ^({own})$ ]] && given="${{COMP_WORDS[1]}}"
    case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
        1:*) words="{first}" ;;
{second}
        *)
            case "$given $before" in
{values}
                *)
                    case "$given" in
{options}
                    esac ;;
            esac
            [[ "$word" != -* && "$words" == -* ]] && words="" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _plaudit plaudit
"""


def completion(shell: Literal["bash", "zsh", "fish"], /) -> dict[str, object]:
    """Print a script that completes plaudit's commands and options in a shell.

    For zsh write it to a file `_plaudit` in a folder of $fpath, and for fish to
    ~/.config/fish/completions/plaudit.fish.

    Example:
        plaudit completion bash > ~/.local/share/bash-completion/completions/plaudit

    Args:
        shell: The shell.
    """
    from plaudit import COMMANDS, PACKAGES

    packages = {package: importlib.import_module(f"{package}.cli.main").COMMANDS for package in PACKAGES}
    if shell == "bash":
        script = script_for(packages, COMMANDS)
    else:
        of_packages = {f"{package} {name}": path for package, all in packages.items() for name, path in all.items()}
        about = {package: importlib.import_module(f"{package}.cli.main").ABOUT for package in PACKAGES}
        script = completion_script({**COMMANDS, **of_packages}, about, shell)
    print(script, end="")
    return {"shell": shell, "script": script}


def script_for(packages: Mapping[str, Mapping[str, str]], own: Mapping[str, str]) -> str:
    """Return the bash script for the packages' commands and plaudit's own, each a name and "module:function"."""
    commands = {f"{package} {name}": path for package, all in packages.items() for name, path in all.items()}
    second, values, options = [], [], []
    for package, names in packages.items():
        second.append(f'        2:{package}) words="{" ".join(name for name in names if " " not in name)}" ;;')
    for name, path in {**own, **commands}.items():
        known = [one for one in arguments_of(load(path)) if not one.positional]
        options.append(_case(20, f'"{name}"', [*(name for one in known for name in one.names), "--help"]))
        for one in known:
            if choices := literals_of(one.hint):
                values.append(_case(16, f'"{name} {one.name}"', choices))
    return SCRIPT.format(
        first=" ".join([*own, *packages, "--version", "--help"]),
        own="|".join(own),
        second="\n".join(second),
        values="\n".join(values),
        options="\n".join(options),
    )


def _case(indent: int, pattern: str, words: Any) -> str:
    return f'{" " * indent}{pattern}) words="{" ".join(map(str, words))}" ;;'
