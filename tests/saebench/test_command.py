"""Tests of ``sae-lens-hierarchical saebench`` as a user would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sae_lens import HookedSAETransformer
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.saebench.results import autointerp_scores, read_results
from tests.saebench.judge_server import JudgeServer
from tests.stranger import Stranger

SMALL = ["--k", "2,8", "--contexts", "24", "--latents", "4"]
# Nobody is there: it is not to be asked.
JUDGE = ["--evals=autointerp", "--judge-model=small", "--judge-url=http://localhost:1"]


def test_core_and_autointerp_on_the_bundled_model(
    checkpoint: Path,
    server: JudgeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    judge = ["--judge-model", "small", "--judge-url", server.url, "--price", "1,2"]
    command = ["saebench", str(checkpoint), *SMALL, *judge]
    command += ["--evals", "core,autointerp"]
    assert main([*command, "--max-calls", "2"]) == 2
    assert "max_calls must be at least 16" in capsys.readouterr().err
    assert server.asked == []
    assert main(command) == 0

    table = capsys.readouterr().out
    for word in ("ours", "L0", "AutoInterp", "8.000", "eval_results", "about $0.0"):
        assert word in table
    assert "eval_results/core, eval_results/autointerp: a JSON file" in table
    assert f"Next: sae-lens-hierarchical sweep {checkpoint} --k 2,8" in table
    assert [(r.sae, r.k) for r in read_results("eval_results")] == [
        ("ours", 2),
        ("ours", 8),
    ]
    asked = len(server.asked)
    Path("sweep_output").mkdir()
    Path("sweep_output/metrics.parquet").touch()
    assert main([*command, "--force"]) == 0
    assert len(server.asked) == asked
    out = capsys.readouterr().out
    following = "figures sweep_output/metrics.parquet --autointerp eval_results"
    assert f"Next: sae-lens-hierarchical {following}" in out
    assert len(autointerp_scores("eval_results")) == 2


@pytest.mark.parametrize(
    ("model_class", "hook_name"),
    [
        ("HookedTransformer", "blocks.1.hook_resid_post"),
        ("AutoModelForCausalLM", "transformer.h.1"),
    ],
)
def test_a_local_model_and_dataset_in_place_of_hub_names(
    model_class: str,
    hook_name: str,
    model: HookedSAETransformer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    server: JudgeServer,
) -> None:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    text = load_bundled_dataset("held_out").select(range(8))
    text.to_json(tmp_path / "text" / "train.jsonl")
    sae = HierarchicalTopKSAE(HierarchicalTopKSAEConfig(d_in=16, d_sae=32, k_max=8))
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.model_class_name = model_class
    sae.cfg.metadata.prepend_bos = True
    sae.save_model(tmp_path / "sae")
    local = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "text")]
    output = ["--output", str(tmp_path / "results")]
    judge = ["--judge-model", "small", "--judge-url", server.url]
    command = ["saebench", str(tmp_path / "sae"), *SMALL, *local, *judge, *output]

    assert main([*command, "--evals", "core,autointerp"]) == 0

    found = read_results(tmp_path / "results")
    assert [r.metrics["sparsity", "l0"] for r in found] == pytest.approx([2, 8])
    assert [k for _, k, _ in autointerp_scores(tmp_path / "results")] == [2, 8]
    config = json.loads(next(tmp_path.glob("results/core/*.json")).read_text())
    assert config["eval_config"]["model_name"] == str(tmp_path / "model")
    assert config["eval_config"]["llm_dtype"] == "float32"
    assert main(["saebench", str(tmp_path / "sae"), *SMALL, *output]) == 2
    assert "must name one model" in capsys.readouterr().err


def test_a_strangers_python_runs_only_by_the_users_flag(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.add_model_code()
    stranger.save_sae(
        model_class_name="HookedTransformer",
        model_from_pretrained_kwargs={"trust_remote_code": True},
    )
    command = ["saebench", str(stranger.sae), *SMALL, "--output", str(tmp_path / "out")]

    assert main(command) == 2
    assert "'trust_remote_code': True" in capsys.readouterr().err
    assert main([*command, "--model", str(stranger.model)]) == 2
    assert "may run Python of its own only with" in capsys.readouterr().err
    assert not stranger.ran.exists()
    assert main([*command, "--trust-remote-code"]) == 0
    assert stranger.ran.exists()


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_psot", "../../planted"])
@pytest.mark.parametrize("eval_type", ["core", "sparse_probing", "autointerp"])
def test_a_hook_that_the_model_lacks_is_one_clear_line(
    eval_type: str,
    hook_name: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"]["hook_name"] = hook_name
    path.write_text(json.dumps(cfg))
    command = ["saebench", str(checkpoint), *SMALL, *JUDGE, "--evals", eval_type]

    assert main([*command, "--output", str(tmp_path / "results")]) == 2

    error = capsys.readouterr().err
    assert f"ours's hook_name '{hook_name}' is no hook of the model\n" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--evals", "core,ravel"], "evals must be some of"),
        (["--evals", "core,unlearning"], "unlearning needs WMDP's corpus bio-forget"),
        (
            ["--evals", "sparse_probing", "--probing-datasets", "ag_news"],
            "probing_datasets must be some of ['Helsinki-NLP/europarl', 'LabHC/bias",
        ),
        (
            ["--evals", "scr_and_tpp", "--scr-datasets", "fancyzhx/ag_news"],
            "scr_datasets must be some of ['LabHC/bias_in_bios_class_set1', 'canrager",
        ),
        (
            ["--evals", "core", "--scr-datasets", "LabHC/bias_in_bios_class_set1"],
            "scr_datasets is for scr_and_tpp, which evals does not have",
        ),
        (
            ["--evals", "core,scr_and_tpp"],
            "ablates up to 500 features, and ours has 96",
        ),
        (["--evals", "autointerp"], "autointerp needs a judge"),
        (["--evals", "autointerp", "--judge-model", "small"], "OPENAI_API_KEY"),
        (["--k", "8,2"], "ks must be"),
        (["--contexts", "0"], "contexts must be"),
        (["--batch-size", "0"], "batch_size must be"),
        ([*JUDGE, "--latents", "0"], "latents must be"),
        ([*JUDGE, "--max-calls", "-1"], "max_calls must be at least 0"),
        ([*JUDGE, "--price", "1,-2"], "price must be two numbers of at least 0"),
    ],
)
@pytest.mark.usefixtures("server")
def test_bad_options_are_one_clear_line(
    options: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = ["--output", str(tmp_path / "results")]

    assert main(["saebench", str(checkpoint), *SMALL, *output, *options]) == 2

    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*_eval_results.json"))
