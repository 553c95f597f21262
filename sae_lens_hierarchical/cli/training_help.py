"""The help of the commands that take SAELens's options beside their own."""

from __future__ import annotations

import argparse
import textwrap
from contextlib import suppress
from typing import NoReturn

from sae_lens_hierarchical.cli.parser import described
from sae_lens_hierarchical.cli.saelens_options import Option, saelens_options
from sae_lens_hierarchical.defaults import ARCHITECTURE, BUNDLED

__all__ = ["add_help", "add_saelens_options", "described_with_presets", "show_help"]

_PRESETS = {
    BUNDLED: "2M tokens of the bundled text and model, K = 16, d_sae 3,072: a CPU will "
    "do, with no network",
    "gemma-2-2b-layer-12": "the paper's sizes (§3.1): Gemma-2 2B, K = 128, d_sae "
    "65,536, 1B tokens of FineWeb",
    "qwen-2.5-7b-layer-14": "the paper's sizes (B.1): Qwen2.5 7B, likewise",
}

# SAELens's options that are not the SAE's own; what is in none comes last.
_GROUPS = {
    "model and hook": "model_name model_class_name hook_name hook_head_index "
    "model_kwargs model_from_pretrained_kwargs",
    "dataset": "dataset_path dataset_trust_remote_code streaming is_dataset_tokenized "
    "use_chat_formatting context_size prepend_bos disable_concat_sequences "
    "sequence_separator_token",
    "activations": "exclude_special_tokens seqpos_slice n_batches_in_buffer "
    "store_batch_size_prompts activations_mixing_fraction prefetch_llm_batches "
    "n_batches_for_norm_estimate use_cached_activations cached_activations_path",
    "optimization": "training_tokens train_batch_size_tokens lr lr_warm_up_steps "
    "lr_decay_steps lr_scheduler_name lr_end n_restart_cycles adam_beta1 adam_beta2 "
    "seed from_pretrained_path",
    "devices and precision": "device llm_device act_store_device dtype autocast "
    "autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode",
    "outputs and checkpoints": "output_path checkpoint_path n_checkpoints "
    "save_final_checkpoint resume_from_checkpoint",
    "logging and evaluation while training": "log_to_wandb wandb_project wandb_entity "
    "wandb_id run_name wandb_log_frequency eval_every_n_wandb_logs "
    "log_weights_to_wandb log_optimizer_state_to_wandb log_activations_store_to_wandb "
    "n_eval_batches eval_batch_size_prompts dead_feature_window "
    "dead_feature_threshold feature_sampling_window verbose",
}

# What SAELens says nothing about.
_TEXTS = {
    "d_in": "size of the activations at the hook: the model's d_model, mostly",
    "d_sae": "number of features",
    "sae.dtype": "of the SAE's weights, such as bfloat16",
    "sae.device": "where the SAE is made; it is trained on --device",
    "apply_b_dec_to_input": "subtract b_dec from the activations before the encoder",
    "normalize_activations": "none, expected_average_only_in (by one scale, to a mean "
    "norm of sqrt(d_in)), constant_norm_rescale (each token, to a norm of sqrt(d_in)), "
    "layer_norm (each token) or covariance_whitening",
    "reshape_activations": "hook_z: attention heads side by side are one activation",
    "metadata": "where the SAE is from; the run fills it in",
    "l1_coefficient": "weight of the sparsity loss",
    "l1_warm_up_steps": "steps in which that weight rises from 0",
    "lp_norm": "p of the norm that the sparsity loss takes of the activations",
    "log_to_wandb": "log to Weights & Biases",
    "log_activations_store_to_wandb": "SAELens does not use it",
    "log_optimizer_state_to_wandb": "SAELens does not use it",
    "log_weights_to_wandb": "upload the SAE's weights with checkpoints",
    "wandb_project": "the project there",
    "wandb_id": "the run's id there, such as of one to go on with",
    "run_name": "the run's name there; by default one of the SAE's sizes",
    "wandb_entity": "the user or team there",
    "wandb_log_frequency": "training steps from one log to the next",
    "eval_every_n_wandb_logs": "logs from one evaluation to the next",
}
# Where the bundled preset has another default, and that is not for its size.
_DEFAULTS_OF_BUNDLED = {"checkpoint_path": "None", "log_to_wandb": "False"}


def described_with_presets(what: str, *examples: str) -> str:
    """Return the top of a help: what the command does, examples, and the presets."""
    presets = [
        textwrap.fill(
            f"{name:<22}{line}", 78, initial_indent="  ", subsequent_indent=24 * " "
        )
        for name, line in _PRESETS.items()
    ]
    return "\n".join([described(what, *examples), "", "presets:", *presets])


def add_help(command: argparse.ArgumentParser) -> None:
    """Add ``--help``, which the command itself answers with ``show_help``."""
    command.add_argument(
        "-h", "--help", action="store_true", help="show this help message and exit"
    )
    command.set_defaults(parser=command)


def show_help(command: argparse.ArgumentParser, rest: list[str]) -> NoReturn:
    """Print the options of a command and SAELens's, and end the process.

    Args:
        command: The command's parser.
        rest: The options that it did not know, where an architecture may be named.
    """
    reader = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    reader.add_argument("--architecture", "--sae", default=ARCHITECTURE)
    add_saelens_options(command, reader.parse_known_args(rest)[0].architecture)
    command.epilog = (
        "Options replace a preset's values, and the defaults shown. A bool is written\n"
        "--streaming false or --nostreaming."
    )
    command.print_help()
    raise SystemExit(0)


def add_saelens_options(
    command: argparse.ArgumentParser, architecture: str = ARCHITECTURE
) -> None:
    """Add SAELens's options to a command to show them; its parser does not read them.

    Args:
        command: The command's parser.
        architecture: Whose options come with them; if unknown, ours.
    """
    known = saelens_options()
    if architecture not in known.saes:
        architecture = ARCHITECTURE
    by_name = {option.names[-1].lstrip("-"): option for option in known.run}
    choice = by_name.pop("architecture")
    groups = {f"SAE ({architecture})": [choice, *known.saes[architecture]]}
    for title, names in _GROUPS.items():
        groups[title] = [by_name.pop(n) for n in names.split() if n in by_name]
    groups["other"] = [*by_name.values()]
    for title, options in groups.items():
        group = command.add_argument_group(f"SAELens {known.version}, {title}")
        for option in options:
            with suppress(argparse.ArgumentError):  # the command has it, too
                group.add_argument(
                    *option.names,
                    dest=option.names[0],
                    metavar=_metavar(option),
                    help=_help(option),
                )


def _metavar(option: Option) -> str:
    return option.kind if len(option.kind) < 60 else "NAME"


def _help(option: Option) -> str:
    name = option.names[0].removeprefix("--")
    text = option.help or _TEXTS.get(name, "")
    if "--architecture" in option.names:
        names = option.kind.strip("{}").replace(",", ", ")
        return f"{names}; --help lists the options of the one that stands beside it"
    if option.default is not None:
        bundled = _DEFAULTS_OF_BUNDLED.get(name)
        other = "" if bundled is None else f"; with --preset {BUNDLED} {bundled}"
        text = f"{text} (default: {option.default}{other})"
    return text.strip().replace("%", "%%")
