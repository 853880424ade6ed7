"""What people read: the block at the start of a run and the model card at its end."""

import sys
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from rich.console import Console
from rich.table import Table

DISCLAIMER = "Research model. Not for clinical use: not for diagnosis, treatment or advice to patients."


def print_block(title: str, facts: dict[str, str]) -> None:
    """A titled block of `name  value` lines."""
    table = Table(
        title=title, show_header=False, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for name, value in facts.items():
        table.add_row(name, value)
    # Where no one looks at a terminal, lines stay whole, so that a log can be searched.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def state_memory(parameters: int) -> str:
    """Memory that training state takes on each device: fp32 weights, gradients and Adam's two moments, 16 B each."""
    return f"{16 * parameters / 1e9:.2f} GB for weights, gradients and Adam (fp32); activations come on top"


def training_flops(parameters: int, embedding_parameters: int, layers: int, hidden: int, length: int) -> int:
    """FLOPs of training on one token: 6 x matmul parameters + 12 x layers x hidden x length.

    The convention of PaLM (Chowdhery et al. 2022, appendix B), without the input embedding, which is a lookup.
    """
    return 6 * (parameters - embedding_parameters) + 12 * layers * hidden * length


def write_model_card(folder: str, title: str, facts: dict[str, str], base_model: str | None = None) -> None:
    """A README.md for the model folder, made of this run's facts alone."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        language="en",
        tags=["pure", "medical", "research", "not-for-clinical-use"],
        base_model=base_model,
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    text = f"""---
{data.to_yaml()}
---
# {title}

**{DISCLAIMER}** Multiple-choice accuracy is not clinical competence.

| | |
| --- | --- |
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

`trust_remote_code` runs the two Python files that lie beside the weights; with the package `modeling_pure` imported it
is not needed.
"""
    ModelCard(text).save(Path(folder) / "README.md")
