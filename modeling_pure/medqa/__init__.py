"""MedQA-USMLE with four options: questions, prompts, scores, accuracies and reports.

How a question becomes an accuracy in a report:

    question             questions.py, read from a file or the Hub by question_files.py; tasks.py declares the data
    sets prompt               formats.py, with passages of an open book from passages.py log-likelihoods
    log_likelihood.py: of each option after the prompt, in fp32 record, prediction   scorers.py scores a question,
    journal.py stores the record, accuracy.py predicts from it accuracy, interval   accuracy.py, with statistics.py and
    metrics/ (modules of `evaluate`) report               results.py for programs; report.py, figures.py and card.py
    for people

formulations.py defines the ways to ask a question; comparisons.py computes baselines and tests; evaluation.py joins
all of this for eval_medqa.py; compare.py compares finished evaluations. rewards.py is GRPO's reward, which evaluations
also report.
"""
