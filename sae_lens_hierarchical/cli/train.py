"""``sae-lens-hierarchical train``."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_hierarchical.cli.arguments import (
    RUN_OPTIONS,
    Subparsers,
    add_force,
    add_run_options,
    given_in,
    is_one_of_several,
    saelens_config,
)
from sae_lens_hierarchical.cli.dry_run import dry_run
from sae_lens_hierarchical.cli.outputs import refuse_existing
from sae_lens_hierarchical.cli.progress import without_progress
from sae_lens_hierarchical.cli.results import show_next
from sae_lens_hierarchical.cli.training_help import (
    add_help,
    described_with_presets,
    show_help,
)
from sae_lens_hierarchical.cli.wandb_login import check_wandb_login
from sae_lens_hierarchical.defaults import (
    ARCHITECTURE,
    BUNDLED,
    N_BATCHES_IN_BUFFER,
)

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

    from sae_lens_hierarchical.training import LanguageModelSAETrainingRunner

__all__ = ["add_parser", "run"]


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    command = commands.add_parser(
        "train",
        help="train on any model with SAELens's options",
        usage="sae-lens-hierarchical train [--preset NAME | --config FILE] "
        "[--dry-run]\n       [--force] [SAELENS_OPTION ...]\n"
        "       sae-lens-hierarchical train --from-sae SAE --training_tokens N "
        "[SAELENS_OPTION ...]\n"
        "       sae-lens-hierarchical train --resume FOLDER [--output FOLDER] "
        "[--trust-remote-code]",
        description=described_with_presets(
            "Train an SAE. SAELens's options are taken, too: they are listed below.",
            "train --preset bundled --k 16",
            "train --preset gemma-2-2b-layer-12 --training_tokens 100000000 --dry-run",
            "train --model_name gpt2 --hook_name blocks.6.hook_resid_pre "
            "--d_in 768 ...",
            "train --config run.yaml --logger csv",
            "train --resume checkpoints/",
        ),
        add_help=False,
    )
    add_help(command)
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--preset",
        metavar="NAME",
        help="start from one of the recipes above (default: SAELens's defaults)",
    )
    source.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="start from the fields in FILE, which is YAML or JSON, such as "
        "--save-config writes, or a run's runner_cfg.json",
    )
    source.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with a run that was killed"
    )
    source.add_argument(
        "--from-sae",
        metavar="SAE",
        help="start from a TopK or BatchTopK SAE: FOLDER, USER/REPO[:FOLDER] on the "
        "Hub, or RELEASE:SAE_ID of SAELens; model, data and sizes are its own",
    )
    command.add_argument(
        "--training_tokens", type=int, metavar="N", help="tokens that the SAE sees"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="with --resume: where the SAE goes, if not where the run says; needed for "
        "a checkpoint that was moved or is from elsewhere",
    )
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="with --resume, --config or --from-sae: let the model's and the dataset's "
        "own code run, if the run or the SAE says so",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing, but show what the run would take (memory, disk, and time, "
        "from ten steps) and check that it can start; status 1 if it cannot",
    )
    command.add_argument(
        "--save-config",
        type=Path,
        metavar="FILE",
        help="write the fields that differ from the defaults to FILE, which --config "
        "takes, and train nothing",
    )
    add_force(command)
    add_run_options(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the command."""
    no_run = options.dry_run or options.save_config
    given = (options.preset, options.config, options.resume, options.from_sae)
    if options.help or not any((*given, options.training_tokens, no_run, *rest)):
        show_help(options.parser, rest)
    if options.dry_run and options.save_config is not None:
        raise ValueError(
            "--dry-run and --save-config each stand for the run: give one of them"
        )
    if no_run and is_one_of_several():
        raise ValueError(
            "--dry-run and --save-config are for one process: start it without torchrun"
        )
    if not is_one_of_several():
        return _train(options, rest)
    from sae_lens_hierarchical.training.distributed import join_processes

    with join_processes() as first:
        if first:
            return _train(options, rest)
        # Process 0 speaks for all.
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            without_progress(),
        ):
            try:
                return _train(options, rest)
            except KeyboardInterrupt:
                return 130


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from sae_lens_hierarchical.training import (
        LanguageModelSAETrainingRunner,
        TrainingInterrupted,
    )
    from sae_lens_hierarchical.training.metrics_log import logs_in

    runner_class, one_error = LanguageModelSAETrainingRunner, nullcontext
    if is_one_of_several():
        from sae_lens_hierarchical.training.distributed import (
            DistributedSAETrainingRunner,
            Mesh,
            all_or_none,
        )

        runner_class = DistributedSAETrainingRunner
        one_error = partial(all_or_none, Mesh.of("cpu"))
    if options.resume is None:
        with one_error():
            cfg = _new_config(options, rest)
        if options.save_config is not None:
            _save_config(options, cfg)
            return 0
        trust = options.trust_remote_code or not _is_from_elsewhere(options)
        make_runner = partial(runner_class.of_untrusted, cfg, trust_remote_code=trust)
        if options.dry_run:
            return dry_run(cfg, _checks(options, cfg), make_runner)
        runner = make_runner()
        # Once the model is there and fits, and before any process goes on.
        with one_error():
            for file in logs_in(cfg.output_path) if options.force else []:
                file.unlink(missing_ok=True)
    else:
        given = {
            "--training_tokens": options.training_tokens,
            "--save-config": options.save_config,
            "--dry-run": options.dry_run or None,
        }
        given |= {f"--{name}": getattr(options, name) for name in RUN_OPTIONS}
        rest = [*(name for name, value in given.items() if value is not None), *rest]
        with one_error():
            if rest:
                raise ValueError(f"--resume takes all options from the run, got {rest}")
            finished = _is_finished(options)
        if finished:
            return 0
        runner = runner_class.from_checkpoint(
            options.resume,
            output=options.output,
            trust_remote_code=options.trust_remote_code,
        )
    try:
        sae = runner.run()
    except TrainingInterrupted as interrupt:
        if interrupt.checkpoint is None:
            raise
        again = f"train --resume {shlex.quote(str(interrupt.checkpoint))}"
        if options.trust_remote_code:
            again += " --trust-remote-code"
        command = "sae-lens-hierarchical"
        if is_one_of_several():
            command = "torchrun ... -m sae_lens_hierarchical"
        raise KeyboardInterrupt(
            f"interrupted; to go on:\n  {command} {again}"
        ) from None
    _show(runner, sae)
    return 0


def _new_config(options: argparse.Namespace, rest: list[str]) -> Any:
    from sae_lens_hierarchical.training.config_file import read_config
    from sae_lens_hierarchical.training.presets import preset_fields, set_lr_schedule
    from sae_lens_hierarchical.training.resume import check_model_kwargs

    if options.output is not None:
        raise ValueError("--output is for --resume; a new run takes --output_path")
    if options.trust_remote_code and not _is_from_elsewhere(options):
        raise ValueError(
            "--trust-remote-code is for --resume, --config and --from-sae; a new run "
            "takes SAELens's --model_from_pretrained_kwargs"
        )
    fields: dict[str, Any] = {"architecture": ARCHITECTURE}
    if options.preset is not None:
        fields = preset_fields(options.preset)
        if options.preset == BUNDLED:
            fields["log_to_wandb"] = False
    elif options.from_sae is not None:
        fields = _fields_of_source(options, given_in(rest))
    elif options.config is not None:
        fields |= read_config(options.config)
        kwargs = fields.get("model_from_pretrained_kwargs")
        check_model_kwargs(options.config, kwargs, options.trust_remote_code)
    if options.training_tokens is not None:
        fields["training_tokens"] = options.training_tokens
    cfg = saelens_config(options, fields, rest)
    if options.preset is not None:
        set_lr_schedule(cfg, options.preset, given_in(rest))
    if options.save_config is None and not options.dry_run:
        for check in _checks(options, cfg).values():
            check()
    return cfg


def _is_from_elsewhere(options: argparse.Namespace) -> bool:
    """Tell whether somebody else may have named the run's model and dataset."""
    return options.config is not None or options.from_sae is not None


def _fields_of_source(options: argparse.Namespace, given: set[str]) -> dict[str, Any]:
    """Return the fields that --from-sae stands for, but for those ``given``."""
    from sae_lens_hierarchical.training.fine_tuning import fields_of_source

    if options.training_tokens is None:
        raise ValueError("--from-sae needs --training_tokens: on how many to train it")
    if "architecture" in given:
        raise ValueError(f"--from-sae has one architecture, {ARCHITECTURE}")
    fields = fields_of_source(options.from_sae)
    if "model_name" in given:  # that model has not asked for them
        fields.pop("model_from_pretrained_kwargs", None)
    needed = ("k", "model_name", "hook_name", "dataset_path", "context_size")
    missing = [f"--{n}" for n in needed if n not in fields and n not in given]
    if missing:
        raise ValueError(
            f"{options.from_sae} does not say what it was trained with: give "
            f"{' and '.join(missing)}"
        )
    return {
        "n_batches_in_buffer": N_BATCHES_IN_BUFFER,
        "training_tokens": options.training_tokens,
        **fields,
    }


def _checks(options: argparse.Namespace, cfg: Any) -> dict[str, Callable[[], None]]:
    """Return what is checked before the model is loaded, by what it checks."""
    from sae_lens_hierarchical.training.config import check_new_run
    from sae_lens_hierarchical.training.metrics_log import logs_in

    checks: dict[str, Callable[[], None]] = {
        "the schedule and the loss": partial(check_new_run, cfg)
    }
    if cfg.logger.log_to_wandb:
        checks["login to Weights & Biases"] = check_wandb_login
    if cfg.output_path is not None:
        files = [Path(cfg.output_path) / "cfg.json", *logs_in(cfg.output_path)]
        checks["no output is replaced"] = partial(
            refuse_existing, *files, option="--output_path", force=options.force
        )
    return checks


def _save_config(options: argparse.Namespace, cfg: Any) -> None:
    from sae_lens_hierarchical.training.config_file import changed_fields, to_yaml

    file = options.save_config
    refuse_existing(file, option="--save-config", force=options.force)
    file.write_text(to_yaml(changed_fields(cfg)), encoding="utf-8")
    print(file)
    show_next(f"train --config {shlex.quote(str(file))}")


def _is_finished(options: argparse.Namespace) -> bool:
    """Say what will be resumed, or that nothing is left to do."""
    from sae_lens_hierarchical.training.checkpoint import (
        find_checkpoint,
        read_runner_cfg,
    )
    from sae_lens_hierarchical.training.metrics_log import logs_in
    from sae_lens_hierarchical.training.resume import (
        is_where_it_was_written,
        progress,
        tokens_of_output,
    )

    folder = find_checkpoint(options.resume)
    run = read_runner_cfg(folder)
    output = run.get("output_path") if options.output is None else options.output
    if output is not None:
        tokens = tokens_of_output(output, run)
        if tokens is None:  # in another folder the logs are not its own either
            files = [Path(output) / "cfg.json", *logs_in(options.output)]
            refuse_existing(*files, option="--output", force=options.force)
        elif tokens == run.get("training_tokens"):
            print(f"The run of {folder} has ended: nothing to do. The SAE: {output}")
            return True
    if is_where_it_was_written(folder, run) and _logs(run):
        check_wandb_login()
    print(f"Resuming {folder}, {progress(folder)}")
    return False


def _logs(run: dict[str, Any]) -> bool:
    logger = run.get("logger")  # a damaged config is refused later, in full
    return isinstance(logger, dict) and bool(logger.get("log_to_wandb"))


def _show(runner: LanguageModelSAETrainingRunner, sae: TrainingSAE[Any]) -> None:
    from sae_lens_hierarchical.training.last_batch import explained_variance_by_k

    explained = {}
    if not is_one_of_several():  # none of which has the whole SAE
        buffer = runner.activations_store.get_data_loader()
        explained = explained_variance_by_k(sae, iter(buffer))
    if explained:
        shown = ", ".join(f"{ev:.3f} at k = {k}" for k, ev in explained.items())
        print(f"Explained variance of one more batch: {shown}")
    folder = runner.cfg.output_path
    if folder is None:
        print("The SAE was not written: output_path is None")
        return
    print(f"The SAE: {folder}")
    if explained:
        ks = ",".join(map(str, explained))
        show_next(f"sweep {shlex.quote(folder)} --k {ks}")
