"""Tests of SAEBench's SCR and TPP, on the bundled model and local datasets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import HookedSAETransformer

from sae_lens_hierarchical import HierarchicalTopKSAE
from sae_lens_hierarchical.data import load_bundled_dataset
from sae_lens_hierarchical.saebench.evals import SAEBench

KS = [2, 8]
BIOS = "LabHC/bias_in_bios_class_set1"
# A profession and a gender are each told by a word. Professors and nurses are SCR's.
PROFESSIONS = {0: "A", 1: "B", 2: "C", 6: "D", 9: "E", 21: "F", 13: "G"}
GENDERS = {0: "he", 1: "she"}
SETTINGS: dict[str, Any] = {
    "train_set_size": 40,
    "test_set_size": 20,
    "context_length": 32,
    "n_values": [2, 20],
    "column1_vals_lookup": {BIOS: [("professor", "nurse")]},
}
TEXTS = {"train": 21, "test": 11}  # of each profession and gender


def write_bios(folder: Path, texts: dict[str, int] = TEXTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        line
        for document in load_bundled_dataset("train")["text"][:60]
        for line in document.split("\n")
        if len(line) > 40
    ]
    for split, number in texts.items():
        with (folder / f"{split}.csv").open("w") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["hard_text", "profession", "gender"])
            for n in range(number):
                for profession, letter in PROFESSIONS.items():
                    for gender, word in GENDERS.items():
                        text = f"{letter} {word} " * 5 + lines[n]
                        rows.writerow([text, profession, gender])


@pytest.fixture
def bench(
    model: HookedSAETransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SAEBench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    tokens = torch.zeros(1, 2, dtype=torch.long)  # they are not looked at
    output = tmp_path / "eval_results"
    return SAEBench(model=model, tokens=tokens, dataset_name="none", output=output)


def test_scr_and_tpp_take_local_datasets(
    bench: SAEBench, sae: HierarchicalTopKSAE, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bios(Path("LabHC/bias_in_bios"))
    grad = torch.is_grad_enabled()

    bench.scr_and_tpp({"ours": sae}, KS, [BIOS], **SETTINGS)

    files = {
        str(path.relative_to(bench.output)): json.loads(
            path.read_text(), parse_constant=pytest.fail
        )
        for path in bench.output.rglob("*")
        if path.is_file()
    }
    names = [f"{e}/ours_k_{k}_eval_results.json" for e in ("scr", "tpp") for k in KS]
    assert sorted(files) == names
    scr, tpp = (
        [files[f"{e}/ours_k_{k}_eval_results.json"] for k in KS] for e in ("scr", "tpp")
    )
    for results in (scr, tpp):
        assert results[0]["eval_result_metrics"] != results[1]["eval_result_metrics"]
        assert [result["sae_cfg_dict"]["k"] for result in results] == KS
    # Features that are chosen for a class are about that class.
    metrics = tpp[1]["eval_result_metrics"]["tpp_metrics"]
    assert metrics["tpp_threshold_20_total_metric"] > 0.1
    assert list(tpp[1]["eval_result_unstructured"][BIOS]) == ["0", "1", "2", "6", "9"]
    assert scr[1]["eval_result_metrics"]["scr_metrics"]["scr_metric_threshold_2"] > 0
    (detail,) = scr[1]["eval_result_details"]
    assert detail["dataset_name"] == f"{BIOS}_scr_professor_nurse_results"
    assert torch.is_grad_enabled() == grad

    capsys.readouterr()
    bench.scr_and_tpp({"ours": sae}, KS, [BIOS], **SETTINGS)
    assert capsys.readouterr().out.count("taken as done") == 4
    write_bios(Path("LabHC/bias_in_bios"), {"train": 22, "test": 11})
    bench.scr_and_tpp({"ours": sae}, [2], [BIOS], **SETTINGS)
    assert capsys.readouterr().out.count("made again: other labelled data\n") == 2


def test_datasets_that_do_not_do_are_said_before_anything_runs(
    bench: SAEBench, sae: HierarchicalTopKSAE
) -> None:
    def expect(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            bench.scr_and_tpp({"ours": sae}, KS, [BIOS], **SETTINGS)

    expect("needs the dataset LabHC/bias_in_bios, which is no folder with data in")
    folder = Path("LabHC/bias_in_bios")
    write_bios(folder, {"train": 21})
    expect("a split test of LabHC/bias_in_bios with columns hard_text, profession and")
    write_bios(folder, {"train": 21, "test": 10})
    expect(
        "takes 20 rows, needs at least 11 rows of LabHC/bias_in_bios in test with "
        "profession = 21 and gender = 0, and it has 10"
    )
    write_bios(folder)
    # TPP's are looked at before SCR runs.
    for split in TEXTS:
        lines = (folder / f"{split}.csv").read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.endswith(",2,1\n")]
        (folder / f"{split}.csv").write_text("".join(kept))
    expect("at least 10 rows .* in train with profession = 2 and gender = 1, .* has 0")
    assert not any(path.is_file() for path in bench.output.rglob("*"))
