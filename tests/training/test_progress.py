"""What a run prints while it trains: short lines, a bar in a terminal only."""

from types import SimpleNamespace

import pytest

from modeling_pure.training.progress import LogLines, in_words
from tests.conftest import numbers_in

PRETRAINING = {"loss": 2.345, "grad_norm": 1.5, "learning_rate": 6e-4, "tokens_per_second": 7230.4, "hours_left": 0.5}
OTHERS = {"tokens/web": 123456789, "epochs/web": 987654321, "epoch": 0.25, "total_flos": 1e15}
ROLLOUT = {"reward": 0.25, "rewards/correct/mean": 0.254, "medqa/parse_rate": 0.353, "kl": 0.0252, "entropy": 0.748}
ROLLOUT |= {"completions/mean_length": 14.1, "loss": -0.0019, "clip_ratio/low_mean": 0.5}


@pytest.mark.parametrize("logs", [PRETRAINING | OTHERS, ROLLOUT | OTHERS])
def test_a_line_fits_a_narrow_terminal(logs):
    assert len("  ".join(in_words(logs))) <= 70  # beside the steps


def test_a_line_has_the_numbers_that_matter():
    assert " ".join(numbers_in(" ".join(in_words(PRETRAINING | OTHERS)))).startswith("2.345 1.50")
    assert "7,230" in " ".join(in_words(PRETRAINING))
    words = " ".join(in_words(ROLLOUT))
    assert all(figure in words for figure in ("25.4%", "35.3%", "14.1", "0.0252", "0.748"))
    assert "0.0019" not in words
    assert any("3" in fact and "skipped" in fact for fact in in_words({"loss": 1.0, "skipped_steps": 3}))


def test_a_validation_has_the_loss_of_each_source():
    facts = in_words({"eval_loss": 1.0, "eval_loss/web": 2.5, "eval_loss/c4": 0.5, "eval_bits_per_byte/web": 9.0})
    assert [fact.split()[-1] for fact in facts] == ["1.000", "2.500", "0.500"]
    assert facts[1:] == ["web 2.500", "c4 0.500"]


def test_a_log_file_gets_lines_and_no_bar(capsys):
    printer, args = LogLines(), SimpleNamespace(disable_tqdm=False)
    state = SimpleNamespace(is_world_process_zero=True, global_step=20, max_steps=40)
    printer.on_train_begin(args, state, None)
    for step in range(21, 41):
        state.global_step = step
        printer.on_step_end(args, state, None)
        printer.on_prediction_step(args, state, None, eval_dataloader=[1, 2, 3])
    printer.on_log(args, state, None, logs={"loss": 1.5, "epoch": 1.0})
    printer.on_log(args, state, None, logs={"train_runtime": 1.0, "epoch": 1.0})
    printer.on_train_end(args, state, None)
    printed = capsys.readouterr()
    assert printed.err == ""
    (line,) = printed.out.splitlines()
    assert line.startswith("40/40 ")


def test_other_processes_print_nothing(capsys):
    printer, args = LogLines(), SimpleNamespace(disable_tqdm=False)
    state = SimpleNamespace(is_world_process_zero=False, global_step=0, max_steps=4)
    printer.on_train_begin(args, state, None)
    printer.on_log(args, state, None, logs={"loss": 1.5})
    assert capsys.readouterr().out == ""
