"""GRPO's prompts: every pass asks all questions, in another order, with balanced letters."""

from modeling_pure.grpo.prompts import prompt_dataset


def test_passes_hold_all_questions_in_other_orders(questions):
    data = prompt_dataset(questions, num_prompts=300, seed=0)
    assert len(data) == 360
    passes = [data["digest"][start : start + 120] for start in (0, 120, 240)]
    assert {tuple(sorted(each)) for each in passes} == {tuple(sorted(q.digest for q in questions))}
    assert passes[0] != passes[1] != passes[2]


def test_the_answer_is_the_letter_of_the_right_option(questions):
    right = {q.digest: q.options[q.answer] for q in questions}
    for row in prompt_dataset(questions, 500, seed=1):
        assert f"\n{'ABCD'[row['answer']]}. {right[row['digest']]}\n" in row["prompt"]
        assert row["prompt"].endswith("\nAnswer:")


def test_a_constant_letter_earns_a_quarter(questions):
    answers = prompt_dataset(questions, 6000, seed=0)["answer"]
    assert all(abs(answers.count(letter) / len(answers) - 0.25) < 0.03 for letter in range(4))


def test_the_seed_decides(questions):
    assert prompt_dataset(questions, 120, 3)[:] == prompt_dataset(questions, 120, 3)[:]
    assert prompt_dataset(questions, 120, 3)[:] != prompt_dataset(questions, 120, 4)[:]
