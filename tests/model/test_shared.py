"""Pure passes the tests that transformers runs on its own models, if they are available.

`TRANSFORMERS_TESTS=DIR`, the folder `tests` of a checkout of the installed version, with `parameterized` installed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = os.environ.get("TRANSFORMERS_TESTS", "")
ROOT = Path(__file__).parents[2]

# In a separate interpreter, where `tests` is transformers' package.
PROGRAM = '''
import importlib
import unittest

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from modeling_pure import PureConfig, PureForCausalLM, PureModel

# The mixins distinguish base models and language models by these names.
MODEL_MAPPING_NAMES["pure"], MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pure"] = "PureModel", "PureForCausalLM"
shared, common, configurations = (
    importlib.import_module("{package}." + name)
    for name in ("generation.test_utils", "test_modeling_common", "test_configuration_common")
)


class PureTester:
    """A small model and a batch, as the mixins expect them."""

    is_training = True
    batch_size, seq_length = 5, 7
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads = 99, 32, 2, 4, 2

    def get_config(self):
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        shape = {{name: getattr(self, name) for name in names}}
        ids = {{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}}
        return PureConfig(**shape, **ids, intermediate_size=40, max_position_embeddings=512)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}}


class PureTest(common.ModelTesterMixin, shared.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (PureModel, PureForCausalLM)
    all_generative_model_classes = (PureForCausalLM,)
    pipeline_model_mapping = {{"feature-extraction": PureModel, "text-generation": PureForCausalLM}}
    test_resize_embeddings = True
    _torch_compile_train_cls = PureForCausalLM

    def setUp(self):
        self.model_tester = PureTester()

    def test_tied_weights_keys(self):
        self.skipTest("sets tie_word_embeddings, which Pure refuses")

    def test_config(self):
        configurations.ConfigTester(self, config_class=PureConfig, hidden_size=32, num_attention_heads=4,
                                    num_key_value_heads=2).run_common_tests()
'''


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="needs TRANSFORMERS_TESTS, the folder `tests` of transformers")
def test_the_shared_tests_of_transformers(tmp_path):
    folder = Path(FOLDER).resolve()
    (tmp_path / "test_pure.py").write_text(PROGRAM.format(package=folder.name))
    paths = os.pathsep.join([str(folder.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "CI": "true"}
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", "test_pure.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", result.stdout, re.M))
    assert failed == set(), result.stdout[-20_000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 100, result.stdout[-5_000:]
