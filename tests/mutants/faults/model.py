"""Faults in the model and its configuration."""

from tests.mutants.faults.fault import Fault

FAULTS = [
    Fault(
        "labels are not shifted",
        "modeling_pure/modeling_pure.py",
        "next_tokens = F.pad(labels, (0, 1), value=ignore_index)[:, 1:] if shift_labels is None",
        "next_tokens = labels if shift_labels is None",
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
]
