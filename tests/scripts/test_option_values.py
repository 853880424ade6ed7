"""A wrong value of each type for every option that `--help` shows: one line that names the option, exit code 2."""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import eval_medqa
import train_grpo
import train_pretrain
from modeling_pure import export
from modeling_pure.commands.decontaminate import ReportArguments
from modeling_pure.commands.inspect import InspectArguments
from modeling_pure.commands.pretokenize import PretokenizeArguments
from modeling_pure.demo import stages as demo
from modeling_pure.doctor.command import DoctorArguments
from modeling_pure.errors import EXIT_CODES, InputError
from modeling_pure.general import GeneralArguments
from modeling_pure.medqa import compare
from modeling_pure.recipe import RecipeParser

PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "pretrain": train_pretrain.parse_arguments,
    "grpo": train_grpo.parse_arguments,
    "eval": eval_medqa.parse_arguments,
}
COMMANDS: dict[str, type] = {
    "inspect": InspectArguments,
    "pack": PretokenizeArguments,
    "decontaminate": ReportArguments,
    "general": GeneralArguments,
    "doctor": DoctorArguments,
}
NEEDED = {"pretrain": {"sources": {"a": {"path": "a.jsonl", "weight": 1}}}}
MAPPING, LISTS, NESTED = {"a": 1}, [[1, 2], ["a", "b"]], [[[1]], [{"a": 1}]]
NO_NUMBER = ["few", "true", "null2", "nan", "inf", "-inf", -5, "1,5", ""]
NO_BOOL = ["maybe", 2, -1, 0.5, "on", "off", ""]
NO_WORD = ["nonsense", 5, "true", "yes", ""]
# Any text may be right in these until it is looked for: a path, a name on the Hub, a metric.
FREE_TEXTS = (
    *("tokenizer_name_or_path", "pretokenized_dir", "output_dir", "hub_model_id", "metric_for_best_model"),
    *("resume_from_checkpoint", "model_name_or_path", "questions", "questions_config", "passages", "train_questions"),
    *("textbooks", "contamination", "decontaminate", "compare_with"),
    *("picture", "out", "report", "coverage", "reference_model_name_or_path"),
)
RIGHT = [
    ("off_policy_mask_threshold", "inf"),  # no mask
    ("reward_weights", -5),  # a penalty's; the trainer counts its rewards
    ("reference_model_name_or_path", ""),  # no reference
    ("scale_rewards", "true"),
]


one_parser = functools.cache(RecipeParser)  # it takes longer to build than to use
PARSERS |= {
    name: lambda argv, kind=kind: one_parser((kind,), "").parse_recipe(argv) for name, kind in COMMANDS.items()
}
SCRIPTS = ("pretrain", "grpo", "eval")


@pytest.fixture(autouse=True)
def build_parsers_once(monkeypatch):
    for module in (train_pretrain, train_grpo, eval_medqa):
        monkeypatch.setattr(module, "RecipeParser", one_parser)


def shown_options(name: str, monkeypatch) -> dict[str, argparse.Action]:
    """The options of a script's help page."""
    seen: list[RecipeParser] = []
    parse = RecipeParser.parse_recipe
    monkeypatch.setattr(RecipeParser, "parse_recipe", lambda self, argv: (seen.append(self), parse(self, argv))[1])
    PARSERS[name](["--sources", json.dumps(NEEDED[name]["sources"])] if name in NEEDED else [])
    monkeypatch.setattr(RecipeParser, "parse_recipe", parse)
    shown = [action for action in seen[0]._actions if action.help != argparse.SUPPRESS]
    return {action.dest: action for action in shown if action.dest not in ("help", "config")}


def wrong_values(action: argparse.Action) -> Iterator[Any]:
    """Values of every type that an option does not take, and of its own type beyond its range."""
    kind: Any = action.type
    if kind.__name__ == "parse_mapping":
        yield from (5, 1.5, "true", "word", "", *LISTS, *NESTED)
        return
    if action.dest != "answer_formats":
        yield MAPPING
    yield from NESTED
    several = action.nargs == "+"
    if not several:
        yield from LISTS
    if kind in (int, float):
        yield from NO_NUMBER + [1.5] * (kind is int)
    elif kind.__name__ == "string_to_bool":
        yield from NO_BOOL
    else:
        yield from [""] if action.dest in FREE_TEXTS else NO_WORD


@pytest.mark.parametrize(
    ("main", "argv", "named"),
    [
        (export.main, ["--to", "foo"], "--to"),
        (export.main, [], "--to"),
        (compare.main, [], "EVAL.json"),
        (demo.main, ["--seed", "-1"], "seed"),
        (demo.main, ["--seed", "many"], "--seed"),
        (demo.main, ["--twin"], "--twin"),
    ],
)
def test_a_command_without_a_recipe_refuses_in_one_line(main, argv, named, monkeypatch):
    monkeypatch.setattr("sys.argv", ["command", *argv])
    with pytest.raises(InputError, match=named) as error:
        main()
    assert "\n" not in str(error.value)


def test_a_second_recipe_is_refused():
    assert "--config" in refusal(train_grpo.parse_arguments, ["--config", "a.yaml", "--seed", "1", "--config=b.yaml"])


def refusal(parse: Callable[[list[str]], Any], argv: list[str]) -> str:
    """What a parser says of bad arguments; any error but `InputError` fails the test with its traceback."""
    try:
        parse(argv)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", PARSERS)
def test_a_wrong_value_is_refused_in_one_line_that_names_its_option(name, tmp_path, monkeypatch):
    recipe, unnamed = tmp_path / "recipe.yaml", []
    needed = ["--sources", json.dumps(NEEDED[name]["sources"])] if name in NEEDED else []
    cases = 0
    for option, action in shown_options(name, monkeypatch).items():
        for value in wrong_values(action):
            if (option, value) in RIGHT:
                continue
            recipe.write_text(yaml.safe_dump({**NEEDED.get(name, {}), option: value}))
            lines = [refusal(PARSERS[name], ["--config", str(recipe)])]
            if not isinstance(value, dict | list):
                lines.append(refusal(PARSERS[name], [*needed, f"--{option}={value}"]))
            unnamed += [(option, value, line) for line in lines if option not in line or "\n" in line]
            cases += len(lines)
    assert unnamed == []
    assert cases > 200 or name in COMMANDS
    assert EXIT_CODES[InputError] == 2


@pytest.mark.parametrize("name", PARSERS)
def test_the_shown_default_is_taken(name, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    defaults = {option: action.default for option, action in shown_options(name, monkeypatch).items()}
    recipe.write_text(yaml.safe_dump({**defaults, **NEEDED.get(name, {})}))
    assert refusal(PARSERS[name], ["--config", str(recipe)]) == ""


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("place", ["a_file", "a_file/below", "a_file/below/that", "x" * 300, "zero\0byte"])
def test_a_folder_that_cannot_be_written_to_is_refused(name, place, tmp_path):
    (tmp_path / "a_file").touch()
    needed = ["--sources", json.dumps(NEEDED[name]["sources"])] if name in NEEDED else []
    assert refusal(PARSERS[name], [*needed, "--output_dir", str(tmp_path / place)]).startswith("output_dir: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "a_file"]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("inspect", "picture"),
        ("pack", "out"),
        ("decontaminate", "report"),
        ("decontaminate", "coverage"),
        ("general", "output_dir"),
    ],
)
def test_a_place_that_a_command_cannot_write_to_is_refused(name, option, tmp_path):
    (tmp_path / "a_file").touch()
    assert refusal(PARSERS[name], [f"--{option}", str(tmp_path / "a_file" / "below.png")]).startswith(f"{option}: ")


@pytest.mark.parametrize(
    ("name", "option", "file"),
    [
        ("inspect", "picture", "mixture.txt"),
        ("inspect", "picture", "nowhere/mixture.png"),
        ("decontaminate", "report", "nowhere/hits.jsonl"),
        ("decontaminate", "coverage", "."),
    ],
)
def test_a_file_that_a_command_cannot_write_is_refused_before_it_reads(name, option, file, tmp_path):
    assert refusal(PARSERS[name], [f"--{option}", str(tmp_path / file)]).startswith(f"{option}: ")


@pytest.mark.parametrize("name", ["pretrain", "grpo"])
@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--seed", str(2**32)], "seed"),
        (["--data_seed", "-1"], "data_seed"),
        (["--report_to", "clearml"], "report_to"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "lr_scheduler_kwargs"),  # needs num_decay_steps
        (["--lr_scheduler_type", "linear", "--lr_scheduler_kwargs", "{min_lr: 1e-5}"], "lr_scheduler_kwargs"),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", "{min_lr: low}"],
            "lr_scheduler_kwargs",
        ),
        (["--fp16", "true"], "fp16"),
        (["--use_liger_kernel", "true"], "use_liger_kernel"),
        (["--learning_rate", "1e400"], "learning_rate"),
        (["--learning_rate", "0"], "learning_rate"),
        (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size"),
        (["--torch_compile_backend", "inductr"], "torch_compile_backend"),
        (["--torch_compile_mode", "fast"], "torch_compile_mode"),
        (["--max_steps", "null"], "max_steps"),
        (["--adam_beta2", "1"], "adam_beta2"),
        (["--neftune_noise_alpha", "-5"], "neftune_noise_alpha"),
        (["--optim_args", "foo"], "optim_args"),
        (["--gradient_checkpointing_kwargs", "{foo: 1}"], "gradient_checkpointing_kwargs"),
    ],
)
def test_what_only_a_library_would_find_out_is_refused(name, options, key):
    needed = ["--sources", json.dumps(NEEDED[name]["sources"])] if name in NEEDED else []
    assert refusal(PARSERS[name], [*needed, *options]).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--max_steps", "-1"], "max_steps"),
        (["--max_completion_length", "0"], "max_completion_length"),
        (["--num_iterations", "0"], "num_iterations"),
        (["--pad_to_multiple_of", "0"], "pad_to_multiple_of"),
        (["--sync_ref_model", "true", "--ref_model_sync_steps", "0"], "ref_model_sync_steps"),
        (["--temperature", "0"], "temperature"),
        (["--top_p", "1.5"], "top_p"),
        (["--num_train_epochs", "1"], "num_train_epochs"),
        (["--remove_unused_columns", "true"], "remove_unused_columns"),
        (["--loss_type", "ppo"], "loss_type"),
        (["--importance_sampling_level", "word"], "importance_sampling_level"),
        (["--multi_objective_aggregation", "mean"], "multi_objective_aggregation"),
        (["--sync_ref_model", "true", "--beta", "0"], "sync_ref_model"),
        (["--generation_kwargs", "nonsense"], "generation_kwargs"),
        (["--generation_batch_size", "64", "--updates_per_rollout", "2"], "generation_batch_size"),
        (["--generation_batch_size", "64", "--steps_per_generation", "2"], "generation_batch_size"),
    ],
)
def test_what_no_grpo_run_can_use_is_refused(options, key):
    assert refusal(train_grpo.parse_arguments, options).startswith(f"{key}: ")


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_a_schedule_without_settings_needs_none(kind):
    argv = ["--sources", json.dumps(NEEDED["pretrain"]["sources"]), "--lr_scheduler_type", kind]
    _, _, training, _ = train_pretrain.parse_arguments(argv)
    assert training.lr_scheduler_kwargs is None


@pytest.mark.parametrize("name", ["pretrain", "grpo"])
@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--log_level", "loud"], "log_level"),
        (["--gradient_checkpointing_kwargs", "nonsense"], "checkpointing_kwargs"),  # or by its new name
        (["--debug", "nonsense"], "debug"),
        (["--deepspeed", "nowhere.json"], "deepspeed"),
        (["--fsdp", "full_shard", "--fsdp_config", "nowhere.json"], "fsdp_config"),  # the error names the file alone
    ],
)
def test_the_error_of_a_library_names_the_option(name, options, key):
    needed = ["--sources", json.dumps(NEEDED[name]["sources"])] if name in NEEDED else []
    assert key in refusal(PARSERS[name], [*needed, *options])


def test_a_rollout_may_be_given_in_completions():
    _, training, _ = train_grpo.parse_arguments(["--generation_batch_size", "64", "--use_cpu", "true"])
    assert (training.generation_batch_size, training.steps_per_generation, training.plan.updates) == (64, 2, 0.5)


@pytest.mark.parametrize(("given", "scale"), [("true", "group"), ("false", "none"), ("batch", "batch")])
def test_the_scale_of_rewards_may_be_a_truth_value(given, scale, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"scale_rewards: {given}")
    for argv in (["--config", str(recipe)], ["--scale_rewards", given]):
        assert train_grpo.parse_arguments(argv)[1].scale_rewards == scale


# ---- YAML -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path) -> Callable[..., Any]:
    """Read a recipe for pretraining, given as YAML; returns the data and the training arguments, or the refusal."""

    def read(text: str, *argv: str) -> Any:
        path = Path(tmp_path, "recipe.yaml")
        path.write_text(text)
        try:
            return train_pretrain.parse_arguments(["--config", str(path), *argv])[1:3]
        except InputError as error:
            return str(error)

    return read


SOURCES = "sources: {a: {path: a.jsonl, weight: 1}}\n"


@pytest.mark.parametrize("word", ["no", "NO", "yes", "on", "off", "1e3", "010", "12:30", "2024-01-01", "true"])
def test_a_word_stays_as_it_is_written(read, word):
    _, training = read(f"{SOURCES}run_name: {word}\nhub_model_id: {word}\n")
    assert (training.run_name, training.hub_model_id) == (word, word)


def test_a_strategy_and_a_source_may_be_called_no(read):
    data, training = read("eval_strategy: no\nbf16: no\nsources:\n  no: {path: a.jsonl, weight: 1}\n")
    assert (training.eval_strategy, training.bf16, list(data.sources)) == ("no", False, ["no"])


@pytest.mark.parametrize("word", ["no", "yes", "On", "off"])
def test_a_word_inside_a_mapping_has_to_be_plain(read, word):
    nested = f"sources: {{a: {{path: a.jsonl, weight: 1, column: {word}}}}}\n"
    line = read(nested)
    assert line.startswith("sources.a.column: ")
    assert f'"{word}"' in line
    data, _ = read(nested.replace(f" {word}", f" '{word}'"))
    assert data.sources["a"]["column"] == word
    assert "sources.a.column: " in read(SOURCES, "--sources.a.column", word)
    assert "sources" in read("max_steps: 9", "--sources", nested.removeprefix("sources: "))


@pytest.mark.parametrize(
    "text",
    [
        SOURCES + "max_steps: 1\nseed: 1\nmax_steps: 2\n",
        "sources:\n  b: {path: x, weight: 1}\n  max_steps: {path: x, weight: 1}\n  max_steps: {path: y, weight: 1}\n",
        SOURCES + "lr_scheduler_kwargs: {max_steps: 1, max_steps: 2}\n",
    ],
)
def test_a_key_that_is_written_twice_is_refused(read, text):
    line = read(text)
    assert "'max_steps'" in line
    assert "recipe.yaml" in line


def test_a_key_that_is_written_twice_on_the_command_line_is_refused(read):
    twice = "{a: {path: x, path: y, weight: 1}}"
    assert "'path'" in read("max_steps: 9", "--sources", twice)
    assert "'path'" in read("max_steps: 9", "--sources.a", "{path: x, path: y, weight: 1}")


def test_a_shared_part_of_a_recipe_may_be_merged(read):
    data, _ = read("sources:\n  a: &a {path: x, weight: 0.5}\n  b: {<<: *a, path: y}\n")
    assert data.sources["b"] == {"path": "y", "weight": 0.5}


@pytest.mark.parametrize("value", ["!!binary aGk=", "!!set {a, b}", "!!timestamp 2024-01-01"])
def test_a_value_that_is_no_json_is_refused_by_its_key(read, value):
    assert read(f"sources: {{a: {{path: {value}, weight: 1}}}}\n").startswith("sources: ")


@pytest.mark.parametrize(
    ("name", "option", "default"),
    [
        ("pretrain", "save_total_limit", 3),
        ("pretrain", "lr_scheduler_kwargs", {"min_lr": 3e-5}),
        ("pretrain", "metric_for_best_model", "eval_loss"),
        ("grpo", "off_policy_mask_threshold", 0.05),
        ("grpo", "reward_weights", [1.0, -0.01]),
        ("grpo", "max_grad_norm", 1.0),  # is no option that may be None
    ],
)
def test_null_is_none_and_no_default(name, option, default, tmp_path):
    more = {"lr_scheduler_type": "linear"} if option == "lr_scheduler_kwargs" else {}
    recipe = tmp_path / "recipe.yaml"
    sources = NEEDED.get(name, {})

    def value(*argv: str, **given) -> Any:
        recipe.write_text(yaml.safe_dump({**sources, **given}))
        return getattr(PARSERS[name](["--config", str(recipe), *argv])[-2], option)

    assert value() == default
    for argv, given in (([], {option: None, **more}), ([f"--{option}", "null"], more), ([f"--{option}=null"], more)):
        if option == "max_grad_norm":
            with pytest.raises(InputError, match="^max_grad_norm: "):
                value(*argv, **given)
        else:
            assert value(*argv, **given) is None
    if option == "save_total_limit":  # the command line has the last word, either way
        assert value("--save_total_limit", "null", save_total_limit=2) is None
        assert value("--save-total-limit", "null", save_total_limit=2) is None
        assert value("--save_total_limit", "2", save_total_limit=None) == 2


def test_lists_are_lists_and_mappings_are_yaml(read, tmp_path):
    _, training = read(SOURCES + "report_to: [tensorboard, flyte]\n")
    assert training.report_to == ["tensorboard", "flyte"]
    for none in ("[]", "none", "null"):
        assert read(SOURCES + f"report_to: {none}\n")[1].report_to == []
    assert read(SOURCES, "--report_to", "tensorboard", "flyte")[1].report_to == ["tensorboard", "flyte"]
    recipe = tmp_path / "grpo.yaml"
    recipe.write_text("optim_target_modules: [q_proj, v_proj]\noptim: galore_adamw\nuse_cpu: true\n")
    assert train_grpo.parse_arguments(["--config", str(recipe)])[1].optim_target_modules == ["q_proj", "v_proj"]
    _, training = read(
        SOURCES, "--lr_scheduler_kwargs", "{min_lr: 1e-5}", "--model_overrides", "{num_hidden_layers: 2}"
    )
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5}


def test_true_false_or_a_word(read):
    for given, taken in (("non_padding", "non_padding"), ("true", "all"), ("false", "no"), ("all", "all")):
        assert read(SOURCES + f"include_num_input_tokens_seen: {given}\n")[1].include_num_input_tokens_seen == taken
    assert read(SOURCES + "trackio_static_space_id: false\n")[1].trackio_static_space_id is False
