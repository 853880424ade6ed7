"""The task, MedQA-USMLE with four options: questions, splits, the one prompt, rewards, scoring, statistics."""
