"""Options that several commands have, and their types."""

from __future__ import annotations

import argparse
import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from sae_lens_hierarchical.cli.parser import options_in, with_suggestion
from sae_lens_hierarchical.defaults import (
    ARCHITECTURE,
    DEVICE,
    LOG_TO,
    MATMUL_PRECISION,
    METRICS_CSV,
)

__all__ = [
    "RUN_OPTIONS",
    "Subparsers",
    "add_dataset",
    "add_device",
    "add_force",
    "add_ks",
    "add_model",
    "add_output",
    "add_run_options",
    "add_saes",
    "fraction",
    "given_in",
    "integers",
    "is_one_of_several",
    "names",
    "prices",
    "saelens_config",
]

Subparsers = Any  # argparse's has no public name
RUN_OPTIONS = ("matmul_precision", "max_norm_ratio", "logger")
# Where the loss is taken: an SAE has one of these, and weights that fit it.
_LOSS_FIELDS = {"loss_every", "budgets"}


def add_saes(command: argparse.ArgumentParser, *, several: bool) -> None:
    """Add where SAEs lie: several, which may be given names, or one."""
    name = "[NAME=]" if several else ""
    command.add_argument(
        "sae",
        nargs="+" if several else None,
        metavar="SAE",
        help=f"{name}FOLDER, {name}USER/REPO[:FOLDER] on the Hub, or {name}"
        "RELEASE:SAE_ID of SAELens",
    )


def add_ks(command: argparse.ArgumentParser) -> None:
    """Add ``--k 1,8,32``."""
    command.add_argument(
        "--k",
        type=integers,
        required=True,
        metavar="1,2,4,...",
        help="numbers of active features, ascending",
    )


def add_model(command: argparse.ArgumentParser) -> None:
    """Add which language model SAEs are evaluated in, and what of it may run."""
    command.add_argument(
        "--model",
        metavar="NAME",
        help="language model, on the Hub or on disk (default: the one that was trained "
        "on)",
    )
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python that lies with the model, if it has any",
    )


def add_dataset(
    command: argparse.ArgumentParser, contexts: int, *, several: bool
) -> None:
    """Add which dataset SAEs, or one, are evaluated on, and how many contexts of it."""
    command.add_argument(
        "--dataset",
        metavar="NAME",
        help="texts, on the Hub or on disk (default: what the "
        f"{'first ' if several else ''}SAE was trained on; for the bundled model its "
        "held-out texts)",
    )
    command.add_argument(
        "--contexts",
        type=int,
        default=contexts,
        metavar="N",
        help="of the dataset, to evaluate on (default: %(default)s)",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    command.add_argument(
        "--device",
        type=_device,
        default=DEVICE,
        metavar="NAME",
        help="where to compute, as torch calls it, such as cuda (default: %(default)s)",
    )


def add_output(command: argparse.ArgumentParser, default: Path) -> None:
    """Add ``--output FOLDER``."""
    command.add_argument(
        "--output",
        type=Path,
        default=default,
        metavar="FOLDER",
        help="where the outputs go (default: %(default)s)",
    )


def add_force(command: argparse.ArgumentParser) -> None:
    """Add ``--force``."""
    command.add_argument(
        "--force", action="store_true", help="replace outputs that are there already"
    )


def is_one_of_several() -> bool:
    """Tell whether torchrun started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a run that SAELens's parser does not know."""
    command.add_argument(
        "--matmul_precision",
        metavar="NAME",
        help="of float32 matrix products: highest, high or medium (default: "
        f"{MATMUL_PRECISION})",
    )
    command.add_argument(
        "--max-norm-ratio",
        "--max_norm_ratio",
        type=float,
        metavar="X",
        help="leave out tokens whose norm is above X times the median (default: none)",
    )
    command.add_argument(
        "--logger",
        type=_loggers,
        metavar="NAME,...",
        help=f"where metrics go: wandb; csv, which is {METRICS_CSV} in the output "
        "folder; tensorboard, its folder tensorboard; or none (default: wandb; for the "
        "preset bundled none)",
    )


def saelens_config(
    options: argparse.Namespace, fields: dict[str, Any], rest: list[str]
) -> Any:
    """Parse SAELens's options on top of ``fields``.

    ``--loss_every`` replaces budgets among the fields, with their weights, and
    ``--budgets`` a ``loss_every``.
    """
    from sae_lens_hierarchical.training.config import (
        RUN_FIELDS,
        LanguageModelSAERunnerConfig,
    )

    added = {n: fields[n] for n in RUN_FIELDS if fields.get(n) is not None}
    fields = {name: value for name, value in fields.items() if name not in RUN_FIELDS}
    added |= {n: v for n in RUN_OPTIONS if (v := getattr(options, n)) is not None}
    loggers = added.pop("logger", None)
    given = given_in(rest)
    replaced = _LOSS_FIELDS - given
    if given & _LOSS_FIELDS and any(fields.get(n) is not None for n in replaced):
        replaced |= {"budget_weights"}
        fields = {name: v for name, v in fields.items() if name not in replaced}
    if loggers is not None:
        if given & {"log_to_wandb", "nolog_to_wandb"}:
            raise ValueError("give either --logger or --log_to_wandb, and not both")
        fields = fields | {"log_to_wandb": "wandb" in loggers}
        added["log_to"] = [name for name in loggers if name in LOG_TO]
    # For None, lists and objects its parser has no word, or several.
    words = {n: v for n, v in fields.items() if isinstance(v, bool | int | float | str)}
    set_later = [n for n in fields if n not in words and n not in given]
    # Of two options with one name SAELens's parser takes the later one.
    defaults = [f"--{n}={v}" for n, v in words.items()]
    ours = options.parser.long_options() | {f"--{name}" for name in fields}
    cfg = _parse([*defaults, *rest], ours).to_dict()
    for name in set_later:
        parts = (cfg, cfg["sae"], cfg["logger"])
        next(part for part in parts if name in part)[name] = fields[name]
    return LanguageModelSAERunnerConfig.from_dict(cfg | added)


def given_in(rest: list[str]) -> set[str]:
    """Return the names of SAELens's options that the user gave, in full."""
    from sae_lens_hierarchical.training.config import flat_field_names

    known = flat_field_names(ARCHITECTURE) | {"architecture"}
    given: set[str] = set()
    for option in rest:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--"):  # SAELens's parser takes a beginning of a name
            meant = {n for n in known if n.startswith(name)}
            given |= {name} if name in known or not meant else meant
    # It has two names for one option.
    return {"architecture" if name == "sae" else name for name in given}


def _parse(args: list[str], ours: set[str]) -> Any:
    """Parse with SAELens's parser, whose errors are a traceback or a page."""
    from sae_lens.llm_sae_training_runner import _parse_cfg_args  # pyright: ignore[reportPrivateUsage]

    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return _parse_cfg_args(args)
    except argparse.ArgumentError as error:
        raise ValueError(with_suggestion(str(error), ())) from None
    except ZeroDivisionError:
        raise ValueError(
            "train_batch_size_tokens, wandb_log_frequency and feature_sampling_window "
            "must be at least 1"
        ) from None
    except SystemExit:
        usage, _, message = shown.getvalue().strip().rpartition("error: ")
        known = options_in(usage) | ours
        raise ValueError(with_suggestion(message, known)) from None


def integers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"must be whole numbers with commas between them, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return text.split(",")


def prices(text: str) -> tuple[float, float]:
    """Read the prices of a million tokens of prompts and of answers."""
    try:
        prompts, answers = map(float, text.split(","))
    except ValueError:
        message = f"must be two numbers with a comma between them, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    return prompts, answers


def fraction(text: str) -> float:
    """Read a number above 0 and below 1."""
    message = f"must be a number above 0 and below 1, got {text!r}"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(message) from None
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(message)
    return value


def _loggers(text: str) -> list[str]:
    loggers, known = text.split(","), (*LOG_TO, "wandb")
    if loggers == ["none"]:
        return []
    if any(name not in known for name in loggers):
        message = f"must be none, or some of {', '.join(known)} with commas between "
        raise argparse.ArgumentTypeError(f"{message}them, got {text!r}")
    return loggers


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError: not built for it
        message = f"torch has no device {text!r} here: {error}"
        raise argparse.ArgumentTypeError(message) from None
    return text
