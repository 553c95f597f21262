"""Tests of training runs over several processes: data, checkpoints, signals, errors."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.training.checkpoint import find_checkpoint, open_checkpoint
from tests.training.distributed.processes import run_on_processes
from tests.training.distributed.runs import (
    logged,
    refusal,
    state_after_loading,
    stopped,
    train,
    train_on_one,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")


def the_checkpoint(folder: Path) -> Path:
    return find_checkpoint(folder / "checkpoints")


def assert_same_files(one: Path, other: Path) -> None:
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_activations": "expected_average_only_in"},
        {"normalize_activations": "covariance_whitening", "dtype": "bfloat16"},
        {"prefetch_llm_batches": True, "unit_norm_decoder": False, "loss_every": 4},
    ],
    ids=["normalized", "whitened in half precision", "prefetched"],
)
def test_a_run_resumed_on_as_many_processes_equals_an_uninterrupted_one(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_on_processes(2, train, whole, changes)
    start = str(the_checkpoint(whole))
    again = {**changes, "resume_from_checkpoint": start, "n_checkpoints": 0}
    run_on_processes(2, train, resumed, again)

    assert_same_files(whole / "output", resumed / "output")
    sae = SAE.load_from_disk(whole / "output")
    assert isinstance(sae, HierarchicalTopKSAE)
    assert sae.W_dec.shape == (67, 128)
    assert sae.thresholds.isfinite().all()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (2, 4)])
def test_another_number_of_processes_resumes_the_same_sae(
    before: int, after: int, tmp_path: Path
) -> None:
    run_on_processes(before, train if before > 1 else train_on_one, tmp_path, {})
    checkpoint = the_checkpoint(tmp_path)
    trained = load_file(checkpoint / "sae_weights.safetensors")
    optimizer = torch.load(checkpoint / "trainer_state.pt", weights_only=True)
    changes = {"resume_from_checkpoint": str(checkpoint), "n_checkpoints": 0}

    states = run_on_processes(after, state_after_loading, tmp_path / "new", changes)
    run_on_processes(
        after, train if after > 1 else train_on_one, tmp_path / "new", changes
    )

    names = ("b_dec", "W_dec", "W_enc", "b_enc")
    store = load_file(checkpoint / "activations_store_state.safetensors")
    read = sum(state["n_sequences"] for state in states)
    assert abs(read - before * int(store["n_sequences"])) < after
    for state in states:
        assert state["n_training_samples"] == optimizer["n_training_samples"] > 0
        expected = optimizer["n_forward_passes_since_fired"]
        assert torch.equal(state["firings"], expected)
        thresholds = trained["thresholds"].view(torch.float32).flatten()
        assert torch.equal(state["thresholds"], thresholds)
        for number, name in enumerate(names):
            assert torch.equal(state[name], trained[name]), name
            for moment in ("exp_avg", "exp_avg_sq"):
                own, found = state[f"{name} {moment}"]
                whole = optimizer["optimizer"]["state"][number][moment]
                assert whole.shape == trained[name].shape
                assert torch.equal(found, whole[own]), (name, moment)
    sae = SAE.load_from_disk(tmp_path / "new" / "output")
    assert not torch.equal(sae.W_dec, trained["W_dec"])  # it went on


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_all_with_one_checkpoint(
    rank: int, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_on_processes(2, train, whole, {"n_checkpoints": 0})

    places = run_on_processes(2, stopped, part, {"n_checkpoints": 0}, rank, 4)

    assert places == [the_checkpoint(part)] * 2
    assert places[0].name == str(5 * 96)
    changes = {"resume_from_checkpoint": str(places[0]), "n_checkpoints": 0}
    run_on_processes(2, train, tmp_path / "resumed", changes)
    assert_same_files(whole / "output", tmp_path / "resumed" / "output")


@pytest.mark.parametrize("prefetch", [False, True])
def test_process_0_logs_and_evaluates_the_whole_sae(
    prefetch: bool, tmp_path: Path
) -> None:
    # From zeros ten steps are enough to see the loss fall.
    changes: dict[str, Any] = {"b_dec_init": "zeros", "log_to": ["csv"]}
    changes["prefetch_llm_batches"] = prefetch
    (start, *rows), (start_of_other, *_) = run_on_processes(
        2, logged, tmp_path, changes
    )

    assert start["project"]
    assert start_of_other == {"mode": "disabled"}  # whose rows go nowhere
    run = json.loads((the_checkpoint(tmp_path) / "runner_cfg.json").read_text())
    assert run["logger"]["log_to_wandb"]
    losses = [row["losses/hierarchical_loss"] for row in rows if "losses" in str(row)]
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    with (tmp_path / "output" / "training_metrics.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    assert [float(row["losses/hierarchical_loss"]) for row in table] == losses
    evaluations = [row for row in rows if "model_performance_preservation" in str(row)]
    assert len(evaluations) == 2


@pytest.mark.parametrize(
    ("changes", "of_last", "message"),
    [
        ({"train_batch_size_tokens": 95}, {}, "train_batch_size_tokens must be a"),
        ({"d_sae": 1, "k": 1}, {}, "d_sae must be at least the number of processes"),
        ({"compile_sae": True}, {}, "compile_sae must be False"),
        ({"device": "cpu:0"}, {}, "device must be cpu or cuda"),
        ({"act_store_device": "cuda:1"}, {}, "act_store_device must be cpu or cuda"),
        (
            {"hook_name": "blocks.9.hook_resid_post"},
            {},
            "hook_name 'blocks.9.hook_resid_post' is no hook",
        ),
        ({"architecture": "topk"}, {}, "architecture must be hierarchical_topk"),
        ({}, {"lr": 2e-3}, "lr: 0.001 on process 0, 0.002 on 1"),
        ({"resume_from_checkpoint": "/nowhere"}, {}, "there is no checkpoint in"),
        ({"from_pretrained_path": "/nowhere"}, {}, "/nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_process_says_what_does_not_fit(
    changes: dict[str, Any], of_last: dict[str, Any], message: str, tmp_path: Path
) -> None:
    said = run_on_processes(2, refusal, tmp_path, changes, of_last)

    (error,) = [words for words in said if words is not None]
    assert message in error
    assert not (tmp_path / "output").exists()


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return (
        [int(pid) for pid in children.read_text().split()] if children.exists() else []
    )


def test_a_killed_process_ends_the_others_and_leaves_whole_checkpoints(
    tmp_path: Path,
) -> None:
    """Under torchrun, as users start it."""
    checkpoints = tmp_path / "checkpoints"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "sae_lens_hierarchical", "train", "--preset", "bundled"]
    command += ["--training_tokens", "40000000", "--n_checkpoints", "20000"]
    command += ["--checkpoint_path", str(checkpoints)]
    command += ["--output_path", str(tmp_path / "output")]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    try:
        end = time.monotonic() + 240
        while len(list(checkpoints.glob("*/*/manifest.json"))) < 2:
            assert torchrun.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.1)
        workers = children_of(torchrun)
        assert len(workers) == 2
        os.kill(workers[-1], signal.SIGKILL)
        assert torchrun.wait(timeout=60) != 0
    finally:
        for worker in children_of(torchrun):  # that a kill of torchrun leaves alone
            os.kill(worker, signal.SIGKILL)
        torchrun.kill()
    assert not any(Path("/proc", str(worker)).exists() for worker in workers)
    checkpoint = find_checkpoint(checkpoints)
    assert open_checkpoint(checkpoint).folder == checkpoint
