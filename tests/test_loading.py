"""A folder without a model is refused before anything is loaded."""

import pytest

from modeling_pure.errors import InputError
from modeling_pure.loading import check_model


def test_a_model_folder_needs_a_configuration_and_weights(tmp_path):
    with pytest.raises(InputError, match=rf"^model_name_or_path: '{tmp_path}' .*config\.json"):
        check_model("model_name_or_path", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^model_name_or_path: '{tmp_path}' .*\*\.safetensors"):
        check_model("model_name_or_path", str(tmp_path))
    check_model("model_name_or_path", "user/model")
