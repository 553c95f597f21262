"""Tests of SAEBench at every k, on the bundled model and with a judge on loopback."""

# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import csv
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sae_bench.evals.core.main as core_main
import torch
from sae_bench.sae_bench_utils import graphing_utils
from sae_lens import (
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from torch import Tensor

from sae_lens_hierarchical import HierarchicalTopKSAE, calibrate_thresholds
from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.eval.sweep import sweep
from sae_lens_hierarchical.saebench.evals import SAEBench, draw_tokens
from sae_lens_hierarchical.saebench.inputs import NOTE
from sae_lens_hierarchical.saebench.judge import TRIES, Judge, JudgeError
from sae_lens_hierarchical.saebench.results import autointerp_scores
from tests.saebench.judge_server import JudgeServer

KS = [2, 8]
LATENTS = 6


@pytest.fixture(scope="module")
def tokens(model: HookedSAETransformer, sae: HierarchicalTopKSAE) -> Tensor:
    return draw_tokens(model, sae, load_bundled_dataset("held_out"), 32)


@pytest.fixture
def bench(model: HookedSAETransformer, tokens: Tensor, tmp_path: Path) -> SAEBench:
    output = tmp_path / "eval_results"
    return SAEBench(model=model, tokens=tokens, dataset_name="bundled", output=output)


def new_judge(server: JudgeServer, bench: SAEBench, **options: Any) -> Judge:
    # It would wait for minutes.
    options = {"sleep": lambda _: None, **options}
    return Judge("small", bench.output / "answers", url=server.url, **options)


def load_result(bench: SAEBench, name: str) -> dict[str, Any]:
    path = bench.output / f"{name}_eval_results.json"
    # Strictly: NaN is no JSON.
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def files(bench: SAEBench) -> set[str]:
    folder = bench.output
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("exclude", [True, False])
def test_core_finds_what_the_sweep_finds(
    bench: SAEBench, sae: HierarchicalTopKSAE, tokens: Tensor, exclude: bool
) -> None:
    sae = copy.deepcopy(sae)
    if exclude:  # tokens that the SAE was not trained on
        sae.cfg.metadata.exclude_special_tokens = tokens[0, 1:9].tolist()
    before = copy.deepcopy(sae)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Decoder weights are not normalized")
        bench.core({"ours": sae}, KS)

    expected = sweep({"ours": sae}, bench.model, tokens.split(16), KS)
    for row in expected:
        result = load_result(bench, f"core/ours_k_{row.k}")
        metrics = {
            n: v for g in result["eval_result_metrics"].values() for n, v in g.items()
        }
        assert metrics["l0"] == pytest.approx(row.l0)
        assert metrics["cossim"] == pytest.approx(row.cosine_similarity, rel=1e-4)
        assert metrics["kl_div_with_sae"] == pytest.approx(row.kl_div, rel=1e-3)
        # SAEBench divides by the tokens of a batch once more.
        mse = metrics["mse"] * row.tokens / (len(tokens) / 16)
        assert mse == pytest.approx(row.mse, rel=1e-2)
        assert (1 - metrics["frac_alive"]) * 96 == pytest.approx(row.dead_features)
        assert result["sae_cfg_dict"]["k"] == row.k
        assert len(result["eval_result_details"]) == 96
    assert sae.k == 8
    assert sae.cfg == before.cfg
    torch.testing.assert_close(sae.state_dict(), before.state_dict(), equal_nan=True)


def test_saebenchs_explained_variance_is_what_budget_metrics_say(
    bench: SAEBench, sae: HierarchicalTopKSAE
) -> None:
    """A SAEBench that has mended it fails here: mend our docstring then."""
    bench.core({"ours": sae}, [8])

    hook_name = str(sae.cfg.metadata.hook_name)
    _, cache = bench.model.run_with_cache(bench.tokens, names_filter=hook_name)
    bos = bench.model.tokenizer.bos_token_id
    x = cache[hook_name][bench.tokens != bos]
    (row,) = sweep({"ours": sae}, bench.model, bench.tokens.split(16), [8])
    mean_square = float(x.pow(2).sum(-1).mean())
    metrics = load_result(bench, "core/ours_k_8")["eval_result_metrics"]
    theirs = metrics["reconstruction_quality"]["explained_variance"]
    expected = 1 - row.mse / (mean_square - (mean_square / 128) ** 2)
    assert theirs == pytest.approx(expected, rel=1e-2)
    assert theirs != pytest.approx(row.explained_variance, rel=1e-2)


def test_saebenchs_own_tools_see_a_curve(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    server: JudgeServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"rescale_acts_by_decoder_norm": True}
    settings["metadata"] = sae.cfg.metadata
    topk = TopKSAE(TopKSAEConfig(d_in=128, d_sae=96, k=4, **settings))
    weights = {name: sae.state_dict()[name] for name in topk.state_dict()}
    topk.load_state_dict(weights)
    saes = {"ours": sae, "topk/4": topk}
    replace(bench, tokens=bench.tokens[:8], batch_size=8).core(saes, KS)
    bench.autointerp(saes, KS, new_judge(server, bench), LATENTS)

    found = {
        name: sorted(graphing_utils.find_eval_results_files([str(bench.output / name)]))
        for name in ("core", "autointerp")
    }
    l0s = graphing_utils.get_core_results(found["core"])
    scores = graphing_utils.get_eval_results(found["autointerp"])

    ids = ["ours_k_2", "ours_k_8", "topk_4_k_2", "topk_4_k_8"]
    assert list(scores) == list(l0s) == ids
    assert [l0s[name]["l0"] for name in ids] == pytest.approx([2, 8, 2, 8])
    assert [scores[name]["sae_class"] for name in ids] == [
        "hierarchical_topk",
        "hierarchical_topk",
        "topk",
        "topk",
    ]
    assert autointerp_scores(bench.output) == [
        ("ours", 2, scores["ours_k_2"]["autointerp_score"]),
        ("ours", 8, scores["ours_k_8"]["autointerp_score"]),
        ("topk/4", 2, scores["topk_4_k_2"]["autointerp_score"]),
        ("topk/4", 8, scores["topk_4_k_8"]["autointerp_score"]),
    ]
    paths = [Path(path) for group in found.values() for path in group]
    assert len({json.loads(path.read_text())["eval_id"] for path in paths}) == 8
    # The weights are the same, so what is found of them is.
    for k in KS:
        ours, others = (
            load_result(bench, f"core/{n}_k_{k}") for n in ("ours", "topk_4")
        )
        ours, others = (r["eval_result_metrics"]["sparsity"] for r in (ours, others))
        assert ours == pytest.approx(others, rel=1e-4)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    graphing_utils.plot_results(
        found["autointerp"], found["core"], "autointerp", str(tmp_path / "plot")
    )
    assert (tmp_path / "plot_2var_sae_type.png").stat().st_size > 1000


def test_an_sae_without_k_is_evaluated_as_it_is(
    bench: SAEBench, sae: HierarchicalTopKSAE
) -> None:
    metadata = sae.cfg.metadata
    jumprelu = JumpReLUSAE(JumpReLUSAEConfig(d_in=128, d_sae=96, metadata=metadata))
    jumprelu.load_state_dict(sae.state_dict() | {"threshold": torch.ones(96)}, False)

    bench.core({"jumprelu": jumprelu}, KS)

    assert files(bench) == {"core/jumprelu_custom_sae_eval_results.json"}
    result = load_result(bench, "core/jumprelu_custom_sae")
    assert result["sae_lens_id"] == "custom_sae"
    rows = sweep({"it": jumprelu}, bench.model, bench.tokens.split(16), [8])
    (own,) = (row for row in rows if row.activation == "own")
    assert result["eval_result_metrics"]["sparsity"]["l0"] == pytest.approx(own.l0)


def test_an_sae_saved_as_jumprelu_is_evaluated_as_topk(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer
) -> None:
    topk = copy.deepcopy(sae)
    hook_name = str(sae.cfg.metadata.hook_name)
    _, cache = bench.model.run_with_cache(bench.tokens, names_filter=hook_name)
    calibrate_thresholds(topk, cache[hook_name])
    jumprelu = copy.deepcopy(topk)
    jumprelu.activation = "jumprelu"
    saes = {"topk": topk, "jumprelu": jumprelu}

    bench.core(saes, KS)
    bench.autointerp(saes, KS, new_judge(server, bench), LATENTS)

    for eval_type in ("core", "autointerp"):
        for k in KS:
            expected, found = (
                load_result(bench, f"{eval_type}/{name}_k_{k}") for name in saes
            )
            assert found["eval_result_metrics"] == expected["eval_result_metrics"]
            assert found[NOTE] == expected[NOTE]
    assert jumprelu.activation == "jumprelu"


def test_autointerp_bears_the_apis_failures_and_asks_nothing_twice(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    server: JudgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.failures = [429, 500, "time-out", "reset", "half JSON", "nothing", "null"]
    judge = new_judge(server, bench, timeout=2)

    bench.autointerp({"ours": sae}, KS, judge, LATENTS)

    calls = 2 * sum(
        len(load_result(bench, f"autointerp/ours_k_{k}")["eval_result_unstructured"])
        for k in KS
    )
    assert f"{calls} calls to small at {server.url}" in capsys.readouterr().out
    assert calls > LATENTS
    assert len(server.asked) == calls + 7
    first = autointerp_scores(bench.output)
    assert [(name, k) for name, k, _ in first] == [("ours", k) for k in KS]
    # Half of the fourteen texts by chance.
    assert all(0.5 < score < 1 for _, _, score in first), first
    result = load_result(bench, "autointerp/ours_k_2")
    config, sae_config = result["eval_config"], result["sae_cfg_dict"]
    assert (sae_config["k"], sae_config["device"]) == (2, "cpu")
    assert (config["judge"], config["judge_url"]) == ("small", server.url)

    server.asked.clear()
    bench.autointerp({"ours": sae}, KS, new_judge(server, bench), LATENTS)
    forced = replace(bench, force=True)
    forced.autointerp({"ours": sae}, KS, new_judge(server, bench), LATENTS)

    assert server.asked == []
    assert autointerp_scores(bench.output) == first
    assert "AutoInterp: 0 calls" in capsys.readouterr().out


def test_a_limit_below_the_estimate_is_said_before_anything_is_asked(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer
) -> None:
    with pytest.raises(ValueError, match="max_calls must be at least 10, which"):
        bench.autointerp({"ours": sae}, [2], new_judge(server, bench, max_calls=9), 6)

    assert server.asked == []
    bench.autointerp({"ours": sae}, [2], new_judge(server, bench, max_calls=10), 6)
    assert len(server.asked) == 10


def test_a_limit_stops_autointerp_and_the_next_run_goes_on(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer
) -> None:
    server.script = [("", "stop")] * 5  # which are to be asked for again
    with pytest.raises(JudgeError, match="the limit of 10 calls"):
        bench.autointerp({"ours": sae}, [2], new_judge(server, bench, max_calls=10), 6)

    assert len(server.asked) == 10
    assert files(bench) == {"answers"}
    bench.autointerp({"ours": sae}, [2], new_judge(server, bench), 6)
    assert len(server.asked) == 10 + 5


def test_after_a_refusal_nothing_more_is_asked(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer
) -> None:
    server.failures = [401] * 1000

    with pytest.raises(JudgeError, match="401"):
        bench.autointerp({"ours": sae}, KS, new_judge(server, bench), 30)

    # As many as there are threads were under way; 30 were to come for each k.
    assert 1 <= len(server.asked) <= 10


def test_answers_that_are_no_lists_are_not_scored(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    server: JudgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench.autointerp({"ours": sae}, [8], new_judge(server, bench), LATENTS)
    whole = load_result(bench, "autointerp/ours_k_8")["eval_result_unstructured"]
    one = next(iter(whole.values()))["explanation"]
    same = [r for r in whole.values() if r["explanation"] == one]

    server.asked.clear()
    server.answers[f"fires on {one}."] = "1, ²"
    other = replace(bench, output=bench.output.with_name("other"))
    other.autointerp({"ours": sae}, [8], new_judge(server, other), LATENTS)

    rest = load_result(other, "autointerp/ours_k_8")["eval_result_unstructured"]
    assert len(rest) == len(whole) - len(same)
    said = capsys.readouterr().out
    assert f"{len(same)} of {len(whole)} features are not scored" in said
    assert len(server.asked) == 2 * len(whole) + (TRIES - 1) * len(same)
    # The judge may have learnt: what was of no use is asked again.
    server.asked.clear()
    del server.answers[f"fires on {one}."]
    forced = replace(other, force=True)
    forced.autointerp({"ours": sae}, [8], new_judge(server, other), LATENTS)
    assert (
        load_result(other, "autointerp/ours_k_8")["eval_result_unstructured"] == whole
    )
    assert len(server.asked) == len(same)
    server.answers["fires on"] = "I cannot tell."
    none = replace(bench, output=bench.output.with_name("none"))
    with pytest.raises(JudgeError, match="no answer of use about the first 6 features"):
        none.autointerp({"ours": sae}, [8], new_judge(server, none), LATENTS)
    assert files(none) == {"answers"}


def test_one_feature_has_a_score_without_a_spread(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer
) -> None:
    bench.autointerp({"ours": sae}, [8], new_judge(server, bench), 1)

    metrics = load_result(bench, "autointerp/ours_k_8")["eval_result_metrics"][
        "autointerp"
    ]
    assert metrics["autointerp_std_dev"] == 0
    assert 0 <= metrics["autointerp_score"] <= 1


def test_too_small_a_dataset_is_said(
    bench: SAEBench, sae: HierarchicalTopKSAE, server: JudgeServer, tokens: Tensor
) -> None:
    little = replace(bench, tokens=tokens[:1])

    with pytest.raises(ValueError, match="ours at k = 2 is active often enough"):
        little.autointerp({"ours": sae}, [2], new_judge(server, bench), LATENTS)

    assert server.asked == []


def test_results_are_made_once_and_whole(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = replace(bench, tokens=bench.tokens[:4], batch_size=4)
    save = core_main.save_single_eval_result

    def killed(*args: Any) -> None:
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(core_main, "save_single_eval_result", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.core({"ours": sae}, KS)
    assert files(bench) == set()
    monkeypatch.undo()

    bench.core({"ours": sae}, [2])
    first = load_result(bench, "core/ours_k_2")
    bench.core({"ours": sae}, KS)
    assert "ours_k_2_eval_results.json is there already" in capsys.readouterr().out

    assert load_result(bench, "core/ours_k_2") == first
    replace(bench, force=True).core({"ours": sae}, [2])
    again = load_result(bench, "core/ours_k_2")
    assert again["eval_id"] != first["eval_id"]
    assert again["eval_result_metrics"] == first["eval_result_metrics"]
    with pytest.raises(ValueError, match="ks must be"):
        bench.core({"ours": sae}, [8, 2])
    training = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=9, k=2))
    training.cfg.metadata.hook_name = sae.cfg.metadata.hook_name
    with pytest.raises(ValueError, match="it is a training SAE: save it and load it"):
        bench.core({"it": training}, [2])


def test_a_result_of_something_else_is_made_again(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    tokens: Tensor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = replace(bench, tokens=tokens[:4], batch_size=4)
    bench.core({"ours": sae}, [2])
    made = {load_result(bench, "core/ours_k_2")["eval_id"]}
    moved, other_weights = copy.deepcopy(sae), copy.deepcopy(sae)
    moved.k = 5
    moved.cfg.metadata.dataset_path = "elsewhere"
    with torch.no_grad():
        other_weights.b_dec.add_(0.01)

    def core(sae: HierarchicalTopKSAE, **changes: Any) -> str:
        replace(bench, **changes).core({"ours": sae}, [2])
        made.add(load_result(bench, "core/ours_k_2")["eval_id"])
        return capsys.readouterr().out

    said = core(moved)
    assert "ours_k_2_eval_results.json is there already, of the same SAE, data" in said
    assert "taken as done" in said
    assert len(made) == 1
    path = "ours_k_2_eval_results.json is there and is made again: "
    assert f"{path}other SAE\n" in core(other_weights)
    assert f"{path}other tokens\n" in core(other_weights, tokens=tokens[4:8])
    said = core(other_weights, tokens=tokens[4:8], dataset_name="other")
    assert f"{path}dataset was 'bundled' and is 'other'\n" in said
    assert len(made) == 4
    file = bench.output / "core/ours_k_2_eval_results.json"
    file.write_text('{"eval_id": "of an older version"}')
    assert f"{path}it does not say what it was made from" in core(sae)
    with pytest.raises(ValueError, match="the results of a/b would have the file name"):
        bench.core({"a/b": sae, "a_b": sae}, [2])


def test_a_result_of_another_judge_or_other_latents_is_made_again(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    server: JudgeServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def latents(judge: Judge, latents: int) -> str:
        bench.autointerp({"ours": sae}, [8], judge, latents)
        return load_result(bench, "autointerp/ours_k_8")[NOTE]["latents"]

    first = latents(new_judge(server, bench), 3)
    capsys.readouterr()
    assert latents(new_judge(server, bench), 3) == first
    assert "taken as done" in capsys.readouterr().out
    assert latents(new_judge(server, bench), 2) != first
    assert "made again: n_latents was 3 and is 2\n" in capsys.readouterr().out
    large = Judge("large", bench.output / "answers", url=server.url)
    assert latents(large, 3) == first
    said = capsys.readouterr().out
    assert "judge was 'small' and is 'large'; n_latents was 2 and is 3\n" in said


def test_sparse_probing_takes_local_datasets(
    bench: SAEBench,
    sae: HierarchicalTopKSAE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [
        line
        for document in load_bundled_dataset("train")["text"][:40]
        for line in document.split("\n")
        if len(line) > 80
    ]
    folder = tmp_path / "fancyzhx" / "ag_news"
    folder.mkdir(parents=True)
    for split, start in (("train", 0), ("test", 80)):
        with (folder / f"{split}.csv").open("w") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            # What is told apart is told by a word.
            rows.writerows(
                (f"{'ABCD'[n % 4]} " * 20 + lines[start + n], n % 4) for n in range(80)
            )
    sizes = {"probe_train_set_size": 40, "probe_test_set_size": 20}
    grad = torch.is_grad_enabled()

    bench.sparse_probing({"ours": sae}, KS, ["fancyzhx/ag_news"], **sizes)

    results = [load_result(bench, f"sparse_probing/ours_k_{k}") for k in KS]
    metrics = [result["eval_result_metrics"] for result in results]
    assert metrics[0]["llm"] == metrics[1]["llm"]
    for found in metrics:
        assert found["llm"]["llm_test_accuracy"] > 0.8
        assert found["sae"]["sae_top_5_test_accuracy"] > 0.5
    assert metrics[0]["sae"] != metrics[1]["sae"]
    assert (
        results[0]["eval_result_details"][0]["dataset_name"]
        == "fancyzhx/ag_news_results"
    )
    assert files(bench) == {f"sparse_probing/ours_k_{k}_eval_results.json" for k in KS}
    assert torch.is_grad_enabled() == grad
