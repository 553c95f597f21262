"""Tests of SAEBench's absorption, on a small model that knows words' first letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens_hierarchical import HierarchicalTopKSAE, HierarchicalTopKSAEConfig
from sae_lens_hierarchical.loading import load_model_and_dataset
from sae_lens_hierarchical.saebench.evals import SAEBench
from sae_lens_hierarchical.saebench.pending import PendingResult
from sae_lens_hierarchical.saebench.results import read_results

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [letter + a + b for letter in LETTERS for a in "aeio" for b in "nt"]
# A quarter of a letter's words, each of which also has a direction of its own.
ODD = [word for word in WORDS if word[1:] in ("at", "et")]
WIDTH = 128
HOOKS = {
    "HookedTransformer": "blocks.0.hook_resid_post",
    "AutoModelForCausalLM": "transformer.h.0",
}
SETTINGS = {
    "max_k_value": 1,
    "k_sparse_probe_batch_size": 32,
    "precalc_k_sparse_probe_sae_acts": True,
}


def embedding(word: str) -> Tensor:
    x = torch.zeros(WIDTH)
    x[LETTERS.index(word[0].lower())] = 4
    if word in ODD:
        x[26 + ODD.index(word)] = 4
    return x


def save_model(folder: Path, words: list[str]) -> None:
    others = ["<s>", ":", "has", "the", "first", "letter", *LETTERS.upper()]
    vocabulary = {token: n for n, token in enumerate([*others, *words])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    special: Any = {f"{name}_token": "<s>" for name in ("bos", "eos", "pad", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **special)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_embd=WIDTH,
        n_layer=1,
        n_head=2,
        n_positions=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for token, n in vocabulary.items():
            if token[0].isalpha():
                model.transformer.wte.weight[n] = embedding(token)
    model.save_pretrained(folder)


def make_sae(folder: Path, model_class: str, *, absorbs: bool) -> HierarchicalTopKSAE:
    """Return an SAE with a feature for each letter and for each of the odd words.

    Where it absorbs, the feature of an odd word stands for its letter too, whose own
    feature is then silent.
    """
    size = 26 + len(ODD)
    sae = HierarchicalTopKSAE(
        HierarchicalTopKSAEConfig(d_in=WIDTH, d_sae=size, k_max=4)
    )
    encoder, decoder = torch.eye(WIDTH, size), torch.eye(size, WIDTH)
    encoder[26:] *= 0.5
    if absorbs:
        for n, word in enumerate(ODD, start=26):
            letter = LETTERS.index(word[0])
            encoder[n, letter] = -1
            encoder[n, n] = 2**0.5
            decoder[n, letter] = 1
    decoder /= decoder.norm(dim=1, keepdim=True)
    weights = {"W_enc": encoder, "W_dec": decoder}
    sae.load_state_dict(sae.state_dict() | weights)
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name = str(folder), HOOKS[model_class]
    metadata.model_class_name = model_class
    return sae


def new_bench(saes: dict[str, HierarchicalTopKSAE], output: Path) -> SAEBench:
    model, _, _ = load_model_and_dataset(saes, "none", "cpu")
    tokens = torch.zeros(1, 2, dtype=torch.long)  # absorption does not look at them
    return SAEBench(model=model, tokens=tokens, dataset_name="none", output=output)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(folder, WORDS)
    return folder


def test_absorption_is_found_where_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[dict[str, dict[tuple[str, str], float]]] = []
    for model_class, names in (
        ("HookedTransformer", ["clean", "absorbs"]),
        # What was run before makes no difference.
        ("AutoModelForCausalLM", ["absorbs"]),
    ):
        saes = {n: make_sae(folder, model_class, absorbs=n == "absorbs") for n in names}
        bench = new_bench(saes, tmp_path / model_class)
        bench.absorption(saes, [2], **SETTINGS)
        results = read_results(bench.output)
        found.append({result.sae: result.metrics for result in results})

    ours, of_hugging_face = found
    assert ours["absorbs"] == pytest.approx(of_hugging_face["absorbs"])
    for metric in ("mean_absorption_fraction_score", "mean_full_absorption_score"):
        assert ours["clean"]["mean", metric] == 0
        assert 0.05 < ours["absorbs"]["mean", metric] < 0.25
    files = [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()]
    assert {str(file.parent) for file in files} == {f"{n}/absorption" for n in HOOKS}
    # Nothing went to the model's folder, which its name is.
    assert all(path.is_file() for path in folder.iterdir())
    capsys.readouterr()
    saes = {"clean": make_sae(folder, "HookedTransformer", absorbs=False)}
    bench = new_bench(saes, tmp_path / "HookedTransformer")
    bench.absorption(saes, [2], **SETTINGS)
    assert "taken as done" in capsys.readouterr().out


class Planted:
    """What runs code when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.ran,)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_strangers_pickle_does_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    sae = make_sae(folder, "HookedTransformer", absorbs=False)
    planted, ran = tmp_path / "planted", tmp_path / "ran"
    (planted / "it/layer_0").mkdir(parents=True)
    torch.save(Planted(ran), planted / "it/layer_0/probe.pth")
    hook_name = str(planted) if absolute else "../../planted"
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_layer = hook_name, 0
    bench = new_bench({"it": sae}, tmp_path / "results")
    bench.output.mkdir()

    with pytest.raises(ValueError, match=f"^it's hook_name '{hook_name}' is no hook"):
        bench.absorption({"it": sae}, [2], **SETTINGS)

    assert not ran.exists()
    # Nor would it without that check.
    planned = [PendingResult("it", 2, tmp_path / "result", {})]
    monkeypatch.setattr(SAEBench, "pending", lambda *_: planned)
    with pytest.raises(KeyError):
        bench.absorption({"it": sae}, [2], **SETTINGS)
    monkeypatch.undo()
    assert not ran.exists()
    sae.cfg.metadata.hook_name = HOOKS["HookedTransformer"]
    sae.cfg.metadata.hook_layer = "/planted"
    with pytest.raises(ValueError, match=r"^it's hook_layer must be an integer: '/pla"):
        bench.absorption({"it": sae}, [2], **SETTINGS)


def test_a_model_that_knows_too_few_letters_is_said(
    folder: Path, tmp_path: Path
) -> None:
    saes = {"clean": make_sae(folder, "HookedTransformer", absorbs=False)}
    settings = {**SETTINGS, "k_sparse_probe_num_epochs": 1, "min_GT_probe_f1": 1}
    with pytest.raises(ValueError, match=r"probes find 0 of 26 .* \(in Python: min_GT"):
        new_bench(saes, tmp_path).absorption(saes, [2], **settings)


def test_a_tokenizer_with_too_few_words_is_said(tmp_path: Path) -> None:
    words = [word for word in WORDS if word[0] not in "xz"]
    save_model(tmp_path / "model", words)
    saes = {"clean": make_sae(tmp_path / "model", "HookedTransformer", absorbs=False)}

    with pytest.raises(ValueError, match=r"5 words of each first letter .* with x, z"):
        new_bench(saes, tmp_path / "results").absorption(saes, [2])
