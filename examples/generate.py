"""Let a model go on from a text. Research use, not clinical.

    python -m examples.generate runs/local/grpo "The drug of choice for cystitis is"

It takes the likeliest token at each step; `generate` of transformers has all other ways.
"""

import argparse

from transformers import AutoModelForCausalLM

import modeling_pure  # noqa: F401  registers the model type "pure": no code that lies beside the weights is run
from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import run_script
from modeling_pure.loading import check_model
from modeling_pure.tokenizer import load_tokenizer


def main() -> None:
    """Load, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder or a Hub id")
    parser.add_argument("text", help="what the model goes on from")
    args = parser.parse_args()

    check_model("model", args.model)
    tokenizer = load_tokenizer("model", args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, use_safetensors=True)
    output = model.generate(**tokenizer(args.text, return_tensors="pt"), max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(output[0], skip_special_tokens=True))
    print(DISCLAIMER)


if __name__ == "__main__":
    run_script(main, "examples.generate")
