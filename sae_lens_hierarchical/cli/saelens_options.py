"""SAELens's options of a run, from a list beside this file that ``--help`` reads.

SAELens's own parser takes seconds to load. ``make saelens-options`` writes the list
anew, and a test holds that it is that of the version that is installed.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_lens_hierarchical.defaults import ARCHITECTURE

__all__ = ["LIST", "Option", "SAELensOptions", "ask_saelens", "saelens_options"]

LIST = Path(__file__).with_name("saelens_options.json")


@dataclass(frozen=True)
class Option:
    """An option of SAELens's parser.

    Attributes:
        names: Such as ``--hook_name``, the long one first.
        kind: What a value looks like, such as ``int`` or ``{none,hook_z}``.
        default: As SAELens shows it; None where there is nothing to show.
        help: What it does; empty where SAELens does not say.
    """

    names: list[str]
    kind: str
    default: str | None
    help: str


@dataclass(frozen=True)
class SAELensOptions:
    """All of them, of one version of SAELens.

    Attributes:
        version: That version.
        run: Those that every run has.
        saes: Those of the SAE by its architecture.
    """

    version: str
    run: list[Option]
    saes: dict[str, list[Option]]

    def to_json(self) -> str:
        """Return the text of the list."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def saelens_options() -> SAELensOptions:
    """Return the options of the installed SAELens: it is loaded if the list is not."""
    known = json.loads(LIST.read_text(encoding="utf-8"))
    if known["version"] != version("sae-lens"):
        return ask_saelens()
    saes = {name: [Option(**o) for o in sae] for name, sae in known["saes"].items()}
    return SAELensOptions(known["version"], [Option(**o) for o in known["run"]], saes)


def ask_saelens() -> SAELensOptions:
    """Return the options as SAELens's parser has them. It takes seconds."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    actions = {name: _actions(name) for name in SAE_TRAINING_CLASS_REGISTRY}
    run = [a for a in actions[ARCHITECTURE] if not a.dest.startswith("cfg.sae.")]
    return SAELensOptions(
        version("sae-lens"),
        [_option(action) for action in run],
        {
            name: [_option(a) for a in of if a.dest.startswith("cfg.sae.")]
            for name, of in sorted(actions.items())
        },
    )


def _actions(architecture: str) -> list[argparse.Action]:
    """Catch SAELens's parser, which it makes and hides, when it would show its help."""
    import sae_lens.llm_sae_training_runner as saelens

    parser_class: Any = saelens.ArgumentParser
    caught: list[argparse.Action] = []

    def catch(self: Any, file: Any = None, args: Any = None) -> None:
        caught.extend(self._actions)

    shown, parser_class.print_help = parser_class.print_help, catch
    try:
        saelens._parse_cfg_args(["--architecture", architecture, "--help"])  # pyright: ignore[reportPrivateUsage]
    except SystemExit:
        pass
    finally:
        parser_class.print_help = shown
    return [action for action in caught if action.dest.startswith("cfg.")]


def _option(action: argparse.Action) -> Option:
    kind = action.metavar or getattr(action.type, "__name__", None) or "str"
    if action.choices is not None:
        kind = f"{{{','.join(map(str, action.choices))}}}"
    # What it says of the default is shown for all alike; --noNAME is said once.
    text = re.sub(
        r"<__TEMP__>|\s*\(default(:| is) [^)]*(\)s)?\)\.?", "", action.help or ""
    )
    negations = {name.replace("--", "--no", 1) for name in action.option_strings}
    names = [name for name in action.option_strings if name not in negations]
    plain = isinstance(action.default, bool | int | float | str | list | tuple | dict)
    return Option(
        sorted(names, key=lambda name: not name.startswith("--")),
        str(kind),
        str(action.default) if plain and action.default != "" else None,
        " ".join(text.split()),
    )
