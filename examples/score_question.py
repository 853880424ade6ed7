r"""Print the probability that a model gives to each of four answers to a question. Research use, not clinical.

    python -m examples.score_question runs/local/grpo \
        "A 21-year-old woman has dysuria and no fever. Which drug is given?" \
        Ampicillin Ceftriaxone Nitrofurantoin Gentamicin

The prompt and the scores are those of the evaluation, by letter and by the text of each option.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM

import modeling_pure  # noqa: F401  registers the model type "pure": no code from the checkpoint is run
from modeling_pure.console import DISCLAIMER, print_table
from modeling_pure.errors import run_script
from modeling_pure.loading import check_model
from modeling_pure.medqa.log_likelihood import letter_log_likelihoods, text_log_likelihoods
from modeling_pure.medqa.questions import LETTERS, Question
from modeling_pure.tokenizer import load_tokenizer


def main() -> None:
    """Load in fp32, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder or a Hub id")
    parser.add_argument("question")
    parser.add_argument("options", nargs=4, metavar="option")
    args = parser.parse_args()

    check_model("model", args.model)
    tokenizer = load_tokenizer("model", args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, use_safetensors=True).eval()
    question = Question(args.question, tuple(args.options), answer=0)  # the prompt does not contain the answer
    letters = letter_log_likelihoods(model, tokenizer, [question])[0]
    texts = text_log_likelihoods(model, tokenizer, [question])[0]
    rows = [
        [f"{letter}. {option}", f"{by_letter:.2%}", f"{by_text:.2%}"]
        for letter, option, by_letter, by_text in zip(
            LETTERS, args.options, letters.softmax(0), texts.softmax(0), strict=True
        )
    ]
    print_table("Probabilities among the four answers", ["answer", "by letter", "by text"], rows)
    print(f"all four letters together have {letters.exp().sum():.2%} of the next token's probability")
    print(DISCLAIMER)


if __name__ == "__main__":
    run_script(main, "examples.score_question")
