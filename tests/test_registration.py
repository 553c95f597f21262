"""Tests of what importing the package loads, and of when it registers with SAELens."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELP = """
from sae_lens_hierarchical.cli import main
try:
    main(["sweep", "--help"])
except SystemExit:
    pass
"""
LOOKED_UP = (
    "; from sae_lens.registry import get_sae_class, get_sae_training_class"
    "; print(get_sae_class('hierarchical_topk')[0].__name__)"
    "; get_sae_training_class('hierarchical_topk')"
)


def run(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "program",
    [
        "import sae_lens_hierarchical",
        "import sae_lens_hierarchical.cli",
        "import sae_lens_hierarchical as h; dir(h); hasattr(h, 'no_such_name')",
        HELP,
    ],
)
def test_importing_and_help_load_nothing_heavy(program: str) -> None:
    modules = "{'torch', 'sae_lens', 'matplotlib', 'datasets'} & set(sys.modules)"

    output = run(f"{program}\nimport sys; print('loaded', sorted({modules}))")

    assert output.splitlines()[-1] == "loaded []"


def test_the_loss_alone_does_without_saelens() -> None:
    loaded = run(
        "import sys; sys.modules['sae_lens'] = None\n"
        "from sae_lens_hierarchical.ops import hierarchical_loss; print('fine')"
    )

    assert loaded == "fine"


@pytest.mark.parametrize(
    "program",
    [
        "import sae_lens_hierarchical; import sae_lens",
        "import sae_lens; import sae_lens_hierarchical",
        "import sae_lens_hierarchical; from sae_lens.registry import get_sae_class",
        "from sae_lens_hierarchical import HierarchicalTopKSAE",
        "import sae_lens_hierarchical.ops; from sae_lens import SAE",
        "import sae_lens_hierarchical.saes.thresholds",
        "import sae_lens_hierarchical as h, importlib; importlib.reload(h)",
        "import sae_lens_hierarchical as h, importlib, sae_lens; importlib.reload(h)",
    ],
)
def test_the_architecture_is_there_in_every_order_of_imports(program: str) -> None:
    assert run(program + LOOKED_UP) == "HierarchicalTopKSAE"


def test_saelens_looks_as_if_nothing_had_been_in_between() -> None:
    found = run(
        "import sae_lens_hierarchical, sae_lens, sys, inspect\n"
        "print(type(sae_lens.__spec__.loader).__name__, sae_lens.__loader__ is "
        "sae_lens.__spec__.loader, 'version' in inspect.getsource(sae_lens), "
        "any('AfterSAELens' in type(f).__name__ for f in sys.meta_path))"
    )

    assert found == "SourceFileLoader True True False"


def test_unknown_names_are_attribute_errors() -> None:
    import sae_lens_hierarchical

    with pytest.raises(AttributeError, match="has no attribute 'HierarchicalTopK'"):
        _ = sae_lens_hierarchical.HierarchicalTopK
    assert "preset" in dir(sae_lens_hierarchical)
