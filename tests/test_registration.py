"""Tests of what importing the package loads, and of when it registers with SAELens."""

from __future__ import annotations

import json
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


# Each program runs in a fork of one interpreter that has loaded what SAELens loads,
# which takes seconds, but neither SAELens nor this package.
IN_FORKS = """
import json, os, sys, traceback
import datasets, transformer_lens

assert not {"sae_lens", "sae_lens_hierarchical"} & set(sys.modules)
outputs = {}
for program in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        try:
            exec(program, {})
        except BaseException:
            print(traceback.format_exc())
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        outputs[program] = pipe.read().strip()
    os.wait()
print(json.dumps(outputs))
"""
FAILS_AT_FIRST = """
import sae_lens_hierarchical, sys
sys.modules['wandb'] = None
try: import sae_lens
except ImportError: del sys.modules['wandb']; import sae_lens"""
ORDERS_OF_IMPORTS = [
    "import sae_lens_hierarchical; import sae_lens",
    "import sae_lens; import sae_lens_hierarchical",
    "import sae_lens_hierarchical; from sae_lens.registry import get_sae_class",
    "from sae_lens_hierarchical import HierarchicalTopKSAE",
    "import sae_lens_hierarchical.ops; from sae_lens import SAE",
    "import sae_lens_hierarchical.saes.thresholds",
    "import sae_lens_hierarchical as h, importlib; importlib.reload(h)",
    "import sae_lens_hierarchical as h, importlib, sae_lens; importlib.reload(h)",
    "import sae_lens_hierarchical as h, importlib as i; i.reload(i.reload(h).saes)",
    "import sae_lens_hierarchical, importlib.util as u; u.find_spec('sae_lens')",
    FAILS_AT_FIRST,
]
LOADERS = (
    "import sae_lens_hierarchical, sae_lens, sys, inspect\n"
    "print(type(sae_lens.__spec__.loader).__name__, sae_lens.__loader__ is "
    "sae_lens.__spec__.loader, 'version' in inspect.getsource(sae_lens), "
    "any('AfterSAELens' in type(f).__name__ for f in sys.meta_path))"
)


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    """What each program prints where nothing has imported SAELens before."""
    programs = [*(program + LOOKED_UP for program in ORDERS_OF_IMPORTS), LOADERS]
    result = subprocess.run(
        [sys.executable, "-c", IN_FORKS, json.dumps(programs)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", ORDERS_OF_IMPORTS)
def test_the_architecture_is_there_in_every_order_of_imports(
    program: str, outputs: dict[str, str]
) -> None:
    assert outputs[program + LOOKED_UP] == "HierarchicalTopKSAE"


def test_saelens_looks_as_if_nothing_had_been_in_between(
    outputs: dict[str, str],
) -> None:
    assert outputs[LOADERS] == "SourceFileLoader True True False"


def test_unknown_names_are_attribute_errors() -> None:
    import sae_lens_hierarchical

    with pytest.raises(AttributeError, match="has no attribute 'HierarchicalTopK'"):
        _ = sae_lens_hierarchical.HierarchicalTopK
    assert "preset" in dir(sae_lens_hierarchical)
