"""GRPO on MedQA: TRL's trainer with the DeepSeek-V3.2 refinements switched on, and a budget of generated tokens."""
