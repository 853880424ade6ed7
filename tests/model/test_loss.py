"""Without logits, loss and gradients are the same, and no tensor holds all logits."""

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_pure import PureForCausalLM, loss_pure

VOCAB, HIDDEN = 2048, 128


class Shapes(TorchDispatchMode):
    """Records the shape of every new tensor."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.made.append(tuple(tensor.shape))
        return result

    @property
    def logit_rows(self) -> int:
        """Tokens in the largest tensor of tokens x vocabulary, except the transposed weight of the head."""
        rows = [torch.Size(shape).numel() // VOCAB for shape in self.made if shape[-1:] == (VOCAB,)]
        return max(count for count in rows if count != HIDDEN)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences of ids, and labels with some ignored, among them the end of a sequence."""
    ids = torch.randint(2, VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(ids % 5 == 0, -100)
    labels[1, 30:] = -100
    return ids, labels


def loss_and_gradients(model, ids, labels, scale=1.0, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    out = model(ids, labels=labels, **kwargs)
    (out.loss * scale).backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("chunk", [7, 32, 80, 4096])
@pytest.mark.parametrize("num_items", [None, 57])
def test_float32_loss_equals_the_plain_loss(model, batch, monkeypatch, chunk, num_items):
    """To 1e-6: only the order of sums over vocabulary and chunks differs."""
    monkeypatch.setattr(loss_pure, "CHUNK_TOKENS", chunk)
    kwargs = {} if num_items is None else {"num_items_in_batch": torch.tensor(num_items)}
    plain, expected = loss_and_gradients(model, *batch, scale=3.0, **kwargs)
    ours, found = loss_and_gradients(model.train(), *batch, scale=3.0, skip_logits=True, **kwargs)
    assert "logits" in plain
    assert "logits" not in ours
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    assert {
        name: relative_error(found[name], expected[name])
        for name in expected
        if relative_error(found[name], expected[name]) > 1e-6
    } == {}


def test_bfloat16_loss_is_as_accurate_as_the_plain_loss(model, batch):
    """Both round logits and gradients to 8 bits; our error must not be larger.

    A tenth is allowed for luck: the two round in another order.
    """
    _, exact = loss_and_gradients(model, *batch)
    with torch.autocast("cpu", torch.bfloat16):
        plain, expected = loss_and_gradients(model, *batch)
        ours, found = loss_and_gradients(model.train(), *batch, skip_logits=True)
    torch.testing.assert_close(ours.loss, plain.loss, rtol=2**-8, atol=0)
    assert ours.loss.dtype == torch.float32
    for name in exact:
        assert relative_error(found[name], exact[name]) < 1.1 * relative_error(expected[name], exact[name]) < 0.1, name


@pytest.mark.parametrize("training", [True, False])
def test_no_tensor_holds_more_logits_than_a_chunk(model, batch, monkeypatch, training):
    monkeypatch.setattr(loss_pure, "CHUNK_TOKENS", 16)
    with Shapes() as plain:
        model.train(training)(*batch[:1], labels=batch[1])
    with Shapes() as ours:
        if training:
            model(*batch[:1], labels=batch[1], skip_logits=True).loss.backward()
        else:
            model(*batch[:1], labels=batch[1], reduction="none")
    assert plain.logit_rows == 80
    assert ours.logit_rows == 16


def test_nats_per_token_equal_the_plain_loss(model, batch):
    ids, labels = batch
    with torch.no_grad():
        nats = model.eval()(ids, labels=labels, reduction="none").loss
        log_probs = model(ids).logits[:, :-1].log_softmax(-1)
    expected = -log_probs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    assert nats.shape == ids.shape
    assert not nats[:, -1].any()
    torch.testing.assert_close(nats[:, :-1], expected.masked_fill(labels[:, 1:] == -100, 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", ["shift_labels", "ignore_index"])
@pytest.mark.parametrize("num_items", [None, 57])
def test_labels_are_interpreted_as_in_transformers(model, batch, given, num_items):
    """Sequence parallelism shifts labels before it splits a sequence, and a pad id may mark ignored labels."""
    ids, labels = batch
    if given == "shift_labels":
        kwargs = {"labels": ids, "shift_labels": labels.roll(3, 1)}
    else:
        kwargs = {"labels": labels.masked_fill(labels == -100, 7), "ignore_index": 7}
    kwargs |= {} if num_items is None else {"num_items_in_batch": num_items}
    ours = model.train()(ids, skip_logits=True, **kwargs)
    plain = model(ids, **kwargs)
    assert "logits" not in ours
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-6, atol=0)
    assert not torch.isclose(ours.loss, model(ids, labels=labels).loss, rtol=1e-5) or given == "ignore_index"


@pytest.mark.parametrize("training", [True, False])
def test_labels_give_loss_and_logits_unless_logits_are_skipped(model, batch, training):
    out = model.train(training)(batch[0], labels=batch[1])
    assert out.logits.shape == (2, 40, VOCAB)
    short = model(batch[0], labels=batch[1], skip_logits=True)
    assert (list(short), short.logits) == (["loss"], None)
    assert len(model(batch[0], labels=batch[1], skip_logits=True, return_dict=False)) == 1
    torch.testing.assert_close(short.loss, out.loss, rtol=1e-6, atol=0)
    last = [
        model(batch[0], labels=batch[1][:, -9:], logits_to_keep=9, skip_logits=skip).loss for skip in (True, False)
    ]
    torch.testing.assert_close(*last, rtol=1e-6, atol=0)


def test_a_frozen_head_gets_no_gradient(model, batch):
    _, expected = loss_and_gradients(model.train(), *batch, skip_logits=True)
    model.lm_head.requires_grad_(False)
    _, found = loss_and_gradients(model, *batch, skip_logits=True)
    assert set(expected) - set(found) == {"lm_head.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_an_adapter_on_the_head_is_used(model, batch):
    """An adapted head computes more than its weight."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"])).train()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora" in name:
                weight.normal_(std=0.3)
    ours = adapted(batch[0], labels=batch[1], skip_logits=True)
    ours.loss.backward()
    torch.testing.assert_close(ours.loss, adapted(batch[0], labels=batch[1]).loss)
    assert all(p.grad.any() for name, p in adapted.named_parameters() if "lora" in name)


def test_invalid_combinations_are_refused(model, batch):
    for kwargs in ({"reduction": "sum"}, {"skip_logits": True}, {"reduction": "none"}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            model(batch[0], **kwargs)


class Louder(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(hidden_states)


def replace_head(head: nn.Linear) -> nn.Linear:
    louder = Louder(head.in_features, head.out_features, bias=False)
    louder.weight = head.weight
    return louder


def add_bias(head: nn.Linear) -> None:
    head.bias = nn.Parameter(torch.linspace(-1, 1, VOCAB))


def replace_forward(head: nn.Linear) -> None:
    forward = head.forward
    head.forward = lambda hidden_states: 1.5 * forward(hidden_states)


HEADS = {
    "bias": add_bias,
    "subclass": replace_head,
    "forward": replace_forward,
    "forward hook": lambda head: head.register_forward_hook(lambda module, given, out: 1.5 * out),
    "pre-forward hook": lambda head: head.register_forward_pre_hook(lambda module, given: 1.5 * given[0]),
    "backward hook": lambda head: head.register_full_backward_hook(lambda module, grad, out: (2 * grad[0],)),
    "pre-backward hook": lambda head: head.register_full_backward_pre_hook(lambda module, out: (2 * out[0],)),
    "old spectral norm": nn.utils.spectral_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "pruned": lambda head: prune.l1_unstructured(head, "weight", amount=0.5),
    "offloaded": lambda head: cpu_offload(head, torch.device("cpu")),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_more_than_its_weight_gives_the_loss_of_its_logits(model, batch, name):
    """Equal to the last bit, because it is computed from them."""
    plain = model(batch[0], labels=batch[1]).loss
    changed = HEADS[name](model.lm_head)
    if type(changed) is Louder:
        model.lm_head = changed
    through, expected = loss_and_gradients(model, *batch)
    ours, found = loss_and_gradients(model, *batch, skip_logits=True)
    assert ours.logits is None
    assert torch.equal(ours.loss, through.loss)
    assert torch.equal(plain, ours.loss) == (name in ("backward hook", "pre-backward hook", "offloaded"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    nats = model(batch[0], labels=batch[1], reduction="none").loss
    torch.testing.assert_close(nats.sum() / (batch[1][:, 1:] != -100).sum(), through.loss, rtol=1e-6, atol=0)


def test_global_hooks_apply_to_the_head(model, batch):
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, given, out: 1.5 * out if module is model.lm_head else None
    )
    try:
        found = [model(batch[0], labels=batch[1], skip_logits=skip).loss for skip in (True, False)]
    finally:
        hook.remove()
    assert torch.equal(*found)
    assert found[0] != model(batch[0], labels=batch[1]).loss


def test_a_head_offloaded_to_disk_trains_the_other_weights(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    expected, gradients = loss_and_gradients(model, *batch)
    places = {"device_map": {"model": "cpu", "lm_head": "disk"}, "offload_folder": tmp_path / "disk"}
    offloaded = PureForCausalLM.from_pretrained(tmp_path, **places).train()
    ours, found = loss_and_gradients(offloaded, *batch, skip_logits=True)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-6, atol=0)
    assert set(gradients) - set(found) == {"lm_head.weight"}
    assert max(relative_error(found[name], gradients[name]) for name in found) < 1e-6


@pytest.mark.parametrize(
    "given", [{"ignore_index": 7}, {"shift_labels": True}, {"unknown": 1}, {"loss_function": True}, {"dtype": True}]
)
def test_loss_keywords_apply_without_logits_too(model, batch, given):
    ids, labels = batch
    if "loss_function" in given:
        model.loss_function = lambda logits, labels, **kwargs: logits.square().mean()
        given = {}
    elif "ignore_index" in given:
        labels = labels.masked_fill(labels == -100, 7)
    elif "shift_labels" in given:
        given = {"shift_labels": labels.roll(3, 1)}
    elif "dtype" in given:
        model.half()  # float16 cannot resolve the gradient of a mean over 79 logits, let alone 30,000
        given = {}
    through, expected = loss_and_gradients(model, ids, labels, **given)
    ours, found = loss_and_gradients(model, ids, labels, skip_logits=True, **given)
    torch.testing.assert_close(ours.loss, through.loss, rtol=1e-6, atol=0)
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-6


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_labels_outside_the_vocabulary_are_errors(model, batch, wrong):
    labels = batch[1].masked_fill(batch[1] == -100, wrong)
    for how in ({}, {"skip_logits": True}, {"reduction": "none"}):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            model(batch[0], labels=labels, **how)


def test_second_derivatives_equal_those_of_the_plain_loss(model, batch):
    """The two norms of a gradient penalty, by a double backward pass."""
    model.set_attn_implementation("eager")  # fused attention has no second derivative
    found = []
    for skip in (False, True):
        model.zero_grad()
        loss = 2 * model(batch[0], labels=batch[1], skip_logits=skip).loss
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert max(relative_error(*pair) for pair in zip(*found, strict=True)) < 1e-5


def test_per_sample_gradients_equal_those_of_a_loop(model, batch):
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, ids, labels):
        inputs = {"labels": labels[None], "skip_logits": True}
        return functional_call(model, weights, (ids[None],), inputs).loss

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, *batch)
    for row in range(len(batch[0])):
        _, expected = loss_and_gradients(model, batch[0][row : row + 1], batch[1][row : row + 1])
        assert max(relative_error(found[name][row], expected[name]) for name in expected) < 1e-5


def test_one_graph_without_logits_forward_and_backward(model, batch):
    model.model.layers = model.model.layers[:1]
    expected, gradients = loss_and_gradients(model, *batch, skip_logits=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = compiled(batch[0], labels=batch[1], skip_logits=True).loss
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-6, atol=0)
    assert max(relative_error(p.grad, gradients[name]) for name, p in model.named_parameters()) < 1e-5
