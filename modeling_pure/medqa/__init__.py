"""MedQA-USMLE with four options: what a question is, how it is asked, scored and counted, and how that is reported.

The story of an accuracy, step by step:

    question             questions.py, read from a file or the Hub by question_files.py, declared in tasks.py
    prompt               formats.py, with passages of an open book from passages.py
    log-likelihoods      log_likelihood.py: of each option after the prompt, in fp32
    record, prediction   scorers.py makes a question's record, journal.py keeps it, accuracy.py predicts from it
    accuracy, interval   accuracy.py, with statistics.py and metrics/ (modules of `evaluate`)
    report               results.py for programs; report.py, figures.py and card.py for people

formulations.py says in which ways a run asks and which one is its headline; comparisons.py has what stands beside an
accuracy; evaluation.py joins all of this for eval_medqa.py; compare.py compares finished evaluations. rewards.py is
GRPO's reward, which the evaluation also reports.
"""
