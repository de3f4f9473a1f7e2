"""Active labelling by generation, against closed forms and enumeration.

Monte Carlo tests use fixed keys and bounds of five standard errors or more; whatever does not
depend on the paths (the variances and entropies of a Gaussian) is compared to rounding.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import decisionppl as dp
from decisionppl.inference import _steps
from decisionppl.inference.labelling import Uncertainty, label, predictive_loss, uncertainty
from decisionppl.models import sequences

SCALES, NOISES = np.array([1.0, 0.3, 2.0, 0.7]), np.array([0.2, 1.0, 1.5, 0.5])
X = np.repeat([-4.0, -1.0, 1.0, 4.0], 5) + np.tile(np.linspace(-0.5, 0.5, 5), 4)
REGION = np.repeat(np.arange(4), 5)
MODEL = sequences.regions(SCALES, NOISES).sequence
Y = np.random.default_rng(0).normal(size=20)


def gaussian_parts(v, w, num_steps):
    """Signal variance v, noise variance w: the mean after N labels has variance v - v_N."""
    left = v * w / (w + num_steps * v)
    return v + w, v - left, w + left, 0.5 * np.log((v + w) / (w + left))


def posterior_variance(counts):
    return 1 / (1 / SCALES**2 + counts / NOISES**2)


# Uncertainty.


def test_gaussian_closed_form():
    model = sequences.normal_normal(0.3, prior_scale=1.5, noise=0.5).sequence
    values = np.array([0.3, np.nan, 1.0, np.nan])
    v, paths = 1 / (1 / 1.5**2 + 2 / 0.5**2), 3000
    for num_steps in (1, 12):
        found = uncertainty(model, (4,), values, key=1, num_paths=paths, num_steps=num_steps)
        exact = gaussian_parts(v, 0.25, num_steps)
        for part, truth in zip(found, exact, strict=True):
            tolerance = 5 * math.sqrt(2 / paths) if part is found.epistemic else 1e-5
            np.testing.assert_allclose(part, np.full(4, truth), rtol=tolerance)


def urn_parts(probs, num_steps):
    """By enumeration of all paths; `probs` maps counts [K] to the law of the next label."""
    size = len(probs(np.zeros(2, int) if probs is urn_probs else np.zeros(3, int)))
    entropy = lambda p: -(p * np.log(p)).sum()  # noqa: E731
    start = np.array([1, 2, 0][:size])  # labels seen before
    weight, after = [], []
    for path in itertools.product(range(size), repeat=num_steps):
        counts, prob = start.copy(), 1.0
        for y in path:
            prob *= probs(counts)[y]
            counts[y] += 1
        weight.append(prob)
        after.append(probs(counts))
    weight, after, now = np.array(weight), np.array(after), probs(start)
    epistemic = (weight @ (after - now) ** 2).sum()
    aleatoric = weight @ (after * (1 - after)).sum(1)
    information = entropy(now) - weight @ np.array([entropy(p) for p in after])
    return (now * (1 - now)).sum(), epistemic, aleatoric, information


def urn_probs(counts):
    zeros, ones = counts
    return np.array([2.0 + zeros, 0.7 + ones]) / (2.7 + counts.sum())


def colour_probs(counts):
    weights = np.array([0.5, 1.0, 2.5]) + counts
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("twins", "probs", "scale"),
    [
        (sequences.polya_urn(0.7, 2.0), urn_probs, 0.5),  # a number has one indicator, not two
        (sequences.dirichlet_multinomial(np.array([0.5, 1.0, 2.5])), colour_probs, 1.0),
    ],
    ids=["polya_urn", "dirichlet_multinomial"],
)
def test_urns_by_enumeration(twins, probs, scale):
    values = np.array([np.nan, 1.0, 1.0, np.nan, 0.0])
    found = uncertainty(twins.sequence, (5,), values, key=2, num_paths=20_000, num_steps=4)
    total, epistemic, aleatoric, information = urn_parts(probs, 4)
    # standard errors are below 1% of each part here
    assert float(found.total[0]) == pytest.approx(scale * total, rel=1e-5)
    assert float(found.epistemic[0]) == pytest.approx(scale * epistemic, rel=0.05)
    assert float(found.aleatoric[0]) == pytest.approx(scale * aleatoric, rel=0.01)
    assert float(found.information[0]) == pytest.approx(information, rel=0.05)
    assert float(found.total[0]) == pytest.approx(scale * (epistemic + aleatoric), rel=1e-5)


def normal_with_law(law):
    """Normal observations of an unknown mean, their law written in another way."""

    def step(carry: Any, _: Any) -> Any:
        count, total = carry
        y = dp.outcome("y", law(total / (1 + count), jnp.sqrt(1 + 1 / (1 + count))))
        return (count + 1, total + y), y

    return lambda length: scan(step, (jnp.zeros(()), jnp.zeros(())), None, length=length)[1]


def test_laws_without_formulas_are_averaged_over_draws():
    def mixture(mean, sd):
        half = dist.CategoricalProbs(jnp.full(2, 0.5))
        return dist.MixtureSameFamily(half, dist.Normal(jnp.stack([mean, mean]), sd))

    def transformed(mean, sd):
        standard = dist.Normal(jnp.zeros(()), 1.0)
        return dist.TransformedDistribution(standard, dist.transforms.AffineTransform(mean, sd))

    for law in (mixture, transformed):
        with pytest.raises(NotImplementedError):
            law(jnp.zeros(()), 1.0).entropy()
        found = uncertainty(normal_with_law(law), (2,), np.full(2, np.nan), key=0, num_paths=200)
        total, epistemic, aleatoric, information = gaussian_parts(1.0, 1.0, 20)
        # one key for all laws: the error of the entropies cancels
        assert float(found.information[0]) == pytest.approx(information, abs=1e-4)
        # 5 standard errors of a variance over 128 draws
        tolerance = 1e-5 if law is mixture else 5 * math.sqrt(2 / 128)
        assert float(found.total[0]) == pytest.approx(total, rel=tolerance)
        assert float(found.aleatoric[0]) == pytest.approx(aleatoric, rel=tolerance)
        assert float(found.epistemic[0]) == pytest.approx(epistemic, rel=0.5)
        # and so does that of the variances, in their ratio
        ratio = float(found.aleatoric[0] / found.total[0])
        assert ratio == pytest.approx(aleatoric / total, rel=1e-4)


@pytest.mark.parametrize("event_dims", [0, 1])
def test_labels_of_several_numbers_add_their_variances(event_dims):
    def step(carry: Any, _: Any) -> Any:
        count, total = carry
        law = dist.Normal(total / (1 + count), jnp.sqrt(1 + 1 / (1 + count)))
        y = dp.outcome("y", law.expand([3]).to_event(event_dims))
        return (count + 1, total + y), y

    model = lambda length: scan(step, (jnp.zeros(()), jnp.zeros(3)), None, length=length)[1]  # noqa: E731
    values = np.full((2, 3), np.nan)
    found = uncertainty(model, (2,), values, key=0, num_paths=500, num_steps=5)
    total, epistemic, aleatoric, information = 3 * np.array(gaussian_parts(1.0, 1.0, 5))
    assert float(found.total[0]) == pytest.approx(total, rel=1e-5)
    assert float(found.aleatoric[0]) == pytest.approx(aleatoric, rel=1e-5)
    assert float(found.information[0]) == pytest.approx(information, rel=1e-5)
    assert float(found.epistemic[0]) == pytest.approx(epistemic, rel=0.2)


def test_noise_is_not_ignorance():
    """On al_hregions the noisy half has most variance, and next to nothing to learn."""
    x = np.array([-4.0, -1.0, 1.0, 4.0])
    model = sequences.al_hregions().sequence
    found = uncertainty(model, (x,), np.full(4, np.nan), key=0)
    assert found.total[:2].min() > found.total[2:].max()
    assert found.aleatoric[:2].min() > found.aleatoric[2:].max()
    for part in (found.epistemic, found.information):
        assert part[:2].max() < part[2:].min()
    chosen = {
        score: int(label(model, (x,), np.zeros(4), num_labels=1, key=0, score=score).order[0])
        for score in ("total", "epistemic")
    }
    assert chosen["total"] < 2
    assert chosen["epistemic"] >= 2


def test_rows_share_their_random_numbers():
    found = uncertainty(MODEL, (X,), Y, observed=np.zeros(20, bool), key=0, num_paths=4)
    by_region = np.asarray(found.epistemic).reshape(4, 5)
    np.testing.assert_array_equal(by_region, by_region[:, :1].repeat(5, axis=1))
    some = uncertainty(MODEL, (X,), Y, observed=np.zeros(20, bool), key=0, num_paths=4,
                       rows=[19, 3])  # fmt: skip
    for part, whole in zip(some, found, strict=True):
        np.testing.assert_allclose(part, whole[np.array([19, 3])], rtol=1e-5)


def test_observed_defaults_to_what_is_not_nan():
    observed = np.arange(20) % 3 == 0
    given = uncertainty(MODEL, (X,), Y, observed=observed, key=0, num_paths=2, num_steps=2)
    found = uncertainty(MODEL, (X,), {"y": np.where(observed, Y, np.nan)}, key=0, num_paths=2,
                        num_steps=2)  # fmt: skip
    counts = np.bincount(REGION[observed], minlength=4)
    exact = posterior_variance(counts)[REGION] + NOISES[REGION] ** 2
    np.testing.assert_allclose(found.total, exact, rtol=1e-5)
    for one, other in zip(given, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_compilation_for_any_number_of_labels(compilations):
    model = sequences.regions(SCALES, NOISES).sequence  # nothing compiled for it yet
    counts = []
    for count in (1, 3, 20):
        before = compilations()
        values = np.where(np.arange(20) < count, Y, np.nan)
        uncertainty(model, (X + 1e-3 * count,), values, key=count, num_paths=2, num_steps=2)
        counts.append(compilations() - before)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


# Labelling.


def greedy(num_labels, counts, num_steps):
    """Regions and scores of the best next label, one after the other, in closed form."""
    counts, left, out = counts.copy(), np.bincount(REGION) - counts, []
    for _ in range(num_labels):
        gain = gaussian_parts(posterior_variance(counts), NOISES**2, num_steps)[3]
        best = int(np.where(left > 0, gain, -np.inf).argmax())
        out.append((best, gain[best]))
        counts[best] += 1
        left[best] -= 1
    regions, scores = zip(*out, strict=True)
    return np.array(regions), np.array(scores)


def test_sequential_information_is_greedy_in_closed_form():
    observed = np.isin(np.arange(20), [0, 5, 6])
    found = label(MODEL, (X,), Y, observed=observed, num_labels=12, key=0, num_paths=2)
    regions, scores = greedy(12, np.bincount(REGION[observed], minlength=4), 20)
    order = np.asarray(found.order)
    assert len(set(regions)) > 2
    np.testing.assert_array_equal(REGION[order], regions)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
    assert len(set(order)) == 12
    assert not set(order) & {0, 5, 6}
    np.testing.assert_array_equal(np.asarray(found.observed), observed | np.isin(range(20), order))


def test_information_of_endless_paths_is_that_of_the_level():
    found = label(MODEL, (X,), Y, num_labels=1, key=0, num_paths=2, num_steps=4000)
    gain = 0.5 * np.log(1 + SCALES**2 / NOISES**2)
    assert REGION[int(found.order[0])] == gain.argmax()
    assert float(found.scores[0]) == pytest.approx(gain.max(), rel=1e-3)


def test_at_once_is_the_top_of_one_ranking():
    found = label(MODEL, (X,), Y, num_labels=20, key=0, sequential=False, num_paths=2)
    gain = gaussian_parts(SCALES**2, NOISES**2, 20)[3]
    np.testing.assert_array_equal(REGION[np.asarray(found.order)], np.argsort(-gain).repeat(5))
    np.testing.assert_allclose(found.scores, np.sort(gain)[::-1].repeat(5), rtol=1e-4)
    top = label(MODEL, (X,), Y, num_labels=7, key=0, sequential=False, num_paths=2)
    np.testing.assert_array_equal(top.order, found.order[:7])
    assert int(top.observed.sum()) == 7
    assert np.asarray(top.observed)[np.asarray(top.order)].all()


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("score", ["total", "random"])
def test_only_candidates_are_chosen(score, sequential):
    allowed = np.isin(np.arange(20), [1, 2, 7, 12, 18])
    observed = np.arange(20) < 2
    options = {"observed": observed, "num_labels": 4, "key": 3, "score": score}
    for candidates in (allowed, np.flatnonzero(allowed)):
        found = label(MODEL, (X,), Y, candidates=candidates, sequential=sequential, **options)
        assert sorted(np.asarray(found.order).tolist()) == [2, 7, 12, 18]


def test_ties_and_random_scores_are_fair():
    """First choice among 5 equal rows over 2,000 keys: chi-square at 1e-7."""
    keys = jax.random.split(jax.random.key(0), 2000)
    for score in ("random", "total"):
        first = lambda key: label(MODEL, (X[:5],), Y[:5], num_labels=2, key=key, score=score).order  # noqa: B023, E731
        order = np.asarray(jax.jit(jax.vmap(first))(keys))
        assert (order[:, 0] != order[:, 1]).all()
        assert stats.chisquare(np.bincount(order[:, 0], minlength=5)).pvalue > 1e-7


def test_total_and_random_generate_nothing(monkeypatch):
    def draw(*args):
        raise AssertionError("generated")

    monkeypatch.setattr(_steps.Steps, "draw", draw)
    model = sequences.regions(SCALES, NOISES).sequence  # nothing compiled for it yet
    for score in ("total", "random"):
        label(model, (X,), Y, num_labels=2, key=0, score=score)
    with pytest.raises(AssertionError, match="generated"):
        label(model, (X,), Y, num_labels=2, key=0, score="information")


def test_score_may_be_a_function():
    def least(parts: Uncertainty) -> jax.Array:
        return -parts.total

    found = label(MODEL, (X,), Y, num_labels=5, key=0, score=least, sequential=False)
    total = SCALES**2 + NOISES**2
    assert set(REGION[np.asarray(found.order)]) == {int(total.argmin())}
    with pytest.raises(ValueError, match="score: .*20 candidates, got shape \\(\\)"):
        label(MODEL, (X,), Y, num_labels=1, key=0, score=lambda parts: parts.total.sum())


def test_score_that_is_not_a_number():
    """NaN shows; minus infinity is still better than what cannot be had."""

    def broken(parts: Uncertainty) -> jax.Array:
        return parts.total.at[7].set(jnp.nan)

    found = label(MODEL, (X,), Y, num_labels=1, key=0, score=broken)
    assert int(found.order[0]) == 7
    assert np.isnan(found.scores[0])

    def hopeless(parts: Uncertainty) -> jax.Array:
        return jnp.full_like(parts.total, -jnp.inf)

    observed = np.arange(20) != 3
    found = label(MODEL, (X,), Y, observed=observed, num_labels=1, key=0, score=hopeless)
    assert int(found.order[0]) == 3


def test_mapped_over_tables_is_the_loop():
    rng = np.random.default_rng(1)
    xs, ys = X + rng.uniform(-0.4, 0.4, (3, 20)), rng.normal(size=(3, 20))
    keys = jax.random.split(jax.random.key(5), 3)
    observed = np.arange(20) < 2

    def study(key, x, y):
        chosen = label(
            MODEL, (x,), y, observed=observed, num_labels=4, key=key, score="epistemic",
            candidates=jnp.arange(1, 18), num_paths=4, num_steps=3,
        )  # fmt: skip
        rows = jnp.array([18, 19])
        return chosen, predictive_loss(MODEL, (x,), y, chosen.observed, rows=rows)

    mapped = jax.vmap(study)(keys, xs, ys)
    assert mapped[0].order.shape == (3, 4)
    for i in range(3):
        one = study(keys[i], xs[i], ys[i])
        for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4)


def test_known_table_under_jit():
    """What is known is checked also where something else is traced."""
    options = {"num_labels": 3, "score": "total"}
    known, options["observed"] = jnp.asarray(Y), jnp.arange(20) < 3
    jitted = jax.jit(lambda key: label(MODEL, (X,), known, key=key, **options))(jax.random.key(0))
    np.testing.assert_array_equal(jitted.order, label(MODEL, (X,), Y, key=0, **options).order)


def test_model_with_traced_parameters():
    def total(scale):
        model = sequences.regions(scale * SCALES, NOISES).sequence
        return uncertainty(model, (X[::5],), np.full(4, np.nan), key=0, num_paths=2).total

    found = jax.jit(jax.vmap(total))(jnp.array([1.0, 2.0]))
    exact = np.array([[1.0], [4.0]]) * SCALES**2 + NOISES**2
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.mark.parametrize("sequential", [True, False])
def test_traced_candidates_may_run_out(sequential):
    study = lambda observed: label(  # noqa: E731
        MODEL, (X,), Y, observed=observed, num_labels=3, key=0, score="total",
        candidates=jnp.array([4, 9]), sequential=sequential,
    )  # fmt: skip
    observed = np.zeros((2, 20), bool)
    observed[1, 9] = True
    found = jax.vmap(study)(observed)
    assert sorted(found.order[0].tolist()) == [-1, 4, 9]
    assert found.order[1].tolist() == [4, -1, -1]
    assert np.isneginf(np.asarray(found.scores[1, 1:])).all()
    assert found.observed.sum(axis=1).tolist() == [2, 2]


def test_network_keeps_its_cache():
    """The score after a label is that of the table absorbed anew, and paths need no room in it."""
    nnx = pytest.importorskip("flax.nnx")
    from decisionppl.models import neural

    net = neural.Transformer(
        1, neural.gaussian(), width=4, depth=1, num_heads=2, num_frequencies=2, rngs=nnx.Rngs(0)
    )
    model = neural.sequence(net)
    x, y = jnp.linspace(-1, 1, 8)[:, None], jnp.sin(jnp.arange(8.0))
    observed, sizes = np.arange(8) < 5, {"num_paths": 3, "num_steps": 4}
    found = label(model, (x,), y, observed=observed, num_labels=2, key=0, **sizes)
    after = observed | (np.arange(8) == int(found.order[0]))
    key = jax.random.split(jax.random.split(jax.random.key(0), 2)[1])[0]  # of the second scores
    roomy = [np.concatenate([a, np.zeros((8, *a.shape[1:]), a.dtype)]) for a in (x, y, after)]
    parts = uncertainty(
        model, (roomy[0],), roomy[1], observed=roomy[2], key=key, rows=np.arange(8), **sizes
    )
    expected = np.where(after, -np.inf, parts.information)
    assert int(found.order[1]) == expected.argmax()
    assert float(found.scores[1]) == pytest.approx(expected.max(), rel=1e-4, abs=1e-6)


# Predictive loss.


def test_predictive_loss_in_closed_form():
    observed = np.arange(20) % 4 == 0
    values = np.where(np.arange(20) == 19, np.nan, Y)
    found = np.asarray(predictive_loss(MODEL, (X,), values, observed))
    counts = np.bincount(REGION[observed], minlength=4)
    sums = np.bincount(REGION[observed], Y[observed], minlength=4)
    v = posterior_variance(counts)
    law = stats.norm((v * sums / NOISES**2)[REGION], np.sqrt(v + NOISES**2)[REGION])
    np.testing.assert_allclose(found[:19], -law.logpdf(Y)[:19], rtol=1e-4)
    assert np.isnan(found[19])
    some = predictive_loss(MODEL, (X,), {"y": values}, observed, rows=np.array([3, 1]))
    np.testing.assert_allclose(some, found[[3, 1]], rtol=1e-6)


def test_predictive_loss_of_whole_numbers():
    urn = sequences.polya_urn(0.7, 2.0).sequence
    values, observed = np.array([1.0, np.nan, 0.0, 1.0]), np.array([True, False, False, False])
    found = predictive_loss(urn, (4,), values, observed)
    np.testing.assert_allclose(
        np.exp(-found)[[0, 2, 3]], np.array([1.7, 2.0, 1.7]) / 3.7, rtol=1e-5
    )
    assert np.isnan(found[1])


# Errors.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_labels": 0}, ValueError, "num_labels: .*at least 1, got 0"),
        ({"num_labels": 1.5}, TypeError, "num_labels: expected a whole number, got 1.5"),
        ({"num_labels": 21}, ValueError, "num_labels: got 21, but only 20"),
        ({"num_paths": 1}, ValueError, "num_paths: .*at least 2, got 1"),
        ({"num_steps": 0}, ValueError, "num_steps: .*at least 1, got 0"),
        ({"score": "entropy"}, ValueError, "score: expected one of .*got 'entropy'"),
        ({"args": X}, TypeError, "args: .*tuple, got ndarray; write \\(x,\\)"),
        ({"values": Y[:3]}, ValueError, "values: expected shape \\(20,\\), got \\(3,\\)"),
        ({"values": {"z": Y}}, ValueError, "values: expected the data site 'y', got 'z'"),
        ({"values": {"y": Y, "z": Y}}, ValueError, "single data site, got \\['y', 'z'\\]"),
        ({"values": np.full(20, np.nan)}, ValueError, "candidates: 20 of these rows .* NaN"),
        ({"observed": np.arange(20)}, TypeError, "observed: expected bool"),
        ({"observed": np.ones(3, bool)}, ValueError, "observed: expected shape \\(20,\\)"),
        ({"observed": np.ones(20, bool)}, ValueError, "only 0 of the candidates"),
        ({"candidates": np.array([3, 20])}, ValueError, "candidates: got \\[20\\]; .* 0 to 19"),
        ({"candidates": np.array([3, 3])}, ValueError, "candidates: expected different rows"),
        ({"candidates": np.ones((2, 2), int)}, ValueError, "candidates: .*got shape \\(2, 2\\)"),
        ({"candidates": np.ones(2)}, TypeError, "candidates: expected indices"),
    ],
)
def test_errors_name_what_is_wrong(options, error, message):
    given = {"args": (X,), "values": Y, "num_labels": 1, "key": 0, **options}
    with pytest.raises(error, match=message):
        label(MODEL, **given)


def test_labelled_rows_without_a_label_are_an_error():
    observed = np.arange(20) < 3
    values = np.where(np.arange(20) == 1, np.nan, Y)
    for call in (
        lambda: uncertainty(MODEL, (X,), values, observed=observed, key=0),
        lambda: predictive_loss(MODEL, (X,), values, observed),
        lambda: label(MODEL, (X,), values, observed=observed, num_labels=1, key=0),
    ):
        with pytest.raises(ValueError, match="observed: 1 of these rows have the label NaN"):
            call()
