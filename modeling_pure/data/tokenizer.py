"""The tokenizer: GPT-2's, with a pad token of its own."""

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import InputError, first_line

PAD_TOKEN = "<|pad|>"


def load_tokenizer(key: str, name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from the Hub or a folder; where padding would be the end-of-text token, add `<|pad|>`.

    GPT-2 has no pad token, and its usual stand-in, the end-of-text token, would hide from a loss or a mask where an
    answer really ends. `<|pad|>` takes the first spare id (50257), so the model's vocabulary of 50,304 does not grow.

    Args:
        key: the recipe key that `name_or_path` came from; error messages name it.

    Raises:
        InputError: there is no such tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, StrictDataclassError) as error:  # it reads the model's configuration too
        raise InputError(f"{key}: cannot load the tokenizer of '{name_or_path}': {first_line(error)}") from error
    if len(tokenizer) == 0 or tokenizer.eos_token_id is None:
        raise InputError(f"{key}: the tokenizer of '{name_or_path}' has no vocabulary or no end-of-text token")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `InputError` where the tokenizer has ids that the model does not know."""
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"vocab_size: the tokenizer has {len(tokenizer)} tokens with its pad token, the model only {vocab_size}"
        )
