"""Tests that nothing of a stranger's runs when the model that SAEs name is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sae_lens import HookedSAETransformer
from transformers import dynamic_module_utils

from sae_lens_hierarchical.cli import main
from sae_lens_hierarchical.eval.folders import provenance, sweep_checkpoints
from sae_lens_hierarchical.eval.table import read_table
from sae_lens_hierarchical.loading import load_model_and_dataset, load_saes, load_store
from tests.stranger import HOOKS, Stranger


@pytest.mark.parametrize("model_class", HOOKS)
def test_a_models_python_runs_only_by_the_users_flag(
    stranger: Stranger, model_class: str
) -> None:
    stranger.add_model_code()
    stranger.save_sae(model_class_name=model_class)

    with pytest.raises(ValueError, match=r"may run Python of its own only with --tr"):
        sweep_checkpoints([stranger.sae], [8], contexts=2)
    assert not stranger.ran.exists()

    table = sweep_checkpoints([stranger.sae], [8], contexts=2, trust_remote_code=True)
    assert stranger.ran.exists()
    assert table.rows[0].tokens > 50
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 15


@pytest.mark.parametrize("model_class", HOOKS)
def test_a_tokenizers_python_runs_only_by_the_users_flag(
    stranger: Stranger, model_class: str
) -> None:
    """Transformers has a tokenizer for GPT-2, and takes it in place of the model's."""
    stranger.add_tokenizer_code()
    stranger.save_sae(model_class_name=model_class)

    sweep_checkpoints([stranger.sae], [8], contexts=2)
    assert not stranger.ran.exists()

    sweep_checkpoints([stranger.sae], [8], contexts=2, trust_remote_code=True)
    assert stranger.ran.exists()


def test_metadata_cannot_trust_code_in_the_users_place(
    stranger: Stranger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.add_model_code()
    stranger.save_sae(model_from_pretrained_kwargs={"trust_remote_code": True})
    output = tmp_path / "output"
    command = ["sweep", str(stranger.sae), "--k", "8", "--contexts", "2"]
    command += ["--output", str(output)]

    assert main(command) == 2

    error = capsys.readouterr().err
    for part in (f"sae's metadata load '{stranger.model}'", "'trust_remote_code': Tr"):
        assert part in error
    assert "--trust-remote-code" in error
    assert not stranger.ran.exists()
    assert main([*command, "--model", str(stranger.model)]) == 2
    assert "may run Python of its own only" in capsys.readouterr().err
    assert not stranger.ran.exists()
    for model in ([], ["--model", str(stranger.model)]):
        assert main([*command, *model, "--trust-remote-code", "--force"]) == 0
        assert stranger.ran.exists()
    assert read_table(output / "metrics.parquet").rows[0].tokens > 50


@pytest.mark.parametrize(
    "kwargs",
    [
        {"attn_implementation": "someone/kernel"},
        {"cache_dir": "/elsewhere"},
        {"code_revision": "main"},
        {"device_map": {"": "disk"}},
        {"dtype": "int8"},
        {"fold_ln": "yes"},
        {"hf_model": "other/model"},
        {"n_devices": -1},
        {"quantization_config": {"quant_method": "own"}},
        {"revision": "refs/pr/1"},
        {"revision": "../../elsewhere"},
        {"trust_remote_code": 1},
    ],
)
@pytest.mark.parametrize("model_class", HOOKS)
def test_what_metadata_may_not_ask_for_is_named(
    stranger: Stranger, kwargs: dict[str, Any], model_class: str
) -> None:
    stranger.save_sae(
        model_class_name=model_class,
        model_from_pretrained_kwargs={"low_cpu_mem_usage": True} | kwargs,
    )
    saes = load_saes({"it": stranger.sae})

    with pytest.raises(ValueError, match="it's metadata load ") as error:
        load_model_and_dataset(saes, None, "cpu")

    assert str(kwargs) in str(error.value)


def test_with_trust_metadata_do_not_say_which_version(stranger: Stranger) -> None:
    stranger.save_sae(model_from_pretrained_kwargs={"revision": "abc123"})
    saes = load_saes({"it": stranger.sae})

    with pytest.raises(ValueError, match=r"with \{'revision': 'abc123'\}"):
        load_model_and_dataset(saes, None, "cpu", trust_remote_code=True)
    load_model_and_dataset(saes, None, "cpu")


def test_what_metadata_may_ask_for_is_given(stranger: Stranger) -> None:
    kwargs = {"dtype": "bfloat16", "attn_implementation": "eager", "device_map": None}
    stranger.save_sae(model_from_pretrained_kwargs=kwargs)

    proxy, dataset, name = load_model_and_dataset(
        load_saes({"it": stranger.sae}), None, "cpu"
    )

    assert str(proxy.model.dtype) == "torch.bfloat16"
    assert proxy.model.config._attn_implementation == "eager"
    assert dataset == name == str(stranger.text)


def test_a_kernel_that_the_models_config_names_is_refused(stranger: Stranger) -> None:
    stranger.change("config.json", attn_implementation="someone/kernel")
    saes = load_saes({"it": stranger.sae})

    with pytest.raises(ValueError, match="its kernel 'someone/kernel' needs trust"):
        load_model_and_dataset(saes, None, "cpu")


def test_models_that_transformer_lens_trusts_need_the_flag(stranger: Stranger) -> None:
    stranger.save_sae(model_class_name="HookedTransformer", model_name="phi-2")
    saes = load_saes({"it": stranger.sae})

    with pytest.raises(ValueError, match="phi-2 may run Python of its own only with"):
        load_model_and_dataset(saes, None, "cpu")


def test_unknown_classes_and_no_dataset_are_named(stranger: Stranger) -> None:
    stranger.save_sae(model_class_name="os.system")
    with pytest.raises(ValueError, match=r"it's metadata.model_class_name must be one"):
        load_model_and_dataset(load_saes({"it": stranger.sae}), None, "cpu")
    stranger.save_sae(dataset_path=None)
    with pytest.raises(ValueError, match="it's metadata name no dataset"):
        load_model_and_dataset(load_saes({"it": stranger.sae}), None, "cpu")


def test_a_tokenized_datasets_tokenizer_runs_no_python(
    stranger: Stranger, model: HookedSAETransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAELens loads the tokenizer that a dataset's sae_lens.json names, to compare."""
    stranger.add_model_code()
    stranger.add_tokenizer_code()
    row = {"tokens": list(range(32))}
    (stranger.text / "train.jsonl").write_text(json.dumps(row) + "\n")
    told = stranger.text / "sae_lens.json"
    told.write_text(json.dumps({"tokenizer_name": str(stranger.model)}))
    monkeypatch.setattr(
        "sae_lens.training.activations_store.hf_hub_download",
        lambda *_args, **_kwargs: str(told),
    )
    sae = load_saes({"it": stranger.sae})["it"]

    with pytest.raises(ValueError, match="trust_remote_code"):
        load_store(model, sae, str(stranger.text))
    assert not stranger.ran.exists()


@pytest.mark.parametrize("separator", ["eos", None])
def test_contexts_are_made_as_in_training(
    separator: str | None, stranger: Stranger, model: HookedSAETransformer
) -> None:
    stranger.save_sae(sequence_separator_token=separator, disable_concat_sequences=True)
    sae = load_saes({"it": stranger.sae})["it"]

    store = load_store(model, sae, str(stranger.text))

    assert store.sequence_separator_token == separator
    assert store.disable_concat_sequences
    assert provenance(store, {"it": sae})["sequence_separator_token"] == separator


def test_a_datasets_python_never_runs(stranger: Stranger) -> None:
    """An older version of datasets runs scripts that lie with data, when told to."""
    script = stranger.text / f"{stranger.text.name}.py"
    script.write_text(f"open({str(stranger.ran)!r}, 'w').close()\n")

    with pytest.raises((ValueError, RuntimeError)):
        sweep_checkpoints([stranger.sae], [8], contexts=2, trust_remote_code=True)
    assert not stranger.ran.exists()
