"""Sec. 3.4 of the paper: REINFORCE, against the exact expectation over all programs."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from program_execution.decoding import sample
from program_execution.decoding.reinforce import Baseline, policy_loss
from program_execution.net.seq2seq import END, START, ProgramGenerator

QUESTION = torch.tensor([[START, 4, 5, END]])
DRAWS = 20_000
CHUNK = 100  # one gradient estimate is the mean over this many draws
BIAS = torch.tensor([0.3, -40.0, 0.5, 0.2])  # START never comes, so three tokens are left
PROGRAMS = [(END,), *itertools.product((0, 3), (0, END, 3))]  # all of length 2 at most


def toy() -> ProgramGenerator:
    torch.manual_seed(1)
    model = ProgramGenerator(question_words=6, program_tokens=4, embedding=3, hidden=3).double()
    with torch.no_grad():
        model.decoder_linear.weight.normal_()
        model.decoder_linear.bias.copy_(BIAS)
    return model


def reward(programs: Tensor) -> Tensor:
    """1 for the program (3, END) and for those that begin with the token 0."""
    T = programs.shape[1]
    right = (programs[:, 0] == 3) & (T > 1) & (programs[:, min(1, T - 1)] == END)
    return (right | (programs[:, 0] == 0)).double()


def padded(program: tuple[int, ...]) -> Tensor:
    return torch.tensor([program + (0,) * (2 - len(program))])


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    slopes = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    pairs = zip(slopes, model.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def exact(model: ProgramGenerator) -> tuple[Tensor, Tensor]:
    """E[r] and the probability of every program of `PROGRAMS`, both by enumeration."""
    probabilities = []
    for program in PROGRAMS:
        encoded = model.encode(QUESTION)
        fed = torch.tensor([[START, *program[:-1]]])
        policy = Categorical(logits=model.decode(encoded, fed, torch.tensor([len(program)])))
        probabilities.append(policy.log_prob(torch.tensor([program])).sum().exp())
    p = torch.stack(probabilities)
    rewards = torch.cat([reward(padded(program)) for program in PROGRAMS])
    return (p * rewards).sum(), p


def estimates(model: ProgramGenerator, *, official: bool) -> Tensor:
    """Independent estimates of the gradient of E[r] (DRAWS / CHUNK, parameters)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(DRAWS // CHUNK):
        decoded = sample.sample(
            model,
            QUESTION.expand(CHUNK, -1),
            generator=generator,
            max_length=2,
            keep_sampling=official,
        )
        loss = policy_loss(
            decoded.log_probs, decoded.mask, reward(decoded.programs), 0.4, official=official
        )
        found.append(-flat_gradient(loss, model) / (CHUNK if official else 1))
    return torch.stack(found)


def test_all_programs_of_the_toy_language_have_probability_one():
    _, p = exact(toy())
    assert (p.sum() - 1).abs() < 1e-12


def test_sampled_programs_have_the_frequencies_of_their_probabilities():
    model = toy()
    _, p = exact(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        decoded = sample.sample(
            model, QUESTION.expand(DRAWS, -1), generator=generator, max_length=2
        )
    for program, probability in zip(PROGRAMS, p.tolist(), strict=True):
        count = (decoded.programs == padded(program)).all(1).double().mean()
        assert abs(count - probability) < 4 * (probability * (1 - probability) / DRAWS) ** 0.5


def test_the_estimate_is_the_exact_gradient_with_and_without_the_official_tail():
    model = toy()
    gradient = flat_gradient(exact(model)[0], model)
    assert gradient.norm() > 0.1
    spread = []
    for official in (False, True):
        found = estimates(model, official=official)
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - gradient).abs() <= 4 * error + 1e-12).all()
        spread.append(found.var(0).sum())
    # The steps after END add nothing to the mean, but they add variance.
    assert spread[1] > 1.05 * spread[0]


def test_log_p_of_a_sample_is_that_of_torch_distributions():
    model = toy()
    generator = torch.Generator().manual_seed(0)
    questions = QUESTION.expand(50, -1)
    for temperature in (1.0, 2.5):
        programs, log_probs, mask, entropy = sample.sample(
            model, questions, temperature=temperature, generator=generator, max_length=4
        )
        fed = torch.cat([torch.full((50, 1), START), programs[:, :-1]], dim=1)
        logits = model.decode(model.encode(questions), fed, mask.sum(1))
        policy = Categorical(logits=logits / temperature)
        assert (log_probs - policy.log_prob(programs) * mask).abs().max() < 1e-12
        assert (entropy - policy.entropy() * mask).abs().max() < 1e-6  # Categorical clamps p
        assert (log_probs[~mask] == 0).all()


def test_the_loss_is_minus_the_mean_of_advantage_times_log_p_up_to_end():
    log_probs = torch.tensor([[-1.0, -2.0, -7.0], [-0.5, -3.0, -4.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rewards, baseline = torch.tensor([1.0, 0.0]), torch.tensor([0.25, 0.5])
    loss = policy_loss(log_probs, mask, rewards, baseline)
    assert float(loss.detach()) == -(0.75 * -3 - 0.5 * -7.5) / 2
    loss.backward()
    expected = torch.tensor([[-0.375, -0.375, 0.0], [0.25, 0.25, 0.25]])
    assert torch.equal(log_probs.grad, expected)
    official = policy_loss(log_probs, mask, rewards, baseline, official=True)
    assert float(official.detach()) == -(0.75 * -10 - 0.5 * -7.5)


def test_no_gradient_flows_into_rewards_or_baseline():
    log_probs = torch.zeros(2, 1, requires_grad=True)
    rewards, baseline = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    policy_loss(log_probs, torch.ones(2, 1), rewards, baseline).backward()
    assert rewards.grad is None
    assert baseline.grad is None


def test_entropy_alone_drives_the_policy_towards_the_uniform_one():
    model = toy()
    with torch.no_grad():
        model.decoder_linear.bias[END] += 2
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    entropies = []
    for _ in range(30):
        decoded = sample.sample(model, QUESTION.expand(64, -1), generator=generator, max_length=1)
        loss = policy_loss(
            decoded.log_probs,
            decoded.mask,
            torch.zeros(64),
            0.0,
            entropy=decoded.entropy,
            entropy_weight=1.0,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entropies.append(float(decoded.entropy.detach().mean()))
    assert entropies[0] < 0.95
    assert entropies[-1] > 1.05  # log 3 = 1.0986, without START


def test_the_batch_baseline_of_means_1_0_and_a_half_is_as_worked_out_by_hand():
    baseline = Baseline()
    batches = (torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    for rewards, expected in zip(batches, (0.1, 0.09, 0.131), strict=True):
        subtracted = baseline(rewards)
        assert subtracted.shape == (2,)
        assert float(baseline.value) == pytest.approx(expected, abs=1e-15)
        assert float(subtracted[0]) == pytest.approx(expected, abs=1e-7)


def test_the_baseline_per_type_moves_only_the_types_of_the_batch():
    baseline = Baseline("per_type_ema", decay=0.5, types=3)
    subtracted = baseline(torch.tensor([1.0, 0.0, 1.0, 1.0]), types=torch.tensor([0, 0, 2, -1]))
    assert subtracted.tolist() == [0.25, 0.25, 0.5, 0.5]
    assert baseline.value.tolist() == [0.25, 0.0, 0.5, 0.5]
    assert baseline(torch.tensor([1.0]), types=torch.tensor([1])).tolist() == [0.5]
    assert baseline.value.tolist() == [0.25, 0.5, 0.5, 0.5]


def test_the_self_critical_baseline_is_the_reward_of_the_greedy_program():
    greedy = torch.tensor([1.0, 0.0])
    assert torch.equal(Baseline("self_critical")(torch.ones(2), greedy=greedy), greedy)
    assert Baseline("none")(torch.ones(2)).tolist() == [0.0, 0.0]


def test_a_baseline_goes_on_from_its_state_dict():
    one, two = Baseline(), Baseline()
    one(torch.ones(4))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(torch.zeros(4)), two(torch.zeros(4)))


TWO_PROCESSES = """
import os
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from program_execution.decoding import sample
from program_execution.decoding.reinforce import Baseline, policy_loss
from program_execution.net.seq2seq import ProgramGenerator

class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = ProgramGenerator(program_tokens=6, embedding=4, hidden=4).double()
        self.baseline = Baseline()

    def forward(self, questions, seed, fixed=None):
        draws = torch.Generator().manual_seed(seed)
        decoded = sample.sample(self.generator, questions, generator=draws, max_length=5)
        rewards = (decoded.programs[:, 0] > 2).double()
        subtracted = self.baseline(rewards) if fixed is None else fixed
        return rewards, policy_loss(decoded.log_probs, decoded.mask, rewards, subtracted)

torch.manual_seed(0)
rank, policy, questions = int(os.environ["RANK"]), Policy(), torch.tensor([[1, 4, 2]] * 8)
weights = list(policy.parameters())
mean = torch.cat([policy(questions, seed, 0.0)[0] for seed in (0, 1)]).mean()
losses = [policy(questions, seed, 0.1 * mean)[1] for seed in (0, 1)]
whole = torch.autograd.grad(sum(losses) / 2, weights)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
network = DistributedDataParallel(policy)
network(questions, rank)[1].backward()
assert 0 < mean < 1
assert (policy.baseline.value - 0.1 * mean).abs() < 1e-12
assert max((p.grad - g).abs().max() for p, g in zip(weights, whole, strict=True)) < 1e-7
dist.destroy_process_group()
"""


def test_two_processes_share_the_baseline_and_the_gradient_of_one_with_both_batches(
    commands, tmp_path
):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    for rank in commands.start_ranks(tmp_path, f"{tmp_path}/group", script="script.py"):
        assert rank.wait() == 0, rank.text


def test_what_does_not_fit_is_refused():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="baseline is 'mean'; choose one of batch_ema"):
        Baseline("mean")
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        Baseline(decay=1.0)
    with pytest.raises(ValueError, match="needs `types`, one per reward"):
        Baseline("per_type_ema")(ones)
    with pytest.raises(ValueError, match=r"question types are 0\.\.13"):
        Baseline("per_type_ema")(ones, types=torch.tensor([0, 13]))
    with pytest.raises(ValueError, match="needs `greedy`"):
        Baseline("self_critical")(ones)
    with pytest.raises(ValueError, match="do not fit"):
        policy_loss(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3), 0.0)
    with pytest.raises(ValueError, match="give the entropy"):
        policy_loss(torch.zeros(2, 3), torch.ones(2, 3), ones, 0.0, entropy_weight=0.1)
