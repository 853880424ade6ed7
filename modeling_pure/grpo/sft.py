"""The baseline of GRPO: cross entropy on the right answers to the same prompts in the same order.

GRPO has to find the right answer by sampling; this trainer is given it.
"""

from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftConfig, get_peft_model
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import set_end_tokens
from ..medqa.questions import Question
from ..tokenizer import end_no_prompt, prompt_ids
from ..training.kernels import choose_attention_kernel
from .arguments import PureGRPOConfig
from .prompts import Prompt
from .rollout import completion_length
from .scoring import CompletionBatch, Scorer, ScoringTrainer
from .support import check_scorer, refuse_changed_logits


class AnswerTrainer(ScoringTrainer):
    """A Trainer on rows of `prompt` and `target`, with GRPO's arguments, prompts per step and number of steps.

    The loss is the mean over the answers' tokens, including the one that ends them, through GRPO's scorer.

    Args:
        questions: MedQA dev questions to answer at each evaluation (`eval_medqa_accuracy`).
        peft_config: adapters to train instead of all weights.

    Raises:
        InputError: the model changes the logits of its head, or its chat template cannot begin an answer.
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
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if args.plan.prompts % 1:
            raise InputError(
                f"num_generations: {args.num_generations} does not divide the {args.plan.sequences_per_step} "
                "completions of a step"
            )
        args.per_device_train_batch_size = int(args.plan.prompts) // args.world_size
        args.gradient_accumulation_steps, args.remove_unused_columns = 1, False
        self.tokenizer, self.questions = processing_class, questions
        end_no_prompt(processing_class)
        self.ends = set_end_tokens(model, processing_class)
        refuse_changed_logits(model)
        choose_attention_kernel(args.attention_kernel)
        super().__init__(
            model=get_peft_model(model, peft_config) if peft_config else model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=self.collate,
            **kwargs,
        )
        scorer = Scorer(self.model, 1.0, fp32_head=args.cast_lm_head_to_fp32, share_prefix=False)
        check_scorer(scorer)
        self.scorers = {self.model: scorer}
        self.collate([train_dataset[0]])  # checks the chat template

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad prompts on the left and answers on the right, as GRPO does.

        Returns:
            `input_ids` and `attention_mask` of shape (rows, longest prompt + longest answer), and `answer_mask` of
            shape (rows, longest answer).
        """
        pairs = [self.encode(row["prompt"], row["target"]) for row in rows]
        before, after = (max(len(pair[i]) for pair in pairs) for i in (0, 1))
        ids = [[0] * (before - len(p)) + p + a + [0] * (after - len(a)) for p, a in pairs]
        mask = [[0] * (before - len(p)) + [1] * (len(p) + len(a)) + [0] * (after - len(a)) for p, a in pairs]
        attention_mask = torch.tensor(mask)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": attention_mask,
            "answer_mask": attention_mask[:, before:],
        }

    def encode(self, prompt: Prompt, target: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of its answer, which ends like a completion of `max_completion_length` tokens."""
        if isinstance(prompt, str):
            begin, whole = prompt, prompt + target
        else:
            begin = self.apply_template(prompt, add_generation_prompt=True)
            whole = self.apply_template([*prompt, {"role": "assistant", "content": target.lstrip()}])
            if not whole.startswith(begin):
                raise InputError("chat: the chat template's generation prompt is not the beginning of its answers")
        templated = not isinstance(prompt, str)
        start, ids = prompt_ids(self.tokenizer, [begin, whole], templated)
        answer_ids = ids[len(start) :]
        if ids[: len(start)] != start:  # a token spans prompt and answer, which no completion can
            answer = whole[len(begin) :]
            answer_ids = self.tokenizer(answer, add_special_tokens=False, split_special_tokens=not templated).input_ids
        answer_ids = [*answer_ids, self.tokenizer.eos_token_id]
        length = min(completion_length(answer_ids, self.ends), self.args.max_completion_length)
        return start, answer_ids[:length]

    def apply_template(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        """A conversation as text."""
        more = cast(dict[str, Any], self.args.chat_template_kwargs or {})  # a string has been parsed
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs, **more))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean nats per answer token over the step's batch, optionally with the scorer's outputs."""
        of_answers = inputs["answer_mask"]
        batch = CompletionBatch(inputs["input_ids"], inputs["attention_mask"], of_answers.shape[1])
        scored = self.scorers.get(model, model)(batch)
        # DDP averages over processes, whose numbers of answer tokens differ.
        tokens = self.accelerator.reduce(of_answers.sum(), "mean")
        loss = -(scored.log_probs * of_answers).sum() / tokens
        return (loss, scored) if return_outputs else loss

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        rows: Any = self.train_dataset if dataset is None else dataset
        if not self.args.shuffle_dataset:
            return SequentialSampler(rows)
        return RandomSampler(rows, generator=torch.Generator().manual_seed(self.args.seed))  # TRL's order

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Dev accuracy by letter or text, its standard error, and the nll over the options."""
        self.model.eval()
        metrics = self.dev_metrics(self.tokenizer, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
