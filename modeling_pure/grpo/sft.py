"""The honest baseline to GRPO: cross entropy over the four letters, on the same prompts in the same order.

Where GRPO finds out by sampling which letter is right, this is told. What GRPO gains beyond it is what reinforcement
brought; what it does not reach is what one pass of plain teaching would have given.
"""

from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..medqa.questions import LETTERS, Question
from ..medqa.scoring import last_logits, single_token_id
from ..training.kernels import choose_attention_kernel
from ..training.saving import DurableTrainer
from ..training.validation import dev_metrics
from .arguments import PureGRPOConfig
from .log_probs import head_logits


class LetterTrainer(DurableTrainer):
    """A Trainer on rows of `prompt` and `answer`, with GRPO's arguments: as many prompts a step, as many steps.

    Args:
        questions: MedQA dev questions whose answers are measured at each evaluation (`eval_medqa_accuracy`).
    """

    args: PureGRPOConfig
    train_dataset: Dataset

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        args: PureGRPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        questions: list[Question],
        **kwargs: Any,
    ) -> None:
        # A pass of GRPO holds completions, one of this holds prompts: 128 / 16 = 8 of them fill a step at once.
        args.per_device_train_batch_size = args.prompts // args.world_size
        args.gradient_accumulation_steps, args.remove_unused_columns = 1, False
        self.tokenizer, self.questions = processing_class, questions
        head = model.get_output_embeddings()
        if args.cast_lm_head_to_fp32:  # as GRPO's
            head.forward = partial(head_logits, head, fp32=True)
        choose_attention_kernel(args.attention_kernel)
        self.letters = torch.tensor([single_token_id(processing_class, f" {letter}") for letter in LETTERS])
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=self.collate,
            **kwargs,
        )

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Prompts padded on the right, where their last tokens stand, and the places of the right letters."""
        prompts = [self.tokenizer(row["prompt"]).input_ids for row in rows]
        longest = max(map(len, prompts))
        return {
            "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts]),
            "last": torch.tensor([len(ids) - 1 for ids in prompts]),
            "answer": torch.tensor([row["answer"] for row in rows]),
        }

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Nats of the right letter among the four, the mean over the batch."""
        logits = last_logits(model, inputs["input_ids"], inputs["last"])
        of_letters = logits[:, self.letters.to(logits.device)]
        return torch.nn.functional.cross_entropy(of_letters.float(), inputs["answer"])

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if dataset is None else dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Dev accuracy by letter, its standard error, and nll over the letters."""
        self.model.eval()
        ranks = (self.args.process_index, self.args.world_size, self.accelerator.reduce)
        measured = dev_metrics(self.model, self.tokenizer, self.questions, *ranks)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
