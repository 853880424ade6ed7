"""The tokenizer: GPT-2's, with a pad token of its own, and the ids of prompts.

Training and use see the same ids. A document is its text and the end-of-text token, a prompt is its text alone: no
tokenizer ends a prompt, whatever it appends by itself. A model of others was trained with what its tokenizer puts at
the front, so prompts keep that; documents have nothing there, and neither has the tokenizer saved with their model.
"""

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .errors import InputError, first_line

PAD_TOKEN = "<|pad|>"
PROBE = "a"  # any text would do: what is added does not depend on it


def load_tokenizer(key: str, name_or_path: str, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left and ends no prompt; if padding would be the end-of-text token, add a pad.

    GPT-2 has no pad token, and its usual stand-in, the end-of-text token, would hide from a loss or a mask where an
    answer really ends. `<|pad|>` takes the first spare id (50257), so the model's vocabulary of 50,304 does not grow.
    A decoder generates after the last token of a prompt, so padding belongs on the left.

    Args:
        key: the recipe key that `name_or_path` came from; error messages name it.
        vocab_size: of a model that is there already. Where it has no spare id, as Llama's has none, the end-of-text
            token pads after all: GRPO knows padding by its place.

    Raises:
        InputError: there is no such tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left")
    except Exception as error:  # foreign files make transformers and tokenizers raise nearly anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{key}: cannot load the tokenizer of '{name_or_path}': {reason}") from error
    if len(tokenizer) == 0 or tokenizer.eos_token_id is None:
        raise InputError(f"{key}: the tokenizer of '{name_or_path}' has no vocabulary or no end-of-text token")
    if tokenizer.is_fast:
        end_no_prompt(tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        if vocab_size is not None and len(tokenizer) >= vocab_size:
            tokenizer.pad_token = tokenizer.eos_token
            return tokenizer
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


def load_document_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model that is trained from scratch: it adds no token, as documents have none.

    Raises:
        InputError: names `tokenizer_name_or_path`; there is no such tokenizer, or it is not a fast one.
    """
    key = "tokenizer_name_or_path"
    tokenizer = load_tokenizer(key, name_or_path)
    if not tokenizer.is_fast:
        raise InputError(
            f"{key}: '{name_or_path}' is a {type(tokenizer).__name__}, written in Python; pretraining needs a fast "
            "tokenizer, with a tokenizer.json"
        )
    if any(added_tokens(tokenizer)):
        add_in_front(tokenizer, [])
    return tokenizer


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text by itself, and those that it puts after it."""
    added = tokenizer(PROBE).input_ids
    plain = text_ids(tokenizer, [PROBE])[0]
    start = next((i for i in range(len(added)) if added[i : i + len(plain)] == plain), 0)
    return added[:start], added[start + len(plain) :]


def end_no_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer that will be saved beside a trained model add nothing after a text.

    Raises:
        InputError: it is written in Python, and does.
    """
    front, back = added_tokens(tokenizer)
    if back and not tokenizer.is_fast:
        raise InputError(
            f"model_name_or_path: {type(tokenizer).__name__}, written in Python, ends every prompt, and would do so "
            "beside the trained model; take a fast tokenizer, with a tokenizer.json"
        )
    if back:
        add_in_front(tokenizer, front)


def add_in_front(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """Let a fast tokenizer add these ids before a text and nothing after it, also once it is saved and loaded."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"], pair=[*tokens, "$A", "$B"], special_tokens=list(zip(tokens, ids, strict=True))
    )


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of texts as a document has them: no token is added, and a special token's spelling is letters."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids
    return ids


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], templated: bool = False) -> list[list[int]]:
    """Token ids of prompts: what the tokenizer puts at the front, then the text; nothing ends them.

    Args:
        templated: the texts come from a chat template, which has written all special tokens.
    """
    if templated and texts:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        return ids
    front, _ = added_tokens(tokenizer)
    return [front + ids for ids in text_ids(tokenizer, texts)]


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `InputError` where the tokenizer has ids that the model does not know."""
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"vocab_size: the tokenizer has {len(tokenizer)} tokens with its pad token, the model only {vocab_size}"
        )
