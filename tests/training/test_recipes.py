"""Every recipe is read, and bad ones are refused by file and key."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure import PureConfig
from modeling_pure.data.arguments import DataArguments, parse_sources
from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import GRPOScriptArguments, PureGRPOConfig
from modeling_pure.grpo.report import INERT, describe_refinements
from modeling_pure.loss_pure import CHUNK_TOKENS
from modeling_pure.medqa.arguments import SPLITS, EvalArguments
from modeling_pure.recipe import RecipeParser
from modeling_pure.training.arguments import ModelArguments, PureTrainingArguments
from modeling_pure.training.batch import BatchPlan
from modeling_pure.training.throughput import training_bytes
from tests.processes import run

ROOT = Path(__file__).parents[2]


def parse_pretrain(*argv):
    model, data, training = RecipeParser((ModelArguments, DataArguments, PureTrainingArguments), "").parse_recipe(
        list(argv)
    )
    return model, data, training


def plan_of(*argv):
    _, data, training = parse_pretrain(*argv)
    return training.batch_plan(data.max_seq_length)


def parse_grpo(*argv):
    return RecipeParser((GRPOScriptArguments, PureGRPOConfig), "").parse_recipe(list(argv))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/pretrain.yaml")), ids=lambda path: path.parent.name)
def test_pretraining_recipes_are_read(path):
    _, data, training = parse_pretrain("--config", str(path))
    assert parse_sources(data.sources)
    assert training.save_steps % training.eval_steps == 0
    assert training.max_steps > training.warmup_steps


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/grpo.yaml")), ids=lambda path: path.parent.name)
def test_grpo_recipes_are_read_and_their_refinements_act(path):
    _, training = parse_grpo("--config", str(path))
    params, unhindered = training.sampling_params(()), {"prefix_obstacle": None, "rollout_obstacle": None}
    acts = describe_refinements(SimpleNamespace(args=training, sampling_params=params, fp32_head=True, **unhindered))
    assert [fact for fact in acts.values() if fact.startswith((INERT, "off"))] == []
    assert params.truncates
    assert training.save_steps % training.eval_steps == 0


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*/eval.yaml")), ids=lambda path: path.parent.name)
def test_evaluation_recipes_are_read_and_measure_what_grpo_wrote(path):
    (args,) = RecipeParser((EvalArguments,), "").parse_recipe(["--config", str(path)])
    _, grpo = parse_grpo("--config", str(path.with_name("grpo.yaml")))
    assert args.model_name_or_path == grpo.output_dir
    assert args.split in SPLITS


def test_the_a100_recipe_reads_two_billion_tokens_in_the_specified_shares():
    """Whole steps of 16 sequences fill 2 billion tokens, of which 50 million are warm-up."""
    _, data, training = parse_pretrain("--config", str(ROOT / "recipes/a100_2day/pretrain.yaml"))
    tokens_per_step = training.batch_plan(data.max_seq_length).sequences_per_step * data.max_seq_length
    assert training.max_steps == 2_000_000_000 // tokens_per_step
    assert training.warmup_steps == round(50_000_000 / tokens_per_step)
    assert [float(source.weight) for source in parse_sources(data.sources)] == [0.45, 0.25, 0.2, 0.1]


def test_every_card_takes_the_same_steps():
    curves = []
    for name in ("a100_2day", "a6000_2day", "24gb"):
        model, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        facts = ("max_steps", "learning_rate", "warmup_steps", "lr_scheduler_kwargs", "seed")
        step = training.batch_plan(data.max_seq_length).sequences_per_step
        curves.append((model, data, step, *(getattr(training, fact) for fact in facts)))
    assert curves[0] == curves[1] == curves[2]


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_a_step_is_the_same_on_any_number_of_gpus(monkeypatch, processes):
    monkeypatch.setattr(PureTrainingArguments, "world_size", processes)
    monkeypatch.setattr(PureGRPOConfig, "world_size", processes)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for name in ("a100_2day", "a6000_2day", "24gb"):
        _, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        plan = training.batch_plan(data.max_seq_length)
        assert plan.sequences_per_step * data.max_seq_length == training.tokens_per_step == 32_768
        assert plan.micro_batch_size == min(16 // processes, 8 if name == "24gb" else 16)
    for name in ("a100_2day", "a6000_2day"):
        _, grpo = parse_grpo("--config", str(ROOT / f"recipes/{name}/grpo.yaml"))
        plan = grpo.plan
        assert (plan.sequences_per_step, plan.prompts, plan.updates, grpo.generation_batch_size) == (128, 8, 2, 256)
        assert plan.micro_batch_size == grpo.per_device_train_batch_size == min(32, 128 // processes)


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(PureTrainingArguments, "world_size", 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = ["--config", str(ROOT / "recipes/a100_2day/pretrain.yaml")]
    with pytest.raises(InputError, match=r"^tokens_per_step: 32,768 .*\b16 .*\b2,048\b.*\b3\b"):
        plan_of(*recipe)
    with pytest.raises(InputError, match=r"^tokens_per_step: 32,768 .*\b16\.384 .*\b2,000\b"):
        plan_of(*recipe, "--max_seq_length", "2000")
    with pytest.raises(InputError, match=r"^prompts_per_step: 8 x 16 .*\b3\b"):
        parse_grpo("--config", str(ROOT / "recipes/a100_2day/grpo.yaml"))
    with pytest.raises(InputError, match=r"^WORLD_SIZE: .*\bMASTER_ADDR\b"):
        PureGRPOConfig(use_cpu=True)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # the latter two by accelerate
        monkeypatch.delenv(name)
    with pytest.raises(
        InputError, match=r"^updates_per_rollout: .*\b3\b.*\b5$"
    ):  # of 4 micro-batches each, for 3 rounds
        PureGRPOConfig(use_cpu=True, updates_per_rollout=5, num_iterations=3)
    monkeypatch.setattr(PureTrainingArguments, "world_size", 1)
    with pytest.raises(InputError, match=r"^gradient_accumulation_steps: 3 .*\b16\b.*\b16\b"):
        plan_of(*recipe, "--gradient_accumulation_steps", "3")


@given(sequences=st.integers(1, 200), at_most=st.integers(1, 64))
def test_micro_batches_are_equal_and_as_few_as_possible(sequences, at_most):
    plan = BatchPlan.divide("tokens_per_step", sequences, 1, at_most)
    size = plan.micro_batch_size
    assert size * plan.accumulation == sequences == plan.sequences_per_step
    assert size <= at_most
    assert not any(sequences % larger == 0 for larger in range(size + 1, at_most + 1))


def test_a_micro_batch_fits_the_cards_that_its_recipe_is_for():
    """By the design's arithmetic: 34 kB for each token and layer in bf16, and a chunk of logits at 12 bytes each."""
    fixed = 16 * 401_227_776 + 12 * CHUNK_TOKENS * 50_304
    for name, card in (("a100_2day", 40e9), ("24gb", 24e9)):
        _, data, training = parse_pretrain("--config", str(ROOT / f"recipes/{name}/pretrain.yaml"))
        training.bf16 = True
        tokens = training.batch_plan(data.max_seq_length).micro_batch_size * data.max_seq_length
        needed = sum(training_bytes(PureConfig(), 401_227_776, training, tokens).values())
        assert needed == pytest.approx(fixed + 20 * 34_000 * tokens, rel=0.01)
        assert 0.7 * card < needed < 0.9 * card
    training.gradient_checkpointing = True  # a layer's input of 1,152 in two bytes, and one layer at a time
    needed = sum(training_bytes(PureConfig(), 401_227_776, training, tokens).values())
    assert needed == pytest.approx(fixed + (20 * 2 * 1_152 + 34_000) * tokens, rel=0.01)


def test_the_command_line_takes_precedence(tmp_path):
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
        ("learning_rat: 1", [], r"r\.yaml: .*'learning_rat'.*'learning_rate'"),
        ("- a", [], r"r\.yaml: [^:]*$"),
        ("a: [", [], r"r\.yaml: .*\bline \d"),
        ("max_steps: many", [], "--max_steps: .*'many'$"),
        ("sources: [1]", [], r"^sources: .*\[1\]"),
        ("max_steps: 1", ["--max_step", "2"], "'--max_step'.*'--max_steps'"),
        ("max_steps: 1", ["--max_steps.x", "2"], r"^--max_steps\.x: .*'max_steps'"),
        ("max_steps: 1", ["--config"], "^--config: "),
        (
            "save_steps: 7\neval_steps: 5\nload_best_model_at_end: true",
            [],
            r"--load_best_model_at_end .*\b7\b.*\b5\b",
        ),
    ],
)
def test_bad_recipes_are_refused_in_one_line(tmp_path, recipe, argv, message):
    path = tmp_path / "r.yaml"
    path.write_text(recipe)
    with pytest.raises(InputError, match=message) as error:
        parse_pretrain("--config", str(path), *argv)
    assert "\n" not in str(error.value)


def test_grpo_refuses_parts_of_groups_in_a_rollout():
    with pytest.raises(InputError, match=r"num_generations.*\b7\b"):
        parse_grpo("--num_generations", "7")


@pytest.mark.parametrize("script", ["train_pretrain.py", "train_grpo.py", "eval_medqa.py"])
def test_help_is_a_page_that_explains_each_option(script):
    page = run(script, "--help").stdout
    assert "--config FILE" in page
    options = [line for line in page.splitlines() if line.startswith("  --") and not line.startswith("  --config")]
    assert len(options) >= 7
    assert len(re.findall(r"\(default:\s", page)) >= len(options)


def test_every_option_that_the_specification_translates_to_is_one():
    page = (ROOT / "docs/ORIGINAL_SPECIFICATION.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `--")]
    options = {option for _, here, *_ in rows for option in re.findall(r"--([a-z_0-9]+)", here)}
    assert len(options) >= 11
    parsers = [(ModelArguments, DataArguments, PureTrainingArguments), (GRPOScriptArguments, PureGRPOConfig)]
    known = {action.dest for kinds in parsers for action in RecipeParser(kinds, "")._actions}
    assert options <= known
