"""Faults in `training/`."""

from tests.mutants.faults.fault import Fault

TRAINING = "modeling_pure/training/"

FAULTS = [
    Fault(
        "signals are listened to in any thread",
        TRAINING + "signals.py",
        "if threading.current_thread() is threading.main_thread():",
        "if True:",
        "tests/scripts/test_pretrain.py",
    ),
    Fault(
        "a checkpoint without an optimizer is resumed with a fresh one",
        "modeling_pure/training/hub.py",
        "        require_optimizer(found, by_deepspeed=bool(args.deepspeed_plugin))\n",
        "        pass\n",
        "tests/scripts/test_pretrain_parallel.py",
    ),
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
        """                write_file_list(staging / name)  # last, over what every other writer has left
                if fault := checkpoint_fault(staging / name):
                    raise RunStopped(f"output_dir: {name} could not be resumed from: {fault}")
                flush(staging / name)
                replace_folder(staging / name, run_folder / name)
""",
        """                flush(staging / name)
                replace_folder(staging / name, run_folder / name)
                write_file_list(run_folder / name)
""",
        "tests/training/test_saving.py tests/training/test_checkpoint.py",
    ),
    Fault(
        "the list of a checkpoint's files counts its card",
        TRAINING + "checkpoint.py",
        "apart = (folder / CARD, folder / FILE_LIST)",
        "apart = (folder / FILE_LIST,)",
        "tests/training/test_checkpoint.py",
    ),
    Fault(
        "a checkpoint that could not be resumed from is kept",
        TRAINING + "saving.py",
        "if fault := checkpoint_fault(staging / name):",
        "if fault := None:",
        "tests/training/test_saving.py",
    ),
    Fault(
        "a run that is made longer takes its next step at the old schedule's rate",
        TRAINING + "saving.py",
        """                group["lr"] = rate
""",
        """                pass
""",
        "tests/training/test_saving.py",
    ),
    Fault(
        "weights are readable by their owner alone",
        TRAINING + "saving.py",
        "follow_umask([",
        "list([",
        "tests/training/test_saving.py",
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
        "dev questions are scored by letter, and called text",
        TRAINING + "validation.py",
        'scorers["text_"] = text_log_likelihoods',
        'scorers["text_"] = letter_log_likelihoods',
        "tests/training/test_validation.py tests/grpo/test_sft.py",
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
    Fault(
        "a rehearsal leaves its log lines in the run's",
        TRAINING + "rehearsal.py",
        "handler.callbacks, state.log_history = callbacks, history",
        "handler.callbacks = callbacks",
        "tests/training/test_rehearsal.py",
    ),
    Fault(
        "a metric that evaluation does not give is noticed at the first one",
        TRAINING + "rehearsal.py",
        "not in metrics:",
        "in ():",
        "tests/training/test_rehearsal.py tests/scripts/test_bad_input.py",
    ),
    Fault(
        "a refused run leaves an empty folder",
        TRAINING + "rehearsal.py",
        "place.rmdir()",
        "pass",
        "tests/training/test_rehearsal.py",
    ),
    Fault(
        "a schedule is built when training starts",
        TRAINING + "trainer_options.py",
        "except (TypeError, ValueError, ArithmeticError) as error:",
        "except ArithmeticError as error:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "a tracker that is not installed is noticed when the trainer is built",
        TRAINING + "trainer_options.py",
        """if name not in (*get_available_reporting_integrations(), "flyte"):""",
        "if False:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "NaN passes as a number",
        "modeling_pure/options.py",
        "not smallest <= value < math.inf",
        "(value < smallest or value == math.inf)",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "a mapping is taken for a text",
        "modeling_pure/recipe.py",
        """if "dict" not in self.hints.get(key, ""):""",
        "if False:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "of a key that is written twice the last is taken",
        "modeling_pure/plain_yaml.py",
        "if key.value in keys:",
        "if False:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "a word inside a mapping is taken for true or false",
        "modeling_pure/plain_yaml.py",
        "if isinstance(value, Ambiguous):",
        "if False:",
        "tests/scripts/test_option_values.py",
    ),
    Fault(
        "a run of epochs is taken for finished at its first checkpoint",
        TRAINING + "saving.py",
        "        if self.args.max_steps > 0:\n",
        "        if True:\n",
        "tests/grpo/test_drop_in.py",
    ),
    Fault(
        "a refused run leaves a repository on the Hub",
        TRAINING + "saving.py",
        "create_repository(self.args) if is_built else repository_id(self.args)",
        "create_repository(self.args)",
        "tests/training/test_rehearsal.py",
    ),
]
