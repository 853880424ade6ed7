"""Continue a text with a model. Research use, not clinical.

    python -m examples.generate runs/local/grpo "The drug of choice for cystitis is"

Decoding is greedy; transformers' `generate` supports other strategies.
"""

import argparse

from transformers import AutoModelForCausalLM

import modeling_pure  # noqa: F401  registers the model type "pure": no code from the checkpoint is run
from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import run_script
from modeling_pure.loading import check_model
from modeling_pure.tokenizer import load_tokenizer


def main() -> None:
    """Load, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder or a Hub id")
    parser.add_argument("text", help="the text to continue")
    args = parser.parse_args()

    check_model("model", args.model)
    tokenizer = load_tokenizer("model", args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, use_safetensors=True)
    output = model.generate(**tokenizer(args.text, return_tensors="pt"), max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(output[0], skip_special_tokens=True))
    print(DISCLAIMER)


if __name__ == "__main__":
    run_script(main, "examples.generate")
