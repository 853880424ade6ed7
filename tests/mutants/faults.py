"""The faults: what a hurried change could do wrong, in each room, and the tests that have to notice."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A line of a file, what it becomes, and the tests that are run then."""

    what: str
    file: str
    old: str
    new: str
    tests: str


DATA = "modeling_pure/data/"
GRPO = "modeling_pure/grpo/"
MEDQA = "modeling_pure/medqa/"
TRAINING = "modeling_pure/training/"

FAULTS = [
    # ---- data
    Fault(
        "a row is due one row too early",
        DATA + "schedule.py",
        "name: -(-(self.counts[name] + 1) * total // weight)",
        "name: -(-self.counts[name] * total // weight)",
        "tests/data/test_schedule.py",
    ),
    Fault(
        "readers begin one row further on in the schedule",
        DATA + "schedule.py",
        "range(self.phase % sum(self.weights.values())",
        "range((self.phase + 1) % sum(self.weights.values())",
        "tests/data/test_schedule.py tests/data/test_mixture.py",
    ),
    Fault(
        "a saved position is before the row that was read",
        DATA + "documents.py",
        "self.position = Position(epoch, place, row + 1)",
        "self.position = Position(epoch, place, row)",
        "tests/data/test_documents.py",
    ),
    Fault(
        "with other readers, the row at the position counts as read",
        DATA + "documents.py",
        "return (epoch, place, row) < self.positions[self.owner(place, row)]",
        "return (epoch, place, row) <= self.positions[self.owner(place, row)]",
        "tests/data/test_documents.py",
    ),
    Fault(
        "the limit of bad rows is one short",
        DATA + "documents.py",
        "faults > FREE_FAULTS + self.max_skipped * rows",
        "faults >= FREE_FAULTS + self.max_skipped * rows",
        "tests/data/test_faults.py tests/data/test_documents.py",
    ),
    Fault(
        "faults of earlier passes count in this one",
        DATA + "documents.py",
        'faults = count_faults(self.skipped) - self.before_pass["faults"]',
        "faults = count_faults(self.skipped)",
        "tests/data/test_faults.py tests/data/test_documents.py",
    ),
    Fault(
        "documents that hold a dev question are trained on",
        DATA + "documents.py",
        "self.guard is not None and self.guard.covers(value)",
        "self.guard is None and self.guard.covers(value)",
        "tests/data/test_decontaminate.py tests/data/test_mixture.py tests/data/test_faults.py",
    ),
    Fault(
        "the end of a window is thrown away",
        DATA + "packing.py",
        "window = np.concatenate([self._tokens, *self.tokenize(texts)])",
        "window = np.concatenate(self.tokenize(texts))",
        "tests/data/test_packing.py",
    ),
    Fault(
        "a resumed source repeats its last row",
        DATA + "packing.py",
        'for _ in range(state["drawn"]):',
        'for _ in range(state["drawn"] - 1):',
        "tests/data/test_packing.py tests/data/test_mixture.py",
    ),
    Fault(
        "documents are joined without the end-of-text token",
        DATA + "tokenizer.py",
        "np.array([*self._encode(text), self.document_end], dtype=np.int32)",
        "np.array(self._encode(text), dtype=np.int32)",
        "tests/data/test_tokenizer.py tests/data/test_packing.py",
    ),
    Fault(
        "a dev question that is repeated in train stays there",
        DATA + "held_out.py",
        "return [question for question in train if question.digest not in held_out], dev",
        "return train, dev",
        "tests/data/test_held_out.py",
    ),
    Fault(
        "the last held-out document is trained on",
        DATA + "held_out.py",
        "rows.held_out = {piece: number + 1 for",
        "rows.held_out = {piece: number for",
        "tests/data/test_held_out.py",
    ),
    Fault(
        "a resumed run asks its last data worker again",
        DATA + "mixture.py",
        'mine["workers"], (mine["last_worker"] + 1) % num_workers',
        'mine["workers"], mine["last_worker"] % num_workers',
        "tests/data/test_mixture.py",
    ),
    Fault(
        "a document begins at its predecessor's end-of-text token",
        DATA + "mixture.py",
        "starts[:, 1:] = input_ids[:, :-1] == document_end",
        "starts[:, 1:] = input_ids[:, 1:] == document_end",
        "tests/data/test_mixture.py tests/model/test_packing.py",
    ),
    Fault(
        "a position in packed rows counts a batch of this rank too many",
        DATA + "packed.py",
        "rows_read = begin + (self.world_size - self.rank) * self.batch_size",
        "rows_read = begin + self.world_size * self.batch_size",
        "tests/data/test_packed.py",
    ),
    Fault(
        "a piece of a file takes its neighbour's line",
        DATA + "readers.py",
        "if piece.end is not None and position >= piece.end:",
        "if piece.end is not None and position > piece.end:",
        "tests/data/test_files.py tests/data/test_faults.py tests/data/test_documents.py",
    ),
    Fault(
        "a document that covers half of a question does not cover it",
        DATA + "guard.py",
        "return self.coverage >= COVERAGE or self.end_words >= END_WORDS",
        "return self.coverage > COVERAGE or self.end_words >= END_WORDS",
        "tests/data/test_decontaminate.py",
    ),
    # ---- the model
    Fault(
        "labels are not shifted",
        "modeling_pure/modeling_pure.py",
        "next_tokens = F.pad(labels.to(hidden_states.device), (0, 1), value=-100)[:, 1:]",
        "next_tokens = labels.to(hidden_states.device)",
        "tests/model/test_loss.py",
    ),
    Fault(
        "the rotary embedding turns the other way",
        "modeling_pure/modeling_pure.py",
        "torch.cat((-second, first), dim=-1)",
        "torch.cat((second, -first), dim=-1)",
        "tests/model/test_llama_equality.py",
    ),
    Fault(
        "positions restart at 0 after a cache",
        "modeling_pure/modeling_pure.py",
        "past_key_values.get_seq_length() if past_key_values is not None else 0",
        "0",
        "tests/model/test_generation.py",
    ),
    Fault(
        "the residual stream's weights start too large",
        "modeling_pure/modeling_pure.py",
        "math.sqrt(2 * config.num_hidden_layers)",
        "math.sqrt(config.num_hidden_layers)",
        "tests/model/test_initialization.py",
    ),
    Fault(
        "a document of one token is joined to the next in flash attention",
        "modeling_pure/modeling_pure.py",
        "F.pad(position_ids.diff() != 1, (1, 0), value=True)",
        "F.pad(position_ids.diff() < 0, (1, 0), value=True)",
        "tests/model/test_packing.py",
    ),
    Fault(
        "positions without a label have a gradient",
        "modeling_pure/loss_pure.py",
        "return nats[:, 0], torch.where(counted, gradient, 0.0).to(logits.dtype)",
        "return nats[:, 0], gradient.to(logits.dtype)",
        "tests/model/test_loss.py",
    ),
    # ---- training
    Fault(
        "the mean of the loss counts each row's first token",
        TRAINING + "trainer.py",
        'batch["labels"].numel() - len(batch["labels"])',
        'batch["labels"].numel()',
        "tests/training/test_trainer.py",
    ),
    Fault(
        "a step that is not finite is taken",
        TRAINING + "health.py",
        "optimizer.found_inf = bad.float()",
        "optimizer.found_inf = torch.zeros_like(bad.float())",
        "tests/training/test_health.py",
    ),
    Fault(
        "bad steps in a row are never forgotten",
        TRAINING + "health.py",
        "torch.where(bad, self.in_a_row + 1, 0)",
        "self.in_a_row + bad",
        "tests/training/test_health.py",
    ),
    Fault(
        "Muon's weights change in a skipped step",
        TRAINING + "optimizer.py",
        "weight.copy_(torch.where(skip, old, weight))",
        "weight.copy_(weight)",
        "tests/training/test_optimizer.py tests/training/test_health.py",
    ),
    Fault(
        "a checkpoint is renamed before its files are on the disk",
        TRAINING + "saving.py",
        "                flush(staging / name)\n",
        "",
        "tests/training/test_saving.py",
    ),
    Fault(
        "a checkpoint is renamed before the list of its files",
        TRAINING + "saving.py",
        """                write_file_list(staging / name)
                self._write_card(staging / name)  # not in the list: evaluations write into it later
                flush(staging / name)
                replace_folder(staging / name, run_folder / name)
""",
        """                self._write_card(staging / name)
                flush(staging / name)
                replace_folder(staging / name, run_folder / name)
                write_file_list(run_folder / name)
""",
        "tests/training/test_saving.py tests/training/test_checkpoint.py",
    ),
    Fault(
        "a file that was cut off makes no checkpoint damaged",
        TRAINING + "checkpoint.py",
        "if file.stat().st_size != size:",
        "if file.stat().st_size > size:",
        "tests/training/test_checkpoint.py",
    ),
    Fault(
        "the best checkpoint is deleted as an old one",
        TRAINING + "saving.py",
        "if str(folder) != self.state.best_model_checkpoint and folder not in pushed:",
        "if folder not in pushed:",
        "tests/scripts/test_pretrain_faults.py",
    ),
    Fault(
        "validation's loss is a mean over one token a row too many",
        TRAINING + "validation.py",
        'sum(len(rows[i]["input_ids"]) - 1 for i in which)',
        'sum(len(rows[i]["input_ids"]) for i in which)',
        "tests/training/test_validation.py",
    ),
    Fault(
        "validation's loss is that of its first source",
        TRAINING + "validation.py",
        "inside = [i for name in names if name in mixture for i in of_source[name]]",
        "inside = of_source[names[0]]",
        "tests/training/test_validation.py",
    ),
    Fault(
        "the time of validation counts as training",
        TRAINING + "throughput.py",
        "time.perf_counter() - self.began - self.paused_for",
        "time.perf_counter() - self.began",
        "tests/training/test_trainer.py tests/training/test_callbacks.py",
    ),
    Fault(
        "a run resumes with a different weight decay",
        TRAINING + "run_folder.py",
        '("warmup_steps", "weight_decay", "adam_beta1"',
        '("warmup_steps", "adam_beta1"',
        "tests/training/test_run_folder.py",
    ),
    # ---- GRPO
    Fault(
        "the temperature is not applied in the backward pass",
        GRPO + "log_probs.py",
        "grad_log_probs = grad_log_probs / ctx.temperature",
        "grad_log_probs = grad_log_probs / 1.0",
        "tests/grpo/test_log_probs.py",
    ),
    Fault(
        "the kept set is one token too small",
        GRPO + "sampling.py",
        "probs.cumsum(-1) - probs >= params.top_p",
        "probs.cumsum(-1) >= params.top_p",
        "tests/grpo/test_sampling.py",
    ),
    Fault(
        "training normalises over the whole vocabulary",
        GRPO + "log_probs.py",
        "    if sampling_mask is not None:\n        cut_off",
        "    if sampling_mask is None:\n        cut_off",
        "tests/grpo/test_log_probs.py",
    ),
    Fault(
        "the loss is computed without the rollout's mask",
        GRPO + "trainer.py",
        'self._sampling_mask = inputs.get("sampling_mask")',
        "self._sampling_mask = None",
        "tests/grpo/test_trainer.py tests/grpo/test_refinements.py",
    ),
    Fault(
        "a smaller batch keeps the rows that are finished",
        GRPO + "rollout.py",
        "finished.argsort(dim=1, stable=True)[:, :slots]",
        "finished.argsort(dim=1, stable=True, descending=True)[:, :slots]",
        "tests/grpo/test_rollout.py",
    ),
    Fault(
        "completions stand one position too far behind their prompt",
        GRPO + "shared_prefix.py",
        "positions = lengths[of_group, None] + torch.arange(",
        "positions = 1 + lengths[of_group, None] + torch.arange(",
        "tests/grpo/test_shared_prefix.py",
    ),
    Fault(
        "the shuffle tears groups apart",
        GRPO + "trainer.py",
        "order = places[of_group].argsort(stable=True)",
        "order = torch.randperm(len(of_group))",
        "tests/grpo/test_trainer.py tests/grpo/test_refinements.py",
    ),
    Fault(
        "the budget stops a run inside a rollout",
        GRPO + "budget.py",
        "if self.spent and state.global_step % self.updates_per_rollout == 0:",
        "if self.spent:",
        "tests/grpo/test_trainer.py tests/scripts/test_grpo_runs.py",
    ),
    Fault(
        "every pass asks the questions in the same order",
        GRPO + "prompts.py",
        'random.Random(f"grpo {seed} {number}")',
        'random.Random(f"grpo {seed}")',
        "tests/grpo/test_prompts.py",
    ),
    # ---- evaluation
    Fault(
        "reordered options keep the wrong answer",
        MEDQA + "questions.py",
        "answer=order.index(self.answer)",
        "answer=order[self.answer]",
        "tests/medqa/test_questions.py tests/medqa/test_permutations.py",
    ),
    Fault(
        "a letter anywhere in a completion is its answer",
        MEDQA + "formats.py",
        "match = LETTER_FIRST.match(completion)",
        "match = LETTER_FIRST.search(completion)",
        "tests/medqa/test_formats.py modeling_pure/medqa/formats.py",
    ),
    Fault(
        "the length penalty counts the end-of-text token",
        MEDQA + "rewards.py",
        "return sum(token not in self.eos_token_ids for token in ids)",
        "return len(ids)",
        "tests/medqa/test_rewards.py",
    ),
    Fault(
        "letters are scored one position too early",
        MEDQA + "scoring.py",
        "(lengths - 1).to(model.device)",
        "(lengths - 2).to(model.device)",
        "tests/medqa/test_scoring.py",
    ),
    Fault(
        "averaged probabilities belong to other options",
        MEDQA + "permutations.py",
        "np.broadcast_to(order.argsort(-1), in_place.shape)",
        "np.broadcast_to(order, in_place.shape)",
        "tests/medqa/test_permutations.py",
    ),
    Fault(
        "Holm's correction is Bonferroni's",
        MEDQA + "statistics.py",
        "(len(p_values) - rank) * p_values[i]",
        "len(p_values) * p_values[i]",
        "tests/medqa/test_statistics.py",
    ),
    Fault(
        "McNemar's tail ends one too early",
        MEDQA + "metrics/paired_mcq_comparison/paired_mcq_comparison.py",
        "range(min(only_first, only_second) + 1)",
        "range(min(only_first, only_second))",
        "tests/medqa/metrics",
    ),
    Fault(
        "the standard error divides by n",
        MEDQA + "metrics/medqa_accuracy/medqa_accuracy.py",
        "sqrt(p * (1 - p) / (n - 1))",
        "sqrt(p * (1 - p) / n)",
        "tests/medqa/metrics",
    ),
    Fault(
        "the accuracy on clean questions is that on all",
        MEDQA + "contamination.py",
        "slice_metrics(right[~covered]) if (~covered).any()",
        "slice_metrics(right) if (~covered).any()",
        "tests/scripts/test_eval.py",
    ),
    Fault(
        "questions that have a record are asked again",
        MEDQA + "journal.py",
        "if first + i not in self.records]",
        "if first + i not in {}]",
        "tests/scripts/test_eval.py",
    ),
    Fault(
        "records of one formulation are taken for another",
        MEDQA + "evaluation.py",
        '"formulation": asdict(asked.formulation),',
        '"formulation": None,',
        "tests/scripts/test_eval_formulations.py",
    ),
    Fault(
        "records asked with other passages are taken over",
        MEDQA + "results.py",
        "[q.question, q.options, q.answer, q.context, *q.passages]",
        "[q.question, q.options, q.answer, q.context]",
        "tests/scripts/test_eval_formulations.py",
    ),
    Fault(
        "passages fill the room of the answer",
        MEDQA + "asked.py",
        "return context - self.sampling.max_new_tokens",
        "return context",
        "tests/scripts/test_eval_formulations.py",
    ),
    Fault(
        "letters make the headline of a model that was taught texts",
        MEDQA + "formulations.py",
        'TAUGHT_FIRST = ("text", "letter", "reasoned")',
        'TAUGHT_FIRST = ("letter", "text", "reasoned")',
        "tests/medqa/test_formulations.py",
    ),
    Fault(
        "pass@k draws with replacement",
        MEDQA + "statistics.py",
        "1 - comb(samples - right, k) / comb(samples, k)",
        "1 - (1 - right / samples) ** k",
        "tests/medqa/test_measure.py",
    ),
    Fault(
        "a chat's prompt gets special tokens twice",
        MEDQA + "asked.py",
        "add_special_tokens=not self.formulation.chat",
        "add_special_tokens=True",
        "tests/medqa/test_scorers.py",
    ),
    Fault(
        "completions run on after the end of a turn",
        MEDQA + "generation.py",
        'end_tokens(getattr(asked.model, "generation_config", None), asked.tokenizer)',
        "end_tokens(None, asked.tokenizer)",
        "tests/medqa/test_scorers.py",
    ),
    # ---- commands
    Fault(
        "bad input ends with another exit code",
        "modeling_pure/errors.py",
        "{InputError: 2, RunStopped: 3}",
        "{InputError: 1, RunStopped: 3}",
        "tests/test_errors.py",
    ),
    Fault(
        "the recipe has the last word over the command line",
        "modeling_pure/recipe.py",
        "self.parse_args_into_dataclasses(arguments + options,",
        "self.parse_args_into_dataclasses(options + arguments,",
        "tests/training/test_recipes.py",
    ),
]
