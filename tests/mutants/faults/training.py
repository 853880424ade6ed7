"""Faults in `training/`."""

from tests.mutants.faults.fault import Fault

TRAINING = "modeling_pure/training/"

FAULTS = [
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
        "a step that is not finite is taken by an optimizer that reads no flag",
        TRAINING + "health.py",
        "elif isinstance(optimizer, torch.optim.Optimizer) and bad:",
        "elif False:",
        "tests/training/test_health.py",
    ),
    Fault(
        "the best checkpoint is one that was not saved",
        TRAINING + "saving.py",
        "[*checkpoint_folders(self._run_folder), *written] if step in measured",
        "measured.items()",
        "tests/training/test_saving.py",
    ),
    Fault(
        "data_seed does nothing",
        TRAINING + "trainer_options.py",
        "return args.seed if args.data_seed is None else args.data_seed",
        "return args.seed",
        "tests/training/test_every_option.py",
    ),
    Fault(
        "options without effect are accepted",
        TRAINING + "trainer_options.py",
        "refuse(args, {**REFUSED, **refused})",
        "refuse(args, refused)",
        "tests/training/test_every_option.py",
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
        TRAINING + "launch.py",
        "place.rmdir()",
        "pass",
        "tests/training/test_launch.py",
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
        """            if "dict" not in hint:
                raise""",
        """            if False:
                raise""",
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
    Fault(
        "a run locks its folder for nobody",
        TRAINING + "launch.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/training/test_launch.py",
    ),
    Fault(
        "data workers keep a killed run's lock",
        TRAINING + "launch.py",
        "fcntl.lockf(file",
        "fcntl.flock(file",
        "tests/training/test_launch.py",
    ),
    Fault(
        "a run locks a file that is there no more",
        TRAINING + "launch.py",
        "if not os.fstat(file.fileno()).st_nlink:",
        "if False:",
        "tests/training/test_launch.py",
    ),
    Fault(
        "only the first rank of a second run ends",
        TRAINING + "launch.py",
        "(refusal,) = broadcast_object_list([refusal])",
        "pass",
        "tests/training/test_launch.py",
    ),
    Fault(
        "processes of torchrun on a CPU machine each are a run",
        TRAINING + "launch.py",
        'if on_cpu and (args.bf16 or "LOCAL_RANK" in os.environ):',
        "if on_cpu and args.bf16:",
        "tests/training/test_launch.py",
    ),
    Fault(
        "ranks on CPUs wait for half an hour whatever ddp_timeout says",
        TRAINING + "launch.py",
        "backend=args.ddp_backend, timeout=args.ddp_timeout_delta",
        "backend=args.ddp_backend",
        "tests/training/test_launch.py",
    ),
    Fault(
        "ranks agree on a signal for half an hour whatever ddp_timeout says",
        TRAINING + "signals.py",
        'dist.new_group(backend="gloo", timeout=0.9 * args.ddp_timeout_delta)',
        'dist.new_group(backend="gloo")',
        "tests/training/test_signals.py",
    ),
    Fault(
        "the precision of accelerate launch is not taken over",
        TRAINING + "launch.py",
        'return bool(stated) or launched == "bf16"',
        "return bool(stated)",
        "tests/training/test_launch.py",
    ),
    Fault(
        "an engine that accelerate does not start is left out without a word",
        TRAINING + "launch.py",
        "for name in engines(args) - {has.lower()}:",
        "for name in set[str]():",
        "tests/training/test_launch.py",
    ),
    Fault(
        "a rank that answers is named as lost",
        TRAINING + "launch.py",
        'silent = [other for other in range(world_size) if not store.check([f"pure/answer/{other}"])]',
        "silent = [*range(world_size)]",
        "tests/training/test_launch.py",
    ),
]
