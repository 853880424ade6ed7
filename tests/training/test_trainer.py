"""What the start-up block computes."""

from modeling_pure.training.report import training_flops


def test_flops_of_the_full_model_are_those_of_the_stated_convention():
    # 6 x 343,277,568 + 12 x 20 x 1,152 x 2,048, worked out by hand
    assert training_flops(401_227_776, 50_304 * 1_152, 20, 1_152, 2_048) == 2_059_665_408 + 566_231_040
