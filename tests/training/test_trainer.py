"""What the Trainer subclass adds: batches with their place in the data, tokens in the log, documents kept apart."""

import torch

from modeling_pure.data.mixture import document_positions
from modeling_pure.training.report import training_flops


def test_positions_begin_anew_after_each_end_of_text():
    ids = torch.tensor([[5, 6, 0, 7, 0, 0, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert document_positions(ids, 0).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]


def test_flops_of_the_full_model_are_those_of_the_stated_convention():
    # 6 x 343,277,568 + 12 x 20 x 1,152 x 2,048, worked out by hand
    assert training_flops(401_227_776, 50_304 * 1_152, 20, 1_152, 2_048) == 2_059_665_408 + 566_231_040
