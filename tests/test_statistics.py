"""Intervals cover at their rate, tests err at theirs, a planted gain is found as often as computed: by simulation."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from moalign.bench import scores, statistics
from moalign.errors import Problem


def crossed(rng, trainings, prompts, of_training, of_prompt, videos=1):
    """Values of mean 1 with random effects of trainings and prompts beside noise of 1: flat, with both labels."""
    values = 1 + rng.normal(0, of_training, (trainings, 1, 1)) + rng.normal(0, of_prompt, (1, prompts, 1))
    values = values + rng.normal(size=(trainings, prompts, videos))
    training, prompt, _ = np.indices(values.shape)
    return values.ravel(), prompt.ravel().tolist(), training.ravel().tolist()


def pairs(rng, n, gain, discordant):
    """Passes of two runs on n prompts, which differ in a share `discordant` of them."""
    kind = rng.choice(4, n, p=[(discordant + gain) / 2, (discordant - gain) / 2, 0.2, 0.8 - discordant])
    return np.isin(kind, [0, 2]), np.isin(kind, [1, 2])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_wilson_covers_the_truth():
    """Exactly, over all counts: near 95 % on average over shares, and never far below."""
    for n in (30, 512):
        ends = np.array([statistics.wilson(k, n) for k in range(n + 1)])
        truths = np.linspace(0.02, 0.98, 97)
        held = [stats.binom.pmf(np.arange(n + 1), n, p) @ ((ends[:, 0] <= p) & (p <= ends[:, 1])) for p in truths]
        assert 0.94 <= np.mean(held) <= 0.96
        assert min(held) > 0.83 if n == 30 else min(held) > 0.92


def test_trainings_that_agree_by_chance_make_no_interval_shorter_than_the_prompts():
    """Equal means of three trainings, as if they could not differ: what the prompts leave open stays."""
    values, prompts, trainings = crossed(np.random.default_rng(8), 3, 40, 0.0, 0.5)
    table = values.reshape(3, 40)
    table = table - table.mean(axis=1, keepdims=True)
    low, high = statistics.interval(table.ravel(), prompts, trainings)
    alone = stats.t.interval(0.95, 39, 0, stats.sem(table.mean(axis=0)))
    assert (low, high) == pytest.approx(alone)


@pytest.mark.parametrize("trainings", [2, 3, 5])
@pytest.mark.parametrize(("of_training", "of_prompt"), [(0.0, 0.5), (0.1, 0.5), (0.5, 0.5), (0.5, 0.0)])
def test_interval_covers_with_few_trainings(trainings, of_training, of_prompt):
    """Whether trainings differ much or not at all; resampling the trainings held the truth in 70 to 90 % here."""
    rng, trials = np.random.default_rng(trainings), 1000
    ends = [statistics.interval(*crossed(rng, trainings, 40, of_training, of_prompt)) for _ in range(trials)]
    assert 0.93 <= np.mean([low <= 1 <= high for low, high in ends]) <= 0.998


def test_interval_covers_for_differences_of_passes():
    """Each run's trainings err in their own way, prompts are hard for both; several videos each."""
    rng, held = np.random.default_rng(0), []
    for _ in range(600):
        hard = rng.normal(size=(1, 40, 1))
        a, b = (rng.normal(size=(3, 40, 2)) + rng.normal(0, 0.3, (3, 1, 1)) + hard < level for level in (-0.8, -0.8))
        training, prompt, _ = np.indices(a.shape)
        low, high = statistics.interval((a * 1.0 - b).ravel(), prompt.ravel().tolist(), training.ravel().tolist())
        held.append(low <= 0 <= high)
    assert 0.93 <= np.mean(held) <= 0.985


@pytest.mark.parametrize(("trainings", "videos"), [(1, 8), (3, 2), (3, 1)])
def test_share_covers_for_rare_passes(trainings, videos):
    """About 6 % pass, and prompts decide much of it."""
    rng, held = np.random.default_rng(0), []
    truth = stats.norm.cdf(-2.2 / math.sqrt(2.0))
    for _ in range(800):
        values, prompts, labels = crossed(rng, trainings, 60, 0.05, 1.0, videos)
        low, high = statistics.share(values > 3.2, prompts, labels)
        assert 0 <= low <= high <= 1
        held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.99


def test_a_share_without_a_pass_is_no_certain_zero():
    nothing, prompts = np.zeros(24), np.tile(range(8), 3)
    for trainings in (np.zeros(24), np.repeat(range(3), 8)):
        assert statistics.share(nothing, prompts, trainings) == statistics.wilson(0, 8)
        assert statistics.share(nothing + 1, prompts, trainings) == pytest.approx(statistics.wilson(8, 8))
    assert statistics.share(np.ones(8), np.zeros(8), np.zeros(8)) == pytest.approx((0, 1), abs=1e-6)  # one prompt


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 20), (3, 0, 50), (12, 2, 50), (1, 30, 80), (20, 0, 20)])
def test_tango_is_where_the_score_test_reaches_its_quantile(b, c, n):
    """The share of pairs of c's kind under a difference d by maximising the likelihood, not by the closed form."""

    def z(d):
        shares = np.linspace(max(0, -d), min(1, (1 - d) / 2), 200_001)
        free, ours = 1 - 2 * shares - d, shares + d
        with np.errstate(divide="ignore", invalid="ignore"):
            kinds = ((b, ours), (c, shares), (n - b - c, free))
            likelihood = sum(np.where(count == 0, 0, count * np.log(share)) for count, share in kinds)
        q = shares[np.nanargmax(likelihood)]
        return ((b - c) - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))

    low, high = statistics.tango(b, c, n)
    assert low <= (b - c) / n <= high
    assert statistics.tango(c, b, n) == pytest.approx((-high, -low))
    for end, side in ((low, 1), (high, -1)):
        assert abs(end) == 1 or z(end) == pytest.approx(side * stats.norm.isf(0.025), abs=2e-3)


@pytest.mark.parametrize(("trainings", "rare"), [(1, -2.4), (3, -2.4), (3, -1.5)])
def test_share_apart_covers_where_hardly_any_pass(trainings, rare):
    """1 to 7 % pass, and each training errs in its own way; weighted passes too."""
    rng, held, narrow, weighted = np.random.default_rng(6), [], [], []
    weight = np.tile(np.where(np.arange(120) < 60, 0.8, 1.2), trainings)
    for _ in range(600):
        a, b = (
            (rng.normal(size=(trainings, 120)) + rng.normal(0, 0.1, (trainings, 1)) < rare + lift) for lift in (0.3, 0)
        )
        apart = (a * 1.0 - b).ravel()
        training, prompt = (of.ravel().tolist() for of in np.indices(a.shape))
        truth = stats.norm.cdf((rare + 0.3) / math.sqrt(1.01)) - stats.norm.cdf(rare / math.sqrt(1.01))
        for found, values, of in (
            (held, apart, statistics.share_apart),
            (weighted, apart * weight, statistics.share_apart),
            (narrow, apart, statistics.interval),
        ):
            low, high = of(values, prompt, training)
            found.append(low <= truth <= high)
    assert 0.95 <= np.mean(held) <= 0.995 and 0.95 <= np.mean(weighted) <= 0.995
    assert trainings > 1 or np.mean(narrow) < 0.88  # the prompts resampled: 84 %


def test_cells_may_differ_in_their_number_of_videos():
    """With as many videos in each, half of them dropped at random: the ratio's interval still covers."""
    rng, held = np.random.default_rng(4), []
    for _ in range(600):
        values, prompts, trainings = map(np.array, crossed(rng, 3, 40, 0.2, 0.5, 4))
        kept = rng.random(len(values)) < 0.5
        low, high = statistics.interval(values[kept], prompts[kept], trainings[kept])
        held.append(low <= 1 <= high)
    assert 0.93 <= np.mean(held) <= 0.985


def test_bootstrap_interval_covers_the_truth():
    """Two correlated videos per prompt: about 95 % of the intervals hold the true mean, with few prompts too."""
    rng, trials = np.random.default_rng(0), 600
    for count in (8, 40):
        prompts, held = np.repeat(np.arange(count), 2), 0
        for trial in range(trials):
            values = np.repeat(rng.normal(1.0, 1.0, count), 2) + rng.normal(0, 0.3, 2 * count)
            low, high = statistics.bootstrap(values, prompts, seed=trial, draws=1000)
            held += low <= 1.0 <= high
        assert 0.92 <= held / trials <= 0.98, count


def test_bootstrap_is_a_function_of_its_arguments():
    values, prompts = np.random.default_rng(2).random(50), np.repeat(np.arange(10), 5)
    first = statistics.bootstrap(values, prompts)
    np.random.seed(5)
    assert statistics.bootstrap(values, prompts) == first
    assert statistics.bootstrap(values, prompts, seed=1) != first


def test_videos_of_one_prompt_count_once():
    """Ten copies of each prompt's value carry no more information than one."""
    values = np.random.default_rng(3).random(30)
    once = statistics.bootstrap(values, np.arange(30))
    tenfold = statistics.bootstrap(np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert tenfold == pytest.approx(once)
    assert statistics.bootstrap(values, np.zeros(30)) == (-math.inf, math.inf)


@pytest.mark.parametrize(("n01", "n10"), [(0, 0), (1, 0), (3, 9), (10, 10), (2, 30)])
def test_mcnemar_is_the_binomial_test_on_discordant_pairs(n01, n10):
    a = np.array([1] * n10 + [0] * n01 + [1] * 5 + [0] * 8)
    b = np.array([0] * n10 + [1] * n01 + [1] * 5 + [0] * 8)
    expected = stats.binomtest(n10, n10 + n01).pvalue if n10 + n01 else 1.0
    assert statistics.mcnemar_exact(a, b) == pytest.approx(min(1.0, expected))
    order = np.random.default_rng(0).permutation(len(a))
    assert statistics.mcnemar_exact(a[order], b[order]) == statistics.mcnemar_exact(a, b)


def test_holm():
    ps = np.random.default_rng(0).random(9) ** 3
    assert statistics.holm(ps) == pytest.approx(multipletests(ps, method="holm")[1])
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


# --- tests, their size and power --------------------------------------------------------------------------------------


@pytest.mark.parametrize("discordant", [0.02, 0.1, 0.3])
def test_mcnemar_errs_in_at_most_a_twentieth(discordant):
    assert all(statistics.power(n, 0, discordant) <= 0.05 for n in (5, 30, 100, 591, 2000))
    rng = np.random.default_rng(0)
    found = [statistics.mcnemar_exact(*pairs(rng, 200, 0, discordant)) <= 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(statistics.power(200, 0, discordant), abs=0.02)


@pytest.mark.parametrize(
    ("n", "gain", "discordant"), [(100, 0.1, 0.2), (512, 0.04, 0.1), (512, 0.1, 0.3), (60, 0.2, 0.2)]
)
def test_a_planted_gain_is_found_at_the_computed_power(n, gain, discordant):
    rng, trials = np.random.default_rng(1), 1000
    expected = statistics.power(n, gain, discordant)
    found = sum(statistics.mcnemar_exact(*pairs(rng, n, gain, discordant)) <= 0.05 for _ in range(trials))
    assert stats.binomtest(found, trials, expected).pvalue > 0.01
    assert statistics.power(n, -gain, discordant) == pytest.approx(expected)


def test_prompts_needed_reach_the_power():
    for gain, discordant, wanted in ((0.05, 0.2, 0.8), (0.019, 0.2, 0.8), (0.1, 0.1, 0.95)):
        n = statistics.prompts_needed(gain, discordant, wanted)
        assert statistics.power(n, gain, discordant) >= wanted > statistics.power(n - 1, gain, discordant)
    assert statistics.prompts_needed(0.05, 0.2) == statistics.prompts_needed(-0.05, 0.2)
    plain = (stats.norm.isf(0.025) * math.sqrt(0.2) + stats.norm.isf(0.2) * math.sqrt(0.2 - 0.019**2)) ** 2 / 0.019**2
    assert statistics.prompts_needed(0.019, 0.2) == pytest.approx(plain, rel=0.05)  # the normal approximation
    assert statistics.power(50, 0, 0) == 0  # no pair differs
    for gain, wanted in ((0, 0.8), (0.1, 1)):
        with pytest.raises(Problem, match="no number of prompts"):
            statistics.prompts_needed(gain, 0.2, wanted)


def test_videos_of_a_prompt_are_no_independent_pairs():
    """Without a true difference McNemar over all videos errs far too often; p of the mean does not."""
    rng, naive, clustered = np.random.default_rng(2), [], []
    prompts, one = np.repeat(range(40), 8), [0] * 320
    for _ in range(400):
        a, b = (np.repeat(rng.normal(size=40), 8) + rng.normal(0, 0.7, 320) > 0.5 for _ in range(2))
        naive.append(statistics.mcnemar_exact(a, b) <= 0.05)
        clustered.append(statistics.p_of_mean(a * 1.0 - b, prompts, one) <= 0.05)
    assert np.mean(naive) > 0.25
    assert 0.03 <= np.mean(clustered) <= 0.07


def test_p_of_the_mean_belongs_to_the_interval():
    rng = np.random.default_rng(3)
    values = rng.normal(0.3, 1, 30)
    assert statistics.p_of_mean(values, range(30), [0] * 30) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    for _ in range(50):
        values, prompts, trainings = crossed(rng, 3, 40, 0.3, 0.5)
        low, high = statistics.interval(values - 0.3, prompts, trainings)
        assert (statistics.p_of_mean(values - 0.3, prompts, trainings) < 0.05) == (low > 0 or high < 0)
    assert statistics.p_of_mean(np.zeros(6), range(6), [0] * 6) == 1
    assert statistics.p_of_mean(np.ones(6), range(6), [0] * 6) == 0
    assert statistics.p_of_mean(np.ones(6), [0] * 6, [0] * 6) == 1


@pytest.mark.parametrize("lift", [0.0, 0.5])
def test_p_of_shares_errs_at_its_rate_and_decides_as_the_interval(lift):
    """Three trainings, 5 % pass; a weight changes neither."""
    rng, significant, decided = np.random.default_rng(9), [], []
    for trial in range(500):
        a, b = (rng.normal(size=(3, 150)) + rng.normal(0, 0.05, (3, 1)) < level for level in (-1.65 + lift, -1.65))
        training, prompt = (of.ravel().tolist() for of in np.indices(a.shape))
        apart = (a * 1.0 - b).ravel() * (0.9 if trial % 2 else 1)
        low, high = statistics.share_apart(apart, prompt, training)
        significant.append(statistics.p_of_shares(apart, prompt, training) <= 0.05)
        decided.append(low > 0 or high < 0)
    assert 0.005 <= np.mean(significant) <= 0.06 if not lift else np.mean(significant) > 0.4
    assert np.mean(np.equal(significant, decided)) > 0.96


@pytest.mark.parametrize(
    ("trainings", "gain", "discordant"), [(1, 0.05, 0.2), (2, 0.05, 0.2), (3, 0.05, 0.2), (3, 0, 0.2)]
)
def test_a_gain_in_several_trainings_is_found_as_computed(trainings, gain, discordant):
    rng, trials, n = np.random.default_rng(10), 400, 300
    keys = [(prompt, 0) for prompt in range(n)]
    expected, found = statistics.power_of_all(n, gain, discordant, trainings), 0
    for _ in range(trials):
        each = [pairs(rng, n, gain, discordant) for _ in range(trainings)]
        ours, base = (
            {seed: dict(zip(keys, of * 1.0, strict=True)) for seed, of in enumerate(side)}
            for side in zip(*each, strict=True)
        )
        found += scores.difference("Joint", ours, base, keys).p <= 0.05
    assert found / trials == pytest.approx(expected, abs=0.07)


def test_holm_keeps_the_chance_of_any_false_finding():
    """Six comparisons with one base, so correlated, of which two are true."""
    rng, any_false, power = np.random.default_rng(5), [], []
    shift = np.array([0, 0, 0, 0, 3.5, 3.5])
    for _ in range(3000):
        z = (rng.normal(size=6) + rng.normal()) / math.sqrt(2) + shift
        adjusted = np.array(statistics.holm(2 * stats.norm.sf(abs(z))))
        any_false.append((adjusted[:4] <= 0.05).any())
        power.append(adjusted[4] <= 0.05)
    assert np.mean(any_false) <= 0.055
    assert np.mean(power) > 0.7


# --- verdicts, order, ties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "published", "says"),
    [
        ((0.01, 0.05), 1.9, "agrees"),
        ((-0.05, -0.01), -1.9, "agrees"),
        ((-0.05, -0.01), 1.9, "differs"),
        ((0.01, 0.05), -0.2, "differs"),
        ((-0.01, 0.05), 1.9, "undecided"),
        ((0.0, 0.05), 1.9, "undecided"),
        ((0.01, 0.05), 0.0, "differs"),
        ((-0.01, 0.01), 0.0, "undecided"),
        ((0.0, 0.0), 0.0, "undecided"),
        ((-math.inf, math.inf), 1.9, "undecided"),
    ],
)
def test_verdict(ends, published, says):
    assert statistics.verdict(ends, published) == says


@pytest.mark.parametrize("trainings", [1, 3])
def test_neither_order_nor_numbering_matters(trainings):
    rng = np.random.default_rng(6)
    values, prompts, labels = crossed(rng, trainings, 25, 0.3, 0.5, 2)
    functions = (
        statistics.interval,
        statistics.p_of_mean,
        lambda v, *of: statistics.share(v > 1, *of),
        lambda v, *of: statistics.share_apart(np.sign(v.round()), *of),
        lambda v, *of: statistics.p_of_shares(np.sign(v.round()), *of),
    )
    order, name = rng.permutation(len(values)), rng.permutation(25) + 100
    for function in functions:
        expected = function(values, prompts, labels)
        assert function(values[order], np.array(prompts)[order], np.array(labels)[order]) == pytest.approx(expected)
        assert function(values, name[prompts], labels) == pytest.approx(expected)
        assert function(values, prompts, [7 - label for label in labels]) == pytest.approx(expected)


def test_scores_do_not_depend_on_order():
    rng = random.Random(0)
    keys = [(prompt, index) for prompt in range(12) for index in range(2)]
    of = [{seed: {key: float(rng.random() < 0.5) for key in keys} for seed in range(3)} for _ in range(2)]
    found = scores.summarise("Joint", of[0], keys), scores.difference("Joint", *of, keys)
    turned = [
        {seed: dict(rng.sample(list(values.items()), len(keys))) for seed, values in reversed(one.items())}
        for one in of
    ]
    backwards = keys[::-1]
    assert (scores.summarise("Joint", turned[0], backwards), scores.difference("Joint", *turned, backwards)) == found


def test_ties_leave_everything_open():
    """Pairs that all agree: no difference, and no evidence of one."""
    passes = {(prompt, 0): float(prompt % 3 == 0) for prompt in range(30)}
    bound = statistics.wilson(0, 30)[1]  # of the share of pairs that differ
    for trainings in ({0: passes}, {0: passes, 1: passes}):
        found = scores.difference("Joint", trainings, trainings, passes)
        assert (found.mean, found.p) == (0, 1)
        assert (found.low, found.high) == pytest.approx((-bound, bound))
        assert statistics.verdict((found.low, found.high), 1.9) == "undecided"


def test_p_is_exact_only_where_pairs_are_independent():
    rng = np.random.default_rng(7)

    def one(videos):
        return {(prompt, index): float(rng.random() < 0.4) for prompt in range(20) for index in range(videos)}

    for seeds, videos in itertools.product((1, 2), (1, 3)):
        ours, base = ({seed: one(videos) for seed in range(seeds)} for _ in range(2))
        found = scores.difference("Joint", ours, base, one(videos))
        assert (found.discordant is not None) == (seeds == videos == 1)
        assert 0 < found.p <= 1
    assert scores.difference("SA", ours, base, one(3)).p is None


def test_a_missing_video_fails_the_row_and_is_listed():
    values = {(prompt, 0): 1.0 for prompt in range(5)}
    short = {key: value for key, value in values.items() if key != (3, 0)}
    found = scores.summarise("Joint", {1: short, 0: values}, values)
    assert (found.mean, found.low, found.high, found.n) == (None, None, None, 9)
    assert found.missing == ((1, (3, 0)),)
