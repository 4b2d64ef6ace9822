"""The sums of the training batches against torch's cross-entropy, one row at a time; and what is refused."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from versatune_plugin.hosts.checks import train_signal_problems  # noqa: E402
from versatune_plugin.measuring import train_losses  # noqa: E402
from versatune_plugin.measuring.train_losses import TrainLosses, first_outputs, predictions_of  # noqa: E402

VOCABULARY = 11


class Alone:
    """An accelerator of one process."""

    is_main_process = True

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor.clone()


class OneOfTwo:
    """An accelerator of two processes; `other` is what the second one holds at each reduction."""

    def __init__(self, is_main_process, other):
        self.is_main_process, self.other = is_main_process, list(other)

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        return tensor + torch.tensor(self.other.pop(0), dtype=torch.float64)


def batch(seed, rows=4, length=9, dtype=torch.float32):
    """Random logits, and labels of which about a third are no targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, length, VOCABULARY, generator=generator)
    labels = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.35] = -100
    return logits.to(dtype), labels


def naive(batches, num_domains):
    """Sums of losses and of targets by domain, target by target."""
    sums = np.zeros((2, num_domains))
    for logits, labels, domain_ids in batches:
        for row, domain_id in enumerate(domain_ids):
            for place in range(1, labels.shape[1]):
                if labels[row, place] != -100:
                    before = logits[row, place - 1].double()
                    sums[0, domain_id] += float(torch.nn.functional.cross_entropy(before, labels[row, place]))
                    sums[1, domain_id] += 1
    return sums


def losses_of(*batches, num_domains=3, per_step=1):
    losses = TrainLosses(num_domains, per_step, torch.device("cpu"))
    for number, given in enumerate(batches, 1):
        losses.add(*given)
        if number % per_step == 0:
            losses.sync(Alone())
    return losses


def sums_of(losses):
    state = losses.state_dict()
    return np.array([state["losses"], state["num_tokens"]], dtype=np.float64)


# What is counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [1, 3 * VOCABULARY, 2**25])
def test_sums_of_mixed_batches_are_those_of_one_target_at_a_time(monkeypatch, dtype, piece):
    monkeypatch.setattr(train_losses, "_PIECE", piece)
    batches = [(*batch(1, dtype=dtype), [2, 0, 2, 1]), (*batch(2, dtype=dtype), [1, 1, 1, 1])]
    sums, expected = sums_of(losses_of(*batches, per_step=2)), naive(batches, 3)
    assert sums[1].tolist() == expected[1].tolist()
    assert sums[0] == pytest.approx(expected[0], rel=1e-6)
    assert losses_of(*batches, per_step=2).measure(Alone()) == pytest.approx(expected[0] / expected[1], rel=1e-6)


def test_a_row_without_targets_counts_nothing_even_where_its_logits_are_nan():
    logits, labels = batch(3)
    labels[1, 1:] = -100
    logits[1] = float("nan")
    sums = sums_of(losses_of((logits, labels, [0, 1, 2, 2])))
    assert sums[:, 1].tolist() == [0, 0]
    assert np.isfinite(sums).all()


def test_the_first_label_is_no_target():
    logits, labels = batch(4)
    other = labels.clone()
    other[:, 0] = 1 - (labels[:, 0] == 1).long()
    assert (
        sums_of(losses_of((logits, labels, [0, 1, 2, 0]))) == sums_of(losses_of((logits, other, [0, 1, 2, 0])))
    ).all()


def test_a_row_of_one_token_has_no_target():
    assert (sums_of(losses_of((torch.zeros(1, 1, VOCABULARY), torch.zeros(1, 1, dtype=torch.int64), [0]))) == 0).all()


def test_permuting_the_domains_permutes_the_losses():
    logits, labels = batch(5)
    losses = losses_of((logits, labels, [0, 1, 2, 2])).measure(Alone())
    permuted = losses_of((logits, labels, [1, 2, 0, 0])).measure(Alone())
    assert permuted[[1, 2, 0]].tolist() == losses.tolist()


def test_gradients_and_logits_are_left_alone():
    logits, labels = batch(6)
    before = logits.clone()
    logits.requires_grad_(True)
    losses = losses_of((logits, labels, [0, 1, 2, 2]))
    assert not any(tensor.requires_grad for tensor in vars(losses).values() if isinstance(tensor, torch.Tensor))
    assert logits.grad is None
    assert torch.equal(logits, before)
    assert torch.is_grad_enabled()


def test_many_small_losses_are_added_in_float64():
    """10^6 tokens and then one more loss of 1e-3: in float32 it would be lost beside a sum of 10^6."""
    losses = TrainLosses(1, 1, torch.device("cpu"))
    losses.load_state_dict({"losses": [1e6], "num_tokens": [1e6], "measured": [None]})
    logits = torch.tensor([[[0.0, -6.907], [0.0, 0.0]]])  # log(1 + e**-6.907) = 0.0010005...
    losses.add(logits, torch.tensor([[0, 0]]), [0])
    losses.sync(Alone())
    assert sums_of(losses)[0, 0] - 1e6 == pytest.approx(np.log1p(np.exp(-6.907)), rel=1e-4)


# What an update measures


def test_an_undrawn_domain_keeps_its_loss_and_one_never_drawn_has_none():
    first, second = (*batch(7), [0, 0, 1, 1]), (*batch(8), [1, 1, 1, 1])
    losses = losses_of(first)
    before = losses.measure(Alone())
    assert np.isnan(before).tolist() == [False, False, True]
    losses.add(*second)
    losses.sync(Alone())
    expected = naive([second], 3)
    after = losses.measure(Alone())
    assert after[0] == before[0]
    assert after[1] == pytest.approx(expected[0, 1] / expected[1, 1], rel=1e-6)
    assert np.isnan(after[2])
    assert losses.measure(Alone()).tolist()[:2] == after.tolist()[:2], "nothing drawn since"


def test_what_was_measured_is_not_changed_by_a_caller():
    losses = losses_of((*batch(9), [0, 1, 2, 2]))
    first = losses.measure(Alone())
    kept = first.copy()
    first[:] = 0
    assert losses.measure(Alone()).tolist() == kept.tolist()


def test_ranks_are_added_and_the_main_process_decides():
    given = (*batch(10), [0, 1, 2, 2])
    losses = TrainLosses(3, 1, torch.device("cpu"))
    losses.add(*given)
    losses.sync(OneOfTwo(True, [[[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]]))
    assert sums_of(losses) == pytest.approx(naive([given], 3) + np.array([[1, 2, 3], [1, 1, 1]]), rel=1e-6)
    main = [[2.0, 4.0, 6.0], [2.0, 2.0, 2.0]]
    assert losses.measure(OneOfTwo(False, [main])).tolist() == [1.0, 2.0, 3.0]


# A checkpoint


def test_a_run_goes_on_from_a_saved_state_bit_for_bit():
    batches = [(*batch(seed), [seed % 3, 0, 1, 1]) for seed in range(20, 26)]
    whole = losses_of(*batches[:2])
    whole.measure(Alone())
    for given in batches[2:4]:
        whole.add(*given)
        whole.sync(Alone())
    resumed = TrainLosses(3, 1, torch.device("cpu"))
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
    for given in batches[4:]:
        for losses in (whole, resumed):
            losses.add(*given)
            losses.sync(Alone())
    assert resumed.state_dict() == whole.state_dict()
    assert resumed.measure(Alone()).tolist() == whole.measure(Alone()).tolist()
    assert resumed.state_dict() == whole.state_dict()


def test_a_state_of_losses_that_are_nan_survives_strict_json():
    losses = losses_of((torch.full((1, 2, VOCABULARY), float("nan")), torch.tensor([[1, 1]]), [1]))
    saved = json.loads(json.dumps(losses.state_dict(), allow_nan=False))
    resumed = TrainLosses(3, 1, torch.device("cpu"))
    resumed.load_state_dict(saved)
    assert resumed.state_dict() == losses.state_dict()
    assert resumed.measure(Alone()) == pytest.approx([np.nan, np.inf, np.nan], nan_ok=True), "drawn, and no number"
    resumed.load_state_dict(json.loads(json.dumps(resumed.state_dict(), allow_nan=False)))
    assert resumed.measure(Alone()) == pytest.approx([np.nan, np.inf, np.nan], nan_ok=True), "as before"


# What is refused


def test_a_micro_batch_too_many_or_too_few_is_refused():
    losses = losses_of(per_step=2)
    losses.add(*batch(30), [0, 1, 2, 2])
    with pytest.raises(RuntimeError, match=r"saw 1 of the 2 micro-batch.*must call the inherited one"):
        losses.sync(Alone())
    losses.add(*batch(31), [0, 1, 2, 2])
    with pytest.raises(RuntimeError, match=r"more than the 2 micro-batch.*computes losses in training mode"):
        losses.add(*batch(32), [0, 1, 2, 2])
    losses.sync(Alone())
    losses.add(*batch(32), [0, 1, 2, 2])


@pytest.mark.parametrize(
    "outputs",
    [
        {"loss": 1.0},
        {"logits": None},
        SimpleNamespace(logits=None),
        SimpleNamespace(logits="lazy"),
        SimpleNamespace(logits=torch.empty(0)),
        (torch.zeros(()),),
    ],
    ids=str,
)
def test_a_model_without_logits_is_refused_with_the_way_out(outputs):
    with pytest.raises(RuntimeError, match=r"returned none\. Switch off .*Liger.*cut cross entropy.*signal: probe"):
        predictions_of([outputs], torch.zeros((2, 5)))


def test_a_model_that_was_not_called_is_refused():
    with pytest.raises(RuntimeError, match="returned none"):
        predictions_of([], torch.zeros((2, 5)))


@pytest.mark.parametrize("returned", [{"logits": torch.zeros(2, 8, VOCABULARY)}, {"log_probs": torch.zeros(2, 8)}])
def test_predictions_of_other_positions_than_the_labels_are_refused(returned):
    (shape,) = [re.escape(str(tuple(tensor.shape))) for tensor in returned.values()]
    with pytest.raises(RuntimeError, match=rf"{shape} and \(2, 5\) .*virtual tokens.*signal: probe"):
        predictions_of([returned], torch.zeros((2, 5)))


@pytest.mark.parametrize("wrap", [dict, lambda **given: SimpleNamespace(**given)], ids=["dict", "attributes"])
def test_predictions_are_found_in_what_a_model_returns(wrap):
    logits, log_probs = torch.zeros(2, 5, VOCABULARY), torch.zeros(2, 4)
    labels = torch.zeros((2, 5))
    assert predictions_of([wrap(logits=logits)], labels) is logits
    assert predictions_of([wrap(logits=None, log_probs=log_probs)], labels) is log_probs
    assert predictions_of([wrap(logits=logits, log_probs=log_probs)], labels) is logits


def test_log_probabilities_of_the_targets_give_what_their_logits_do():
    logits, labels = batch(40)
    targets = labels[:, 1:].clamp(min=0)[..., None]
    log_probs = logits[:, :-1].log_softmax(-1).gather(2, targets)[..., 0].where(labels[:, 1:] != -100, 0)
    of_logits, of_targets = (sums_of(losses_of((given, labels, [0, 1, 2, 0]))) for given in (logits, log_probs))
    assert of_targets[1].tolist() == of_logits[1].tolist()
    assert of_targets[0] == pytest.approx(of_logits[0], rel=1e-6)


def test_only_the_first_call_of_a_model_is_kept_and_none_after_the_block():
    model = torch.nn.Identity()
    with first_outputs(model) as outputs:
        model("trained")
        model("measured beside it")
    model("later")
    assert outputs == ["trained"]


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"loss_type": "chunked_nll"}, "set loss_type='nll'"),
        ({"use_liger_kernel": True}, "'fused_linear_cross_entropy': False"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"rope": True}}, "'fused_linear_cross_entropy': False"),
        (
            {
                "use_liger_kernel": True,
                "liger_kernel_config": {"fused_linear_cross_entropy": False, "cross_entropy": True},
            },
            "write gradients over them",
        ),
        ({"liger_fused_linear_cross_entropy": True}, "set it to false"),
        ({"liger_cross_entropy": True}, "writes gradients over the logits"),
        ({"cut_cross_entropy": True}, "set it to false"),
    ],
)
def test_settings_without_logits_are_refused_before_the_run(settings, way_out):
    (problem,) = train_signal_problems(SimpleNamespace(**settings))
    assert problem.startswith("signal: train: ")
    assert way_out in problem
    assert problem.endswith("or use signal: probe")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "nll", "use_liger_kernel": False, "label_smoothing_factor": 0.1},
        {"loss_type": "dft"},
        {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": False}},
        {"liger_rope": True, "liger_cross_entropy": None, "cut_cross_entropy": False},
    ],
)
def test_settings_with_logits_are_accepted(settings):
    assert train_signal_problems(SimpleNamespace(**settings)) == []
