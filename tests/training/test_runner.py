"""Tests of training runs: SAELens's own runner, and ours, which survives kills."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    HookedSAETransformer,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.training.mixing_buffer import mixing_buffer
from safetensors.torch import load_file

from sae_lens_hierarchical import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    LanguageModelSAETrainingRunner,
    TrainingInterrupted,
)
from sae_lens_hierarchical.data import BUNDLED_HOOK_NAME
from sae_lens_hierarchical.loading import load_sae
from sae_lens_hierarchical.training.activations_store import MixingBuffer
from sae_lens_hierarchical.training.checkpoint import find_checkpoint
from tests.helpers import MakeConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")


def assert_trained(path: str | Path) -> HierarchicalTopKSAE:
    sae = SAE.load_from_disk(path)
    assert isinstance(sae, HierarchicalTopKSAE)
    assert all(p.isfinite().all() for p in sae.parameters())
    return sae


@pytest.mark.parametrize(
    "runner_class",
    [sae_lens.LanguageModelSAETrainingRunner, LanguageModelSAETrainingRunner],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": "constant_norm_rescale"},
        {"normalize_activations": "layer_norm", "unit_norm_decoder": True},
        {"normalize_activations": "covariance_whitening"},
        {"normalize_activations": "covariance_whitening", "unit_norm_decoder": True},
        {"autocast": True, "dtype": "bfloat16", "use_sparse_activations": True},
        {"hook_name": "blocks.1.attn.hook_z", "reshape_activations": "hook_z"},
        {"prefetch_llm_batches": True, "exclude_special_tokens": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_what_saelens_offers_works(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    runner_class: type[sae_lens.LanguageModelSAETrainingRunner],
    changes: dict[str, Any],
) -> None:
    cfg = make_config(**changes)

    trained = runner_class(cfg, override_dataset=text, override_model=model).run()

    assert isinstance(trained, HierarchicalTopKTrainingSAE)
    sae = assert_trained(cfg.output_path or "")
    tokens = model.to_tokens(text[0]["text"])
    _, cache = model.run_with_cache(tokens, names_filter=cfg.hook_name)
    activations = cache[cfg.hook_name]
    with torch.no_grad():
        for k in (1, 8):
            sae.k = k
            assert (sae.encode(activations) != 0).sum(-1).max() == k
        # The runner has turned the reshaping of heads off in the SAE that it returns.
        expected = trained(activations.flatten(2).to(trained.dtype))
        error = (sae(activations).flatten(2) - expected).norm() / expected.norm()
    assert error < (0.1 if trained.dtype == torch.bfloat16 else 1e-5)


def test_saelens_own_config_form(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    sae = HierarchicalTopKTrainingSAEConfig(d_in=128, d_sae=64, k=8)
    cfg = sae_lens.LanguageModelSAERunnerConfig(
        sae=sae,
        **{
            name: getattr(make_config(), name)
            for name in ("hook_name", "is_dataset_tokenized", "context_size", "logger")
        },
        dataset_path="bundled",
        training_tokens=256,
        train_batch_size_tokens=64,
        checkpoint_path=None,
        output_path=make_config().output_path,
    )

    runner = sae_lens.LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    )
    runner.run()

    assert_trained(cfg.output_path or "")


def test_trains_beside_other_architectures(
    model: HookedSAETransformer, text: Dataset, tmp_path: Path, make_config: MakeConfig
) -> None:
    cfg = MultiSAETrainingRunnerConfig(
        saes={
            "ours": HierarchicalTopKTrainingSAEConfig(
                d_in=128, d_sae=64, k=8, unit_norm_decoder=True
            ),
            "topk": TopKTrainingSAEConfig(d_in=128, d_sae=64, k=8),
        },
        hook_names=BUNDLED_HOOK_NAME,
        context_size=32,
        training_tokens=640,
        train_batch_size_tokens=64,
        logger=make_config().logger,
        n_checkpoints=1,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=str(tmp_path / "output"),
    )

    MultiSAETrainingRunner(cfg, override_dataset=text, override_model=model).run()

    sae = assert_trained(tmp_path / "output" / "ours")
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64))
    assert SAE.load_from_disk(tmp_path / "output" / "topk").cfg.architecture() == "topk"
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*")
    cfg.resume_from_checkpoint = str(checkpoint)
    MultiSAETrainingRunner(cfg, override_dataset=text, override_model=model).run()


def test_mixing_buffer_serves_what_saelens_serves() -> None:
    generator = torch.Generator().manual_seed(0)
    source = [
        torch.randn(int(n), 3, generator=generator)
        for n in torch.randint(1, 40, (60,), generator=generator)
    ]
    for buffer_size, batch_size, fraction in ((64, 16, 0.5), (50, 7, 0.0), (8, 8, 1.0)):
        torch.manual_seed(1)
        expected = mixing_buffer(buffer_size, batch_size, iter(source), fraction)
        wanted = [next(expected) for _ in range(20)]
        torch.manual_seed(1)
        buffer = MixingBuffer(buffer_size, batch_size, iter(source), fraction)
        actual = [next(buffer) for _ in range(20)]
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


RESUMABLE: list[dict[str, Any]] = [
    {},
    {"normalize_activations": "expected_average_only_in", "unit_norm_decoder": True},
    {"normalize_activations": "covariance_whitening"},
    {"prefetch_llm_batches": 2},
    {"max_norm_ratio": 1.1, "normalize_activations": "expected_average_only_in"},
    {"max_norm_ratio": 1.1, "prefetch_llm_batches": 2},
    # Three sequences an epoch: the run wraps around its text several times.
    {"store_batch_size_prompts": 3, "context_size": 128, "training_tokens": 1280},
]


@pytest.mark.parametrize("changes", RESUMABLE, ids=str)
def test_resumed_run_equals_an_uninterrupted_one(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    if changes.get("context_size") == 128:
        text = text.select(range(1))
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    changes = {
        **changes,
        "n_checkpoints": 3,
        "lr_warm_up_steps": 5,
        "lr_decay_steps": 4,
    }
    torch.manual_seed(0)
    whole = make_config(**changes, output_path=str(tmp_path / "whole"))
    LanguageModelSAETrainingRunner(whole, **options).run()

    torch.manual_seed(0)
    cfg = make_config(**changes, output_path=str(tmp_path / "resumed"))
    runner = LanguageModelSAETrainingRunner(cfg, **options)
    assert cfg.checkpoint_path is not None
    checkpoints = Path(cfg.checkpoint_path)
    runner.run()
    middle = sorted(checkpoints.iterdir(), key=lambda path: int(path.name))[1]
    torch.manual_seed(1234)
    LanguageModelSAETrainingRunner.from_checkpoint(middle, **options).run()

    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        expected = load_file(tmp_path / "whole" / name)
        actual = load_file(tmp_path / "resumed" / name)
        for key, value in expected.items():
            assert torch.equal(actual[key], value), f"{name}: {key}"


def test_cached_activations_train_and_resume(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset, tmp_path: Path
) -> None:
    cache = CacheActivationsRunnerConfig(
        dataset_path="bundled",
        model_name="bundled",
        model_batch_size=8,
        hook_name=BUNDLED_HOOK_NAME,
        d_in=128,
        training_tokens=4096,
        context_size=32,
        buffer_size_gb=0.002,  # at least one buffer is filled
        new_cached_activations_path=str(tmp_path / "cache"),
    )
    cacher = CacheActivationsRunner.__new__(CacheActivationsRunner)
    pytest.MonkeyPatch().setattr(
        "sae_lens.cache_activations_runner.load_model", lambda **_: model
    )
    cacher.__init__(cache, override_dataset=text)
    cacher.run()
    changes = {
        "use_cached_activations": True,
        "cached_activations_path": str(tmp_path / "cache"),
        "n_checkpoints": 2,
    }
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    torch.manual_seed(0)
    cfg = make_config(**changes)
    LanguageModelSAETrainingRunner(cfg, **options).run()
    expected = load_file(f"{cfg.output_path}/sae_weights.safetensors")

    first = min(Path(cfg.checkpoint_path or "").iterdir(), key=lambda p: int(p.name))
    LanguageModelSAETrainingRunner.from_checkpoint(first, **options).run()

    actual = load_file(f"{cfg.output_path}/sae_weights.safetensors")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


KILLED_RUN = """
import json, sys
from sae_lens_hierarchical import (
    LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner
)
from sae_lens_hierarchical.data import load_bundled_model, load_bundled_dataset
cfg = LanguageModelSAERunnerConfig.from_dict(json.load(open(sys.argv[1])))
text = load_bundled_dataset("train").select(range(40))
runner = LanguageModelSAETrainingRunner(
    cfg, override_dataset=text, override_model=load_bundled_model()
)
runner.run()
"""


def start_long_run(cfg: Any, folder: Path) -> subprocess.Popen[str]:
    """Start a run that writes a checkpoint at nearly every step; wait for the third."""
    path = folder / "runner_cfg.json"
    path.write_text(json.dumps(cfg.to_dict()))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while len(list(Path(cfg.checkpoint_path).glob("[0-9]*"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_killed_run_leaves_whole_checkpoints(
    make_config: MakeConfig, tmp_path: Path, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(training_tokens=64 * 3000, n_checkpoints=2500)
    process = start_long_run(cfg, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    checkpoints = list(Path(cfg.checkpoint_path or "").glob("[0-9]*"))
    for checkpoint in checkpoints:
        assert find_checkpoint(checkpoint) == checkpoint
    newest = max(checkpoints, key=lambda path: int(path.name))
    assert find_checkpoint(tmp_path) == newest
    runner = LanguageModelSAETrainingRunner.from_checkpoint(
        newest, override_dataset=text, override_model=model
    )
    runner.cfg.training_tokens = int(newest.name) + 128
    runner.run()
    assert_trained(cfg.output_path or "")


def test_signal_ends_the_run_after_a_step_with_a_checkpoint(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    cfg = make_config(training_tokens=64 * 3000, n_checkpoints=1000)
    process = start_long_run(cfg, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode != 0
    newest = find_checkpoint(tmp_path)
    assert f"resume_from_checkpoint='{newest}'" in stderr
    assert not Path(cfg.output_path or "").exists()


def test_interrupt_without_checkpoints_says_so(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(checkpoint_path=None)
    runner = LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    )
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_parameter: torch.Tensor) -> None:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.raise_signal(signal.SIGINT)

    runner.sae.b_dec.register_post_accumulate_grad_hook(interrupt)
    with pytest.raises(TrainingInterrupted, match="checkpoint_path is None"):
        runner.run()
    assert signal.getsignal(signal.SIGINT) is before


def test_pareto_curve_reaches_wandb(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    logged: dict[str, Any],
) -> None:
    log = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    cfg = make_config(logger=log, n_eval_batches=1)

    LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    ).run()

    the_variance = logged["metrics/mse_k1"] / (
        1 - logged["metrics/explained_variance_k1"]
    )
    for k in (2, 4, 8):
        unexplained = 1 - logged[f"metrics/explained_variance_k{k}"]
        variance = logged[f"metrics/mse_k{k}"] / unexplained
        assert variance == pytest.approx(the_variance, rel=1e-4)
    assert logged["metrics/explained_variance_k8"] == pytest.approx(
        logged["metrics/explained_variance"], abs=1e-4
    )
    assert "losses/hierarchical_loss" in logged
    assert cfg.logger.wandb_id == "the run"  # a resumed run goes on in it
    assert "model_performance_preservation" in logged  # SAELens's evals ran


def test_broken_checkpoints_are_refused_before_training(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset, tmp_path: Path
) -> None:
    cfg = make_config(n_checkpoints=1)
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    LanguageModelSAETrainingRunner(cfg, **options).run()
    checkpoint = find_checkpoint(cfg.checkpoint_path or "")
    (checkpoint / "trainer_state.pt").unlink()

    with pytest.raises(ValueError, match=r"no whole checkpoint.*trainer_state\.pt"):
        LanguageModelSAETrainingRunner.from_checkpoint(checkpoint, **options)
    empty = make_config(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no checkpoint in .*nowhere"):
        LanguageModelSAETrainingRunner(empty, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 64}, r"d_in must be 128, the width of .* got 64"),
        (
            {"hook_name": "blocks.2.hook_resid_pos"},
            "'blocks.2.hook_resid_pos' is no hook .* blocks.2.hook_resid_post",
        ),
        (
            {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 1},
            "d_in must be 32",
        ),
    ],
)
def test_hook_is_checked_before_training(
    make_config: MakeConfig,
    model: HookedSAETransformer,
    text: Dataset,
    changes: dict[str, Any],
    message: str,
) -> None:
    cfg = make_config(**changes)

    with pytest.raises(ValueError, match=message):
        LanguageModelSAETrainingRunner(cfg, override_dataset=text, override_model=model)
    assert not Path(cfg.output_path or "").exists()


def test_batch_larger_than_the_buffer_is_named(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(train_batch_size_tokens=1000, training_tokens=1000)
    runner = LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    )

    with pytest.raises(ValueError, match="train_batch_size_tokens must be at most"):
        runner.run()


@pytest.mark.parametrize(
    "normalize", ["expected_average_only_in", "covariance_whitening"]
)
def test_a_checkpoint_in_mid_training_reads_plain_activations(
    normalize: str,
    make_config: MakeConfig,
    tmp_path: Path,
    model: HookedSAETransformer,
    text: Dataset,
) -> None:
    """Its last checkpoint and the SAE that training ends with have the same weights."""
    cfg = make_config(normalize_activations=normalize, n_checkpoints=9)
    trained = LanguageModelSAETrainingRunner(
        cfg, override_dataset=text, override_model=model
    ).run()
    x = torch.randn(20, 128)

    sae = load_sae(tmp_path / "output")
    torch.testing.assert_close(sae(x), trained(x))
    folders = Path(cfg.checkpoint_path or "").glob("[0-9]*")
    unfolded = load_sae(max(folders, key=lambda folder: int(folder.name)))
    assert unfolded.cfg.normalize_activations == "none"
    error = (unfolded(x) - sae(x)).norm() / sae(x).norm()
    assert error < 0.05


def test_a_run_that_has_ended_cannot_go_on(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    """SAELens would fold the normalization into its weights a second time."""
    cfg = make_config(
        normalize_activations="covariance_whitening", save_final_checkpoint=True
    )
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    LanguageModelSAETrainingRunner(cfg, **options).run()
    (final,) = Path(cfg.checkpoint_path or "").glob("final_*")

    with pytest.raises(ValueError, match="is of a run that has ended"):
        LanguageModelSAETrainingRunner.from_checkpoint(final, **options).run()


def test_the_seed_fixes_the_weights(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    first, second, other = (
        LanguageModelSAETrainingRunner(
            make_config(seed=seed), override_dataset=text, override_model=model
        ).sae.W_dec
        for seed in (7, 7, 8)
    )

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_copy_of_an_sae_keeps_its_decoder_at_norm_1(
    make_config: MakeConfig, model: HookedSAETransformer, text: Dataset
) -> None:
    cfg = make_config(unit_norm_decoder=True)
    options: dict[str, Any] = {"override_dataset": text, "override_model": model}
    sae = LanguageModelSAETrainingRunner(cfg, **options).sae

    trained = LanguageModelSAETrainingRunner(
        cfg, **options, override_sae=copy.deepcopy(sae)
    ).run()

    norms = trained.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
