"""The command line: ``sae-lens-hierarchical quickstart | train | sweep | ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens_hierarchical import __version__

if TYPE_CHECKING:
    from sae_lens_hierarchical.eval.table import MetricsTable
    from sae_lens_hierarchical.saes import HierarchicalTopKSAE

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line with ``args``, or the process's own; return its status."""
    parser = argparse.ArgumentParser(
        prog="sae-lens-hierarchical",
        description="Train one sparse autoencoder and use it at every sparsity budget.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quickstart = commands.add_parser(
        "quickstart",
        help="train and compare on the bundled model: no network, GPU or account",
    )
    quickstart.add_argument(
        "--output", type=Path, default=Path("quickstart_output"), metavar="FOLDER"
    )
    quickstart.add_argument("--seed", type=int, default=0)
    quickstart.set_defaults(run=_quickstart)

    train = commands.add_parser(
        "train",
        help="train on any model with SAELens's options",
        usage="sae-lens-hierarchical train [--preset NAME] [SAELENS_OPTION ...]\n"
        "       sae-lens-hierarchical train --resume FOLDER [--output FOLDER] "
        "[--trust-remote-code]",
        # --help is SAELens's, which has all the options.
        add_help=False,
    )
    source = train.add_mutually_exclusive_group()
    source.add_argument(
        "--preset", metavar="NAME", help="start from one of the paper's recipes"
    )
    source.add_argument(
        "--resume", type=Path, metavar="FOLDER", help="go on with a run that was killed"
    )
    train.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="with --resume: where the SAE goes, if not where the run says; needed for "
        "a checkpoint that was moved or is from elsewhere",
    )
    train.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="with --resume: let the model's and the dataset's own code run, if the "
        "run's config says so",
    )
    train.set_defaults(run=_train, print_usage=train.print_help)

    sweep = commands.add_parser("sweep", help="measure any SAEs of SAELens at many k")
    sweep.add_argument("checkpoint", type=Path, nargs="+", metavar="CHECKPOINT")
    sweep.add_argument("--k", type=_integers, required=True, metavar="1,2,4,...")
    _add_model_options(sweep)
    sweep.add_argument(
        "--dataset", metavar="NAME", help="default: what the first one was trained on"
    )
    sweep.add_argument("--contexts", type=int, default=256, help="default: 256")
    sweep.add_argument(
        "--ce-contexts",
        type=int,
        default=64,
        help="contexts to run the model on with the SAEs' outputs (default: 64)",
    )
    sweep.add_argument(
        "--jumprelu", action="store_true", help="read SAEs by a threshold as well"
    )
    sweep.add_argument(
        "--batch-size",
        type=int,
        help="contexts in one run of the model (default: 16, or as many as have logits "
        "of 2 GiB)",
    )
    sweep.add_argument("--device", type=_device, default="cpu", help="default: cpu")
    sweep.add_argument(
        "--output", type=Path, default=Path("sweep_output"), metavar="FOLDER"
    )
    sweep.set_defaults(run=_sweep)

    compare = commands.add_parser(
        "compare",
        help="train the paper's SAEs side by side and measure each at every k",
        usage="sae-lens-hierarchical compare [--preset NAME] [--contexts N] "
        "[--output FOLDER]\n       [SAELENS_OPTION ...]",
        add_help=False,
    )
    compare.add_argument(
        "--preset",
        default="bundled",
        metavar="NAME",
        help="bundled (default): no network or GPU; or one of the paper's recipes",
    )
    compare.add_argument(
        "--training_tokens", type=int, metavar="N", help="tokens that each SAE sees"
    )
    compare.add_argument(
        "--contexts", type=int, default=1024, help="to measure on (default: 1024)"
    )
    compare.add_argument(
        "--output", type=Path, default=Path("comparison"), metavar="FOLDER"
    )
    compare.set_defaults(run=_compare, print_usage=compare.print_help)

    figures = commands.add_parser(
        "figures", help="draw the paper's figures from a sweep's table"
    )
    figures.add_argument("table", type=Path, metavar="TABLE.parquet")
    figures.add_argument(
        "--output", type=Path, default=Path("figures"), metavar="FOLDER"
    )
    figures.add_argument(
        "--autointerp",
        type=Path,
        metavar="FOLDER",
        help="results of saebench, for figure 6: of SAEs with the same names",
    )
    figures.set_defaults(run=_figures)

    saebench = commands.add_parser(
        "saebench", help="run SAEBench on any SAEs at many k"
    )
    saebench.add_argument("checkpoint", type=Path, nargs="+", metavar="CHECKPOINT")
    saebench.add_argument("--k", type=_integers, required=True, metavar="1,2,4,...")
    saebench.add_argument(
        "--evals",
        type=_names,
        default=["core"],
        metavar="NAME,...",
        help="core (default), autointerp and sparse_probing",
    )
    _add_model_options(saebench)
    saebench.add_argument(
        "--dataset",
        metavar="NAME",
        help="or a path; default: what the first one was trained on",
    )
    saebench.add_argument(
        "--contexts", type=int, default=32_000, help="of text; default: 32000"
    )
    saebench.add_argument(
        "--latents",
        type=int,
        default=1_000,
        help="features that AutoInterp explains for each SAE and k (default: 1000)",
    )
    saebench.add_argument(
        "--judge-model", metavar="NAME", help="AutoInterp's judge: any chat model"
    )
    saebench.add_argument(
        "--judge-url",
        metavar="URL",
        help="an API like OpenAI's (default: OpenAI or $OPENAI_BASE_URL); the key is "
        "$OPENAI_API_KEY",
    )
    saebench.add_argument(
        "--max-calls", type=int, metavar="N", help="stop before the judge is asked more"
    )
    saebench.add_argument(
        "--price",
        type=_prices,
        metavar="IN,OUT",
        help="dollars for a million tokens of prompts and answers, for the estimate",
    )
    saebench.add_argument(
        "--probing-datasets",
        type=_names,
        default=[],
        metavar="NAME,...",
        help="default: all that SAEBench has",
    )
    saebench.add_argument("--batch-size", type=int, default=16, help="default: 16")
    saebench.add_argument("--device", type=_device, default="cpu", help="default: cpu")
    saebench.add_argument(
        "--force", action="store_true", help="make results again that are there"
    )
    saebench.add_argument(
        "--output", type=Path, default=Path("eval_results"), metavar="FOLDER"
    )
    saebench.set_defaults(run=_saebench)

    export = commands.add_parser(
        "export", help="write plain SAELens checkpoints, which need no plugin"
    )
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    export.add_argument(
        "--k",
        type=int,
        action="append",
        required=True,
        help="active features; given more than once, FOLDER gets one sub-folder a k",
    )
    export.add_argument(
        "--architecture",
        default="topk",
        metavar="NAME",
        help="topk (default), or jumprelu: a threshold, with k active on average",
    )
    export.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    export.set_defaults(run=_export)

    push = commands.add_parser(
        "push", help="upload a SAE, or a folder of exported ones, to the Hub"
    )
    push.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    push.add_argument("repo_id", metavar="REPO_ID", help="user/name")
    push.add_argument(
        "--sae-id", metavar="ID", help="its folder there; default: its hook's name"
    )
    push.add_argument("--licence", metavar="NAME", help="for the card, such as mit")
    push.add_argument(
        "--metrics",
        type=Path,
        metavar="PARQUET",
        help="the quickstart's or a sweep's, for the card",
    )
    push.add_argument("--private", action="store_true", help="if it is a new one")
    push.set_defaults(run=_push)

    options, rest = parser.parse_known_args(args)
    if rest and options.run not in (_train, _compare):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    # The commands import SAELens, which takes seconds: --help need not wait for it.
    try:
        return options.run(options, rest)
    # OSError: the Hub's refusals too; ImportError: an extra is not installed.
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"sae-lens-hierarchical: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sae-lens-hierarchical: {interrupt}", file=sys.stderr)
        return 130


def _add_model_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", metavar="NAME", help="or a path; default: the SAEs' own"
    )
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python that lies with the model, if it has any",
    )


def _quickstart(options: argparse.Namespace, _rest: list[str]) -> int:
    from sae_lens_hierarchical.quickstart import quickstart

    quickstart(options.output, options.seed)
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    from sae_lens_hierarchical.training import LanguageModelSAETrainingRunner
    from sae_lens_hierarchical.training.presets import preset_fields

    if options.resume is not None:
        if rest:
            raise ValueError(f"--resume takes all options from the run, got {rest}")
        LanguageModelSAETrainingRunner.from_checkpoint(
            options.resume,
            output=options.output,
            trust_remote_code=options.trust_remote_code,
        ).run()
        return 0
    if options.output is not None or options.trust_remote_code:
        raise ValueError(
            "--output and --trust-remote-code are for --resume; a new run takes "
            "SAELens's --output_path and --model_from_pretrained_kwargs"
        )
    fields = {"architecture": "hierarchical_topk"}
    if options.preset is not None:
        fields = preset_fields(options.preset)
    elif not rest:
        rest = ["--help"]
    LanguageModelSAETrainingRunner(_saelens_config(options, fields, rest)).run()
    return 0


def _saelens_config(
    options: argparse.Namespace, fields: dict[str, Any], rest: list[str]
) -> Any:
    """Parse SAELens's options on top of ``fields``; --help shows our options first."""
    from sae_lens.llm_sae_training_runner import _parse_cfg_args

    if not {"-h", "--help"}.isdisjoint(rest):
        options.print_usage()
    given = {option.partition("=")[0] for option in rest}
    unset = [n for n, v in fields.items() if v is None and f"--{n}" not in given]
    # Of two options with one name SAELens's parser takes the later one.
    defaults = [f"--{n}={v}" for n, v in fields.items() if v is not None]
    cfg = _parse_cfg_args([*defaults, *rest])
    for name in unset:  # for which its parser has no word
        setattr(cfg, name, None)
    return cfg


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    from sae_lens_hierarchical.comparison import compare
    from sae_lens_hierarchical.data import load_bundled_model, load_bundled_text
    from sae_lens_hierarchical.training.bundled import bundled_fields, small_run
    from sae_lens_hierarchical.training.presets import PRESETS, preset_fields

    with ExitStack() as stack:
        data: dict[str, Any] = {}
        if options.preset == "bundled":
            fields = bundled_fields(options.training_tokens or 2_000_000)
            fields |= {"log_to_wandb": False}
            stack.enter_context(small_run())
            data = {
                "text": load_bundled_text("train"),
                "held_out": load_bundled_text("held_out"),
            }
        elif options.preset not in PRESETS:
            known = ["bundled", *PRESETS]
            raise ValueError(f"preset must be one of {known}, got {options.preset!r}")
        else:
            fields = preset_fields(options.preset)
            # SAELens keeps them all, and one has every SAE with its optimizer's state.
            fields["n_checkpoints"] = 1
            if options.training_tokens is not None:
                fields["training_tokens"] = options.training_tokens
        cfg = _saelens_config(options, fields, rest)
        if options.preset == "bundled":
            data["model"] = load_bundled_model(cfg.llm_device)
        table = compare(cfg, options.output, contexts=options.contexts, **data)
    ours = {row.trained_k for row in table.rows if row.ours}
    _show(table, {1, 2} | ours, options.output)
    return 0


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"must be whole numbers with commas between them, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError: not built for it
        message = f"torch has no device {text!r} here: {error}"
        raise argparse.ArgumentTypeError(message) from None
    return text


def _sweep(options: argparse.Namespace, _rest: list[str]) -> int:
    from sae_lens_hierarchical.eval.folders import sweep_checkpoints

    options.output.mkdir(parents=True, exist_ok=True)
    table = sweep_checkpoints(
        options.checkpoint,
        options.k,
        model_name=options.model,
        dataset=options.dataset,
        contexts=options.contexts,
        ce_contexts=options.ce_contexts,
        batch_size=options.batch_size,
        jumprelu=options.jumprelu,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    _show(table, options.k, options.output)
    return 0


def _show(table: MetricsTable, ks: Collection[int], output: Path) -> None:
    """Write a table and its figures to ``output``, and show its rows at ``ks``."""
    from rich.console import Console

    from sae_lens_hierarchical.eval.table import write_table
    from sae_lens_hierarchical.figures import write_figures
    from sae_lens_hierarchical.report import terminal_table

    output.mkdir(parents=True, exist_ok=True)
    write_table(output / "metrics.parquet", table)
    *_, page = write_figures(output / "figures", table)
    Console().print(terminal_table(table, ks))
    print(f"{output}/metrics.parquet (and .csv)")
    print(f"{page}, and its figures as images beside it")


def _figures(options: argparse.Namespace, _rest: list[str]) -> int:
    from sae_lens_hierarchical.eval.table import read_table
    from sae_lens_hierarchical.figures import write_figures
    from sae_lens_hierarchical.saebench.results import autointerp_scores

    table, scores = read_table(options.table), None
    if options.autointerp is not None:
        results = autointerp_scores(options.autointerp)
        scores = {(sae, k): score for sae, k, score in results}
        known = table.saes()
        if not {sae for sae, _ in scores} & set(known):
            raise ValueError(
                f"{options.autointerp} has no AutoInterp scores of {', '.join(known)}"
            )
    for path in write_figures(options.output, table, scores):
        print(path)
    return 0


def _names(text: str) -> list[str]:
    return text.split(",")


def _prices(text: str) -> tuple[float, float]:
    try:
        prompts, answers = map(float, text.split(","))
    except ValueError:
        message = f"must be two numbers with a comma between them, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
    return prompts, answers


def _saebench(options: argparse.Namespace, _rest: list[str]) -> int:
    from rich.console import Console

    from sae_lens_hierarchical.saebench.checkpoints import saebench_checkpoints
    from sae_lens_hierarchical.saebench.results import bench_table, read_results

    judge = None
    if options.judge_model is not None:
        from sae_lens_hierarchical.saebench.judge import Judge

        judge = Judge(
            options.judge_model,
            options.output / "judge_answers.sqlite",
            url=options.judge_url,
            max_calls=options.max_calls,
            price=options.price,
        )
    saebench_checkpoints(
        options.checkpoint,
        options.k,
        options.evals,
        options.output,
        judge,
        model_name=options.model,
        dataset=options.dataset,
        contexts=options.contexts,
        latents=options.latents,
        probing_datasets=options.probing_datasets,
        batch_size=options.batch_size,
        device=options.device,
        force=options.force,
        trust_remote_code=options.trust_remote_code,
    )
    Console().print(bench_table(read_results(options.output)))
    print(options.output)
    return 0


def _export(options: argparse.Namespace, _rest: list[str]) -> int:
    from sae_lens_hierarchical.export import export, export_all

    sae = _load(options.checkpoint)
    if options.output.resolve() == options.checkpoint.resolve():
        raise ValueError("--output would overwrite the checkpoint")
    if len(options.k) == 1:
        folders = [export(sae, options.output, options.k[0], options.architecture)]
    else:
        folders = export_all(sae, options.output, options.k, options.architecture)
    for folder in folders:
        print(folder)
    return 0


def _push(options: argparse.Namespace, _rest: list[str]) -> int:
    from sae_lens_hierarchical.eval.table import read_table
    from sae_lens_hierarchical.hub import push_to_hub

    metrics = None
    if options.metrics is not None:
        metrics = [row for row in read_table(options.metrics).rows if row.ours]
        if len({row.sae for row in metrics}) != 1:
            raise ValueError(f"{options.metrics} must hold one HierarchicalTopK SAE")
    address = push_to_hub(
        options.checkpoint,
        options.repo_id,
        options.sae_id,
        metrics=metrics,
        licence=options.licence,
        private=options.private,
    )
    print(address)
    return 0


def _load(checkpoint: Path) -> HierarchicalTopKSAE:
    from sae_lens_hierarchical.loading import load_sae
    from sae_lens_hierarchical.saes import HierarchicalTopKSAE

    sae = load_sae(checkpoint)
    if not isinstance(sae, HierarchicalTopKSAE):
        architecture = sae.cfg.architecture()
        raise ValueError(f"{checkpoint} is a {architecture} SAE, no hierarchical_topk")
    return sae
