"""The tokenizer: GPT-2's with its own pad token, and the token ids of documents and prompts.

Training and inference use the same ids. A document is its text and the end-of-text token; a prompt never ends with a
token that the tokenizer appends. Third-party models expect the tokens that their tokenizer prepends, so prompts keep
these. Documents start with none, and the tokenizer saved with a model trained on them adds none.
"""

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .errors import InputError, first_line

PAD_TOKEN = "<|pad|>"
PROBE = "a"  # any text: added tokens do not depend on it


def load_tokenizer(key: str, name_or_path: str, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer with its own pad token that pads on the left and appends nothing to prompts.

    GPT-2 has no pad token; the end-of-text token, which usually replaces it, would hide the real end of an answer from
    losses and masks. `<|pad|>` takes the first spare id (50257) of the model's 50,304. Padding is on the left because
    a decoder generates after the last token of a prompt.

    Args:
        key: the recipe key of `name_or_path`, for error messages.
        vocab_size: of an existing model. If it has no spare id, as in Llama, the end-of-text token also pads; GRPO
            identifies padding by position.

    Raises:
        InputError: the tokenizer cannot be loaded, or has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left")
    except Exception as error:  # broken files make transformers and tokenizers raise nearly anything
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
    """Load the tokenizer of a model that is trained from scratch; like documents, its texts get no added tokens.

    Raises:
        InputError: the tokenizer cannot be loaded, or is not a fast one.
    """
    key = "tokenizer_name_or_path"
    tokenizer = load_tokenizer(key, name_or_path)
    if not tokenizer.is_fast:
        raise InputError(
            f"{key}: '{name_or_path}' is a {type(tokenizer).__name__}, a slow tokenizer; "
            "pretraining needs a fast one, with a tokenizer.json"
        )
    if any(added_tokens(tokenizer)):
        add_in_front(tokenizer, [])
    return tokenizer


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The token ids that a tokenizer adds before and after a text."""
    added = tokenizer(PROBE).input_ids
    plain = text_ids(tokenizer, [PROBE])[0]
    start = next((i for i in range(len(added)) if added[i : i + len(plain)] == plain), 0)
    return added[:start], added[start + len(plain) :]


def end_no_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer that will be saved with a trained model add nothing after a text.

    Raises:
        InputError: it is a slow tokenizer, and adds something.
    """
    front, back = added_tokens(tokenizer)
    if back and not tokenizer.is_fast:
        raise InputError(
            f"model_name_or_path: {type(tokenizer).__name__}, a slow tokenizer, appends a token to every prompt, and "
            "would also do so with the trained model; use a fast tokenizer, with a tokenizer.json"
        )
    if back:
        add_in_front(tokenizer, front)


def add_in_front(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """Make a fast tokenizer, also after saving and loading, add these ids before a text and nothing after it."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*tokens, "$A"], pair=[*tokens, "$A", "$B"], special_tokens=list(zip(tokens, ids, strict=True))
    )


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of texts as in documents: nothing is added, and spelled special tokens are plain text."""
    return plain_ids(tokenizer, texts, split_special_tokens=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], templated: bool = False) -> list[list[int]]:
    """Token ids of prompts: the tokens that the tokenizer prepends, then the text, and nothing after it.

    Args:
        templated: whether the texts come from a chat template and so hold their special tokens already.
    """
    if templated:
        return plain_ids(tokenizer, texts)
    front, _ = added_tokens(tokenizer)
    return [front + ids for ids in text_ids(tokenizer, texts)]


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: bool) -> list[list[int]]:
    """Token ids without added tokens."""
    ids: list[list[int]] = (
        tokenizer(texts, add_special_tokens=False, verbose=False, **options).input_ids if texts else []
    )
    return ids


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raise `InputError` if the tokenizer has more tokens than the model's vocabulary."""
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"vocab_size: the tokenizer has {len(tokenizer)} tokens with its pad token, the model only {vocab_size}"
        )
