"""The internals of transformers and TRL that we depend on, by name. Takes seconds; run it first on a new release.

The methods that we override are listed with their upstream parameters, and upstream must still call the private ones:
after a rename, an override would silently never run. The attributes that our trainers read and the names that we
import are collected from our sources.
"""

import ast
import inspect
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerState
from transformers.trainer_callback import CallbackHandler
from trl import GRPOTrainer

from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.scoring import ScoringTrainer
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.grpo.trainer import PureGRPOTrainer
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.saving import DurableTrainer
from modeling_pure.training.trainer import PureTrainer

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("modeling_pure/**/*.py")])
LIBRARIES = {
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface_hub",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}

OVERRIDDEN = {  # None: ours takes whatever it is given
    Trainer: {
        "train": "resume_from_checkpoint trial ignore_keys_for_eval",
        "evaluate": "eval_dataset ignore_keys metric_key_prefix",
        "log": "logs start_time",
        "compute_loss": "model inputs return_outputs num_items_in_batch",
        "training_step": "model inputs num_items_in_batch",
        "get_train_dataloader": "",
        "get_batch_samples": "epoch_iterator num_batches device",
        "create_optimizer": "model",
        "create_model_card": None,
        "init_hf_repo": None,
        "push_to_hub": None,
        "save_model": "output_dir _internal_call",
        "_get_grad_norm": "model grad_norm",
        "_get_num_items_in_batch": "batch_samples device",
        "_get_output_dir": "trial",
        "_get_train_sampler": "train_dataset",
        "_wrap_model": "model training dataloader",
        "_init_training_state": None,
        "_load_best_model": "",
        "_load_from_checkpoint": "resume_from_checkpoint model",
        "_load_optimizer_and_scheduler": "checkpoint",
        "_prepare_input": "data",
        "_save": "output_dir state_dict",
        "_save_optimizer_and_scheduler": "output_dir",
        "_push_from_checkpoint": "checkpoint_folder",
        "_save_checkpoint": "model trial",
    },
    GRPOTrainer: {
        "evaluation_loop": None,
        "_calculate_rewards": None,
        "_compute_loss": "model inputs",
        "_generate": "prompts",
        "_generate_and_score_completions": "inputs",
        "_generate_single_turn": None,
        "_get_per_token_logps_and_entropies": None,
        "_prepare_inputs": "generation_batch",
        "_tokenize_prompts": "prompts",
    },
    PreTrainedConfig: {"from_dict": "config_dict kwargs"},
    PreTrainedModel: {"resize_token_embeddings": "new_num_tokens pad_to_multiple_of mean_resizing"},
}
TRAINERS = {PureTrainer: PureTrainingArguments, AnswerTrainer: PureGRPOConfig, PureGRPOTrainer: PureGRPOConfig}
OBJECTS = {"state": TrainerState, "accelerator": Accelerator, "callback_handler": CallbackHandler}


@cache
def names_of(one: type) -> set[str]:
    """Attributes of a class and of its instances, as far as they are set on `self` or are fields."""
    own = {field.name for field in fields(one)} if is_dataclass(one) else set()
    for parent in one.__mro__[:-1]:
        if parent.__module__.split(".")[0] in LIBRARIES | {"modeling_pure"} - {"torch"}:
            own |= {
                node.attr
                for node in ast.walk(ast.parse(inspect.getsource(parent)))
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
    return own | set(dir(one))


def reads(trainer: type) -> set[tuple[str, str]]:
    """What a trainer and `DurableTrainer` read: ("self", name), or (name, name of its attribute)."""
    found = set()
    for one in (trainer, DurableTrainer):
        for node in ast.walk(ast.parse(inspect.getsource(one))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id == "self":
                    found.add(("self", node.attr))
                elif (
                    isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self"
                ):
                    found.add((owner.attr, node.attr))
    return found


def imports() -> list[tuple[str, str]]:
    """(module, name) of all that we import from the libraries."""
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    statements = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in statements if not node.level and node.module.split(".")[0] in LIBRARIES]
    return sorted({(node.module, alias.name) for node in ours for alias in node.names})


@pytest.mark.parametrize(("module", "name"), imports(), ids=".".join)
def test_what_we_import_is_there(module, name):
    assert hasattr(import_module(module), name) or find_spec(f"{module}.{name}")


@pytest.mark.parametrize(
    ("base", "name"),
    [pytest.param(base, name, id=f"{base.__name__}.{name}") for base, names in OVERRIDDEN.items() for name in names],
)
def test_a_method_that_we_override_is_still_called_with_what_ours_takes(base, name):
    assert hasattr(base, name), f"{base.__name__} has no {name} any more: ours is never called"
    expected = OVERRIDDEN[base][name]
    if expected is not None:
        parameters = [
            parameter for parameter in inspect.signature(getattr(base, name)).parameters if parameter != "self"
        ]
        assert parameters == expected.split()
    if name.startswith("_"):
        sources = [inspect.getsource(one) for one in base.__mro__ if issubclass(one, Trainer)]
        assert any(f"self.{name}" in source for source in sources), f"{base.__name__} does not call {name} any more"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_method_that_we_override_is_listed(trainer):
    base = GRPOTrainer if issubclass(trainer, GRPOTrainer) else Trainer
    ours = {
        name for one in (trainer, DurableTrainer, ScoringTrainer) for name in vars(one) if not name.startswith("__")
    }
    listed = {name for names in OVERRIDDEN.values() for name in names}
    assert {name for name in ours if hasattr(base, name)} <= listed


def test_architecture_lists_the_overrides():
    page = (ROOT / "docs/ARCHITECTURE.md").read_text()
    named = {name for kind in (Trainer, GRPOTrainer) for name in OVERRIDDEN[kind]}
    assert not {name for name in named if f"`{name}`" not in page}


@pytest.mark.parametrize(
    ("trainer", "owner", "name"),
    [
        pytest.param(trainer, owner, name, id=f"{trainer.__name__}-{owner}.{name}")
        for trainer in TRAINERS
        for owner, name in sorted(reads(trainer))
        if owner in ("self", "args", *OBJECTS)
    ],
)
def test_what_our_trainers_read_is_there(trainer, owner, name):
    kind = {"self": trainer, "args": TRAINERS[trainer], **OBJECTS}[owner]
    assert name in names_of(kind), f"{kind.__name__} has no {name} any more"
