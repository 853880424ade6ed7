"""Every recipe is read, and bad ones are refused by file and key."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure import PureConfig
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.sources import parse_sources
from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.medqa.arguments import SPLITS, EvalArguments
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments, equal_passes
from modeling_pure.training.report import training_memory

ROOT = Path(__file__).parents[2]


def parse_pretrain(*argv):
    model, data, training = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), "").parse_recipe(
        list(argv)
    )
    training.share_out(data.max_seq_length)
    return model, data, training


def parse_grpo(*argv):
    return RecipeParser((GRPOScriptArguments, PureGRPOConfig), "").parse_recipe(list(argv))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/pretrain.yaml")), ids=lambda path: path.parent.name)
def test_pretraining_recipes_are_read(path):
    _, data, training = parse_pretrain("--config", str(path))
    assert len(parse_sources(data.sources)) == 4
    assert training.save_steps % training.eval_steps == 0
    assert training.max_steps > training.warmup_steps


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/grpo.yaml")), ids=lambda path: path.parent.name)
def test_grpo_recipes_are_read_and_their_refinements_act(path):
    _, training = parse_grpo("--config", str(path))
    assert training.beta > 0
    assert training.use_bias_correction_kl
    assert training.off_policy_mask_threshold
    assert training.updates_per_rollout == 2
    assert training.scale_rewards == "none"
    assert training.loss_type == "grpo"
    assert training.keep_sampling_mask
    assert training.sampling_params(()).truncates
    assert training.save_steps % training.eval_steps == 0


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/eval.yaml")), ids=lambda path: path.parent.name)
def test_evaluation_recipes_are_read_and_measure_what_grpo_wrote(path):
    (args,) = RecipeParser((EvalArguments,), "").parse_recipe(["--config", str(path)])
    _, grpo = parse_grpo("--config", str(path.with_name("grpo.yaml")))
    assert args.model_name_or_path == grpo.output_dir
    assert args.split in SPLITS


def test_the_a100_recipes_hold_the_numbers_of_the_seed():
    model, data, training = parse_pretrain("--config", str(ROOT / "recipes/a100_2day/pretrain.yaml"))
    tokens_per_step = training.per_device_train_batch_size * data.max_seq_length
    assert tokens_per_step == 32_768
    assert training.gradient_accumulation_steps == 1
    assert training.max_steps == 61_035 == 2_000_000_000 // tokens_per_step
    assert training.warmup_steps == round(50_000_000 / tokens_per_step)
    assert (training.learning_rate, training.lr_scheduler_kwargs) == (3e-4, {"min_lr": 3e-5})
    assert (training.save_steps, training.save_total_limit, training.metric_for_best_model) == (1000, 3, "eval_loss")
    assert (model.preset, training.lr_scheduler_type) == ("medium-large", "cosine_with_min_lr")
    assert training.optim.value.startswith("adamw_torch_fused")
    assert training.report_to == ["tensorboard"]
    sources = parse_sources(data.sources)
    assert [float(source.weight) for source in sources] == [0.45, 0.25, 0.2, 0.1]
    assert [(source.path, source.config) for source in sources] == [
        ("codelion/finepdfs-1B", None),
        ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
        ("allenai/c4", "en"),
        ("GBaker/MedQA-USMLE-4-options", None),
    ]
    grpo_script, grpo = parse_grpo("--config", str(ROOT / "recipes/a100_2day/grpo.yaml"))
    assert grpo_script.length_penalty_min_tokens == 4
    assert grpo.reward_weights == [1.0, -0.01]
    assert (grpo.prompts_per_step, grpo.num_generations) == (8, 16)
    assert (grpo.max_steps, grpo.max_tokens, grpo.learning_rate) == (4578, 600_000_000, 1e-5)
    assert grpo.max_completion_length == 256


def test_every_card_takes_the_same_steps():
    curves = []
    for name in ("a100_2day", "a6000_2day", "24gb"):
        model, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        facts = ("rows_per_step", "max_steps", "learning_rate", "warmup_steps", "lr_scheduler_kwargs", "seed")
        curves.append((model, data, *(getattr(training, fact) for fact in facts)))
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_a_step_is_the_same_on_any_number_of_gpus(monkeypatch, processes):
    monkeypatch.setattr(PureTrainingArguments, "world_size", processes)
    monkeypatch.setattr(PureGRPOConfig, "world_size", processes)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for name in ("a100_2day", "a6000_2day", "24gb"):
        _, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        assert training.rows_per_step * data.max_seq_length == training.tokens_per_step == 32_768
        assert training.per_device_train_batch_size == min(16 // processes, 8 if name == "24gb" else 16)
    for name in ("a100_2day", "a6000_2day"):
        _, grpo = parse_grpo("--config", str(ROOT / f"recipes/{name}/grpo.yaml"))
        assert (grpo.completions_per_step, grpo.generation_batch_size, grpo.updates_per_rollout) == (128, 256, 2)
        assert grpo.per_device_train_batch_size == min(32, 128 // processes)


def test_what_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(PureTrainingArguments, "world_size", 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = ["--config", str(ROOT / "recipes/a100_2day/pretrain.yaml")]
    with pytest.raises(InputError, match="tokens_per_step: 32,768 tokens are 16 rows of 2,048, which 3 process"):
        parse_pretrain(*recipe)
    with pytest.raises(InputError, match="tokens_per_step: 32,768 tokens are 16.384 rows of 2,000"):
        parse_pretrain(*recipe, "--max_seq_length", "2000")
    with pytest.raises(InputError, match="prompts_per_step: 8 x 16 completions cannot be shared by 3 process"):
        parse_grpo("--config", str(ROOT / "recipes/a100_2day/grpo.yaml"))
    monkeypatch.setattr(PureTrainingArguments, "world_size", 1)
    with pytest.raises(InputError, match="gradient_accumulation_steps: 3 passes of 16 rows are not the 16 rows"):
        parse_pretrain(*recipe, "--gradient_accumulation_steps", "3")


@given(rows=st.integers(1, 200), at_most=st.integers(1, 64))
def test_passes_are_equal_and_as_few_as_may_be(rows, at_most):
    size, passes = equal_passes(rows, at_most)
    assert size * passes == rows
    assert size <= at_most
    assert not any(rows % larger == 0 for larger in range(size + 1, at_most + 1))


def test_memory_is_that_of_the_recipes_comments():
    """And of the design's arithmetic: 34 kB for each token and layer in bf16."""
    for name, rows, total in (("a100_2day", 16, "about 31"), ("24gb", 8, "about 20")):
        _, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        training.bf16 = True
        assert training.per_device_train_batch_size == rows
        assert training_memory(PureConfig(), 401_227_776, training, data.max_seq_length).startswith(total)
    training.gradient_checkpointing = True
    assert training_memory(PureConfig(), 401_227_776, training, 2048).startswith("about 10.")


def test_the_command_line_has_the_last_word(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("max_steps: 7\nlearning_rate: 1e-3\nsources:\n  c4: {path: a, weight: 1.0}\nbf16: false\n")
    _, data, training = parse_pretrain(
        "--config", str(recipe), "--max_steps", "9", "--sources.c4.path=b", "--sources.c4.column", "body"
    )
    assert (training.max_steps, training.learning_rate, training.bf16) == (9, 1e-3, False)
    assert data.sources == {"c4": {"path": "b", "weight": 1.0, "column": "body"}}


@pytest.mark.parametrize(
    ("recipe", "argv", "message"),
    [
        ("learning_rat: 1", [], "r.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("- a", [], "r.yaml: expected a mapping"),
        ("a: [", [], "r.yaml: not YAML"),
        ("max_steps: many", [], "argument --max_steps: invalid int value: 'many'"),
        ("sources: [1]", [], "--sources"),
        ("max_steps: 1", ["--max_step", "2"], "unknown option '--max_step'; did you mean '--max_steps'?"),
        ("max_steps: 1", ["--max_steps.x", "2"], "--max_steps.x: 'max_steps' holds no mapping"),
        ("max_steps: 1", ["--config"], "--config: expected a value"),
        ("save_steps: 7\neval_steps: 5\nload_best_model_at_end: true", [], "requires the saving steps"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path, recipe, argv, message):
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    with pytest.raises(InputError) as error:
        parse_pretrain("--config", str(path), *argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_grpo_refuses_to_save_inside_a_rollout():
    with pytest.raises(InputError, match="save_steps: 7 is no multiple of 2 updates"):
        parse_grpo("--save_steps", "7")
    with pytest.raises(InputError, match="divisible"):
        parse_grpo("--num_generations", "7")


@pytest.mark.parametrize("script", ["train_pretrain.py", "train_grpo.py", "eval_medqa.py"])
def test_help_is_a_page_that_explains_each_option(script):
    page = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "research" in page.lower()
    assert len(page.splitlines()) < 130
    assert "--config FILE" in page
    options = [line for line in page.splitlines() if line.startswith("  --") and not line.startswith("  --config")]
    assert len(options) >= 7
    assert len(re.findall(r"\(default:\s", page)) >= len(options)


def test_every_option_that_the_readme_translates_to_is_one():
    page = (ROOT / "README.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `--")]
    options = {option for _, here, *_ in rows for option in re.findall(r"--([a-z_0-9]+)", here)}
    assert len(options) >= 11
    parsers = [(ModelArguments, DataArguments, PureTrainingArguments), (GRPOScriptArguments, PureGRPOConfig)]
    known = {action.dest for kinds in parsers for action in RecipeParser(kinds, "")._actions}
    assert options <= known
