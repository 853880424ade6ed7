"""Pure: a small decoder trained from scratch for USMLE questions. Research model, not for clinical use.

Importing this package registers the model with the transformers Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .configuration_pure import PRESETS, PureConfig
from .modeling_pure import PureForCausalLM, PureModel

AutoConfig.register("pure", PureConfig, exist_ok=True)
AutoModel.register(PureConfig, PureModel, exist_ok=True)
AutoModelForCausalLM.register(PureConfig, PureForCausalLM, exist_ok=True)

__all__ = ["PRESETS", "PureConfig", "PureForCausalLM", "PureModel"]
