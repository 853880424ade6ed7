"""Whether a GPU computes what it should. Each check is a step of `benchmarks.gpu`, and raises where it does not.

Sizes are those of the full model: its heads of 72 are what a kernel may refuse. With `--tiny` the same code runs on a
CPU, where there are neither graphs nor flash kernels for unequal lengths.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import step
from benchmarks.gpu.line import run_in_process
from benchmarks.gpu.runner import Setting
from benchmarks.gpu.speed import scale_of
from benchmarks.measure import DEVICE, device_name, seconds
from benchmarks.text import write_sources, write_tokenizer
from modeling_pure import PureForCausalLM
from modeling_pure.grpo.rollout import Decoding, Rollout, sample_completions
from modeling_pure.grpo.sampling import SamplingParams
from modeling_pure.grpo.scoring import CompletionBatch, Scorer
from modeling_pure.training.health import NonFiniteGuard
from modeling_pure.training.kernels import describe_attention, varlen_attention
from modeling_pure.training.optimizer import MuonWithAdamW
from modeling_pure.training.run_folder import METRICS_FILE, read_metrics

ON_GPU = DEVICE == "cuda"
HEADS, KEY_HEADS, HEAD_DIM = 16, 4, 72
BF16_ERROR = 0.02  # relative, in the Frobenius norm: bf16 keeps 8 bits, and a kernel sums in float32
LOG_PROB_ERROR = 0.02  # nats, the mean: two ways through 20 layers of bf16

Rows = Iterator[dict]


def environment(setting: Setting) -> Rows:
    """Bandwidth of a copy, rate of a matrix product: what all other figures lean on."""
    yield {"what": "device", "name": device_name(), "memory_gb": device_memory()}
    source = torch.randn(2**20 if setting.tiny else 2**30, device=DEVICE)  # 4 GB on a GPU
    taken = min(seconds(source.clone) for _ in range(4))
    yield {"what": "copy", "tb_per_second": round(2 * source.nbytes / taken / 1e12, 3)}
    side = 512 if setting.tiny else 8192
    factors = [torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2)]
    taken = min(seconds(lambda: factors[0] @ factors[1]) for _ in range(10))
    yield {"what": f"product of {side} x {side}", "tflops": round(2 * side**3 / taken / 1e12, 3)}


def device_memory() -> float:
    """GB of the GPU, or of the machine."""
    if ON_GPU:
        return round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def two_compiled_steps(setting: Setting) -> Rows:
    """A fresh model has the loss of one that knows nothing, and keeps it over a step."""
    scale = scale_of(setting)
    trainer, _ = step.train(step.OURS, scale, compile_layers=True, max_steps=2, logging_steps=1)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    attention = describe_attention(trainer.model, trainer.args.device, bf16=True)
    yield {"what": "losses", "first": losses[0], "second": losses[1], "attention": attention}
    assert_untrained(losses, scale)


def assert_untrained(losses: list[float], scale: step.Scale) -> None:
    """Raise unless all losses are near ln(vocabulary), that of a fresh model."""
    expected = math.log(scale.config.vocab_size)
    assert all(abs(loss - expected) < 0.5 for loss in losses), f"losses {losses}, expected about {expected:.2f}"


def attention_kernels(setting: Setting) -> Rows:
    """Flash, cuDNN and flash for unequal lengths with shared key heads, forward and backward, against float64."""
    length, ends = (64, [20, 64, 128]) if setting.tiny else (1024, [400, 1024, 1100, 2048])
    torch.manual_seed(0)
    states = [
        torch.randn(2, heads, length, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    causal = torch.ones(length, length, dtype=torch.bool, device=DEVICE).tril()
    causal_exact = outputs_and_gradients(states, lambda *qkv: plain_attention(*qkv, causal))
    wrong = []
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                found = outputs_and_gradients(
                    states, lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
                )
        except RuntimeError as error:
            yield {"what": name, "refused": str(error).strip().splitlines()[0][:200]}
            wrong += [name] if name == "flash" else []
            continue
        row = {"what": name, **relative_errors(found, causal_exact)}
        wrong += [name] if max(row["output"], row["gradients"]) > BF16_ERROR else []
        yield row
    if ON_GPU:
        lengths = torch.tensor([0, *ends], dtype=torch.int32, device=DEVICE)
        document = torch.bucketize(torch.arange(2 * length, device=DEVICE), lengths[1:], right=True).view(2, length)
        mask = ((document[:, :, None] == document[:, None]) & causal)[:, None]
        more = (None, HEAD_DIM**-0.5, lengths, lengths, length, length)
        found = outputs_and_gradients(states, lambda *qkv: varlen_attention(None, *qkv, *more)[0].transpose(1, 2))
        row = {"what": "flash, documents apart"}
        row |= relative_errors(found, outputs_and_gradients(states, lambda *qkv: plain_attention(*qkv, mask)))
        wrong += [row["what"]] if max(row["output"], row["gradients"]) > BF16_ERROR else []
        yield row
    assert not wrong, f"wrong or refused: {', '.join(wrong)}"


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The reference in float64."""
    query, key, value = (one.double() for one in (query, key, value))
    key, value = (one.repeat_interleave(HEADS // KEY_HEADS, 1) for one in (key, value))
    scores = (query @ key.mT * HEAD_DIM**-0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def outputs_and_gradients(states: list[torch.Tensor], attend) -> list[torch.Tensor]:
    """The output (batch, heads, length, head_dim), and the gradients of half its square."""
    output = attend(*states)
    return [output.detach(), *torch.autograd.grad(output.double().pow(2).sum() / 2, states)]


def relative_errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Of the output, and the largest of the gradients; NaN counts as infinite."""
    errors = [
        ((a.double() - b.double()).norm() / b.double().norm()).nan_to_num(math.inf).item()
        for a, b in zip(found, exact, strict=True)
    ]
    return {"output": float(f"{errors[0]:.3g}"), "gradients": float(f"{max(errors[1:]):.3g}")}


# ---- sampling -------------------------------------------------------------------------------------------------------


def sampling_model(setting: Setting) -> PureForCausalLM:
    """A model with random weights whose tokens differ in likelihood."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        config = scale_of(setting).config
        config.head_initializer_range = 0.02
        return PureForCausalLM(config).eval()


def rollout(model: PureForCausalLM, prompts: list[list[int]], tokens: int) -> Rollout:
    """Completions in bf16 autocast, with the same random numbers in every call."""
    config = model.config
    params = SamplingParams(1.0, 512, 0.95, suppress_tokens=tuple(config.suppressed_tokens))
    torch.manual_seed(0)
    with torch.autocast(DEVICE, torch.bfloat16):
        return sample_completions(model, prompts, params, tokens, [config.eos_token_id], config.pad_token_id)


def graph_capture(setting: Setting) -> Rows:
    """A decoding step is captured, and its replays draw the tokens of plain steps."""
    model = sampling_model(setting)
    prompts = [[number + 2] * (20 + number) for number in range(4) for _ in range(8)]
    replayed = rollout(model, prompts, 24 if setting.tiny else 48)
    captured, Decoding.graphs = Decoding.graphs and ON_GPU, False
    plain = rollout(model, prompts, 24 if setting.tiny else 48)
    equal = replayed.completion_ids == plain.completion_ids
    yield {"what": "decoding step", "captured": captured, "equal": equal}
    assert equal
    assert captured == ON_GPU, "the log says why a step could not be captured"


def failed_capture(setting: Setting) -> Rows:
    """A capture that fails leaves a device that samples on, and generators that still draw."""
    model, advance = sampling_model(setting), Decoding.advance

    def advance_and_read(self: Decoding) -> None:
        advance(self)
        self.step.item()  # what a capture does not allow

    Decoding.advance = advance_and_read
    completions = rollout(model, [[3, 4, 5]] * 4, 12).completion_ids
    yield {"what": "after a failed capture", "completions": len(completions), "graphs": Decoding.graphs and ON_GPU}
    assert len(completions) == 4
    assert torch.rand(2, device=DEVICE).isfinite().all()
    if ON_GPU:
        assert not Decoding.graphs
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def sampler_against_scorer(setting: Setting) -> Rows:
    """Both give a sampled token the same probability, and scoring has gradients."""
    model = sampling_model(setting)
    prompts = [[number + 2] * (30 + number) for number in range(4) for _ in range(4)]
    sampled = rollout(model, prompts, 16)
    prompt, completion = max(map(len, prompts)), max(map(len, sampled.completion_ids))
    ids = torch.full((len(prompts), prompt + completion), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (asked, said) in enumerate(zip(prompts, sampled.completion_ids, strict=True)):
        place = slice(prompt - len(asked), prompt + len(said))
        ids[row, place], mask[row, place] = torch.tensor(asked + said), 1
    scorer = Scorer(model.train(), 1.0, fp32_head=True, share_prefix=True)
    batch = CompletionBatch(ids.to(DEVICE), mask.to(DEVICE), completion, sampled.sampling_mask)
    with torch.autocast(DEVICE, torch.bfloat16):
        scored = scorer(batch).log_probs
    scored.sum().backward()
    pairs = zip(scored.tolist(), sampled.log_probs, strict=True)
    differences = [abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=False)]
    mean = sum(differences) / len(differences)
    yield {"what": "log-probabilities", "mean_difference": round(mean, 5), "largest": round(max(differences), 4)}
    assert mean < LOG_PROB_ERROR
    assert max(differences) < 15 * LOG_PROB_ERROR
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


# ---- training -------------------------------------------------------------------------------------------------------


def skipped_steps(setting: Setting) -> Rows:
    """A step whose gradient is not finite changes nothing, and the host does not wait for that."""
    for optimizer in ("adamw", "muon"):
        weights = [torch.nn.Parameter(torch.randn(64, 64, device=DEVICE)) for _ in range(2)]
        first, second = weights
        if optimizer == "adamw":
            steps = torch.optim.AdamW(weights, fused=True)
        else:
            steps = MuonWithAdamW([first], [second], 1e-3, 0.1, (0.9, 0.95), 1e-8)
        guard, unchanged = NonFiniteGuard(15, first.device), []
        for factor in (1.0, math.nan, 1.0):
            for weight in weights:
                weight.grad = torch.randn_like(weight) * factor
            before = first.detach().clone()
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("error")
            guard.check(torch.nn.utils.clip_grad_norm_(weights, 1.0), steps, 1)
            steps.step()
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("default")
            unchanged.append(torch.equal(before, first))
        yield {"what": optimizer, "skipped": unchanged[1]}
        assert unchanged == [False, True, False], f"{optimizer}: steps left out: {unchanged}"


def resume(setting: Setting) -> Rows:
    """`train_pretrain.py` with validation, four layers deep: uninterrupted and resumed halfway, with the same losses.

    On a CPU to the bit; on a GPU up to the order in which attention's backward pass adds up.
    """
    folder, scale = setting.work / "resume", scale_of(setting)
    folder.mkdir()
    write_tokenizer(folder, 2000)
    recipe = {
        "preset": scale.preset,
        "model_overrides": {"num_hidden_layers": 4},  # the same layers to compile, and a quarter of the checkpoint
        "tokenizer_name_or_path": str(folder),
        "sources": write_sources(folder, megabytes=4),
        "max_seq_length": scale.length,
        "per_device_train_batch_size": scale.sequences,
        "max_steps": 4,
        "warmup_steps": 0,
        "bf16": True,
        "compile_layers": True,
        "use_cpu": not ON_GPU,
        "eval_steps": 2,
        "validation_sequences": 4,
        "per_device_eval_batch_size": scale.sequences,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    whole, resumed = folder / "whole", folder / "resumed"
    run_in_process("train_pretrain.py", "--config", folder / "recipe.yaml", "--output_dir", whole)
    resumed.mkdir()
    shutil.move(whole / "checkpoint-2", resumed)
    run_in_process("train_pretrain.py", "--config", folder / "recipe.yaml", "--output_dir", resumed)
    found = [losses_after(run, 2) for run in (whole, resumed)]
    difference = max(abs(a - b) for a, b in zip(*found, strict=True))
    yield {"what": "losses after the checkpoint", "whole": found[0], "resumed": found[1], "difference": difference}
    assert len(found[1]) == 2
    assert difference <= (1e-2 if ON_GPU else 0)


def losses_after(run: Path, step: int) -> list[float]:
    """The training losses that a run has logged after a step."""
    lines = read_metrics(run / METRICS_FILE)
    return [line["loss"] for line in lines if "loss" in line and line["step"] > step]


def out_of_memory(setting: Setting) -> Rows:
    """Without memory for a micro-batch the trainer halves it, and every step keeps its tokens."""
    scale = scale_of(setting)
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.build_trainer(step.OURS, scale, folder, max_steps=3, logging_steps=1, dataloader_num_workers=2)
        if ON_GPU:
            memory = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, 24e9 / memory))
        else:
            trainer.model.register_forward_pre_hook(refuse_more_than_one, with_kwargs=True)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    yield {"what": "sequences of a micro-batch", "before": scale.sequences, "after": trainer.micro_batch_size}
    assert trainer.micro_batch_size < scale.sequences
    assert len(losses) == 3
    assert_untrained(losses, scale)


def refuse_more_than_one(model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
    """Simulate a GPU whose memory holds one sequence."""
    if len(kwargs["input_ids"]) > 1:
        raise torch.OutOfMemoryError
