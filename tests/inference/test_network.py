"""Effects on networks: enumeration of all assignments first, then laws, then statistics.

Statistical tests use fixed keys; each rejects a correct program with probability 1e-8 at most.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st

import decisionppl as dp
from decisionppl import testing
from decisionppl._play import Same
from decisionppl.inference import _network_weights as weights
from decisionppl.inference import designs, network
from decisionppl.inference._differences import differences
from decisionppl.inference._left_out import left_out, moments, solve_definite
from decisionppl.inference._network_estimate import drawn_chances
from decisionppl.models import network as gallery


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


# --- problems small enough to enumerate -------------------------------------------------------

GRAPH = network.graph([[0, 1], [1, 2], [2, 3], [3, 0], [1, 3], [4, 5]], num_units=7)  # 6 is alone
P = np.array([0.3, 0.5, 0.6, 0.2, 0.7, 0.4, 0.5])
DESIGNS = {
    "unit": designs.unit(7, P),
    "clusters": designs.cluster([0, 0, 1, 1, 2, 3, 3], [0.3, 0.6, 0.5, 0.8]),
    "two-sided": designs.two_sided([0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 0, 1, 2, 2], (0.4, 0.6)),
}


def all_draws(design):
    """Everything the coins may say [draws, coins], and how probable each is [draws]."""
    drawn = np.array(list(itertools.product((0, 1), repeat=design.num_coins)))
    p = np.asarray(design.probability)
    return drawn, np.where(drawn == 1, p, 1 - p).prod(1)


def reached(reach, unit):
    """Coins that reach a unit, its own first."""
    others = np.asarray(reach.coin)[np.asarray(reach.unit) == unit]
    return np.concatenate([np.asarray(reach.own)[unit], others])


def any_outcome(design, reach, seed=0):
    """Outcomes that are any function of the coins that reach a unit: `drawn -> [draws, units]`."""

    def of(drawn):
        rng = np.random.default_rng(seed)
        columns = []
        for i in range(design.num_units):
            coins = reached(reach, i)
            table = rng.normal(1.0, 2.0, 2 ** len(coins))
            columns.append(table[drawn[:, coins] @ 2 ** np.arange(len(coins))])
        return np.stack(columns, axis=1)

    return of


def limited(design, reach, order, seed=0):
    """Outcomes in which products of at most `order` coins occur."""

    def of(drawn):
        rng = np.random.default_rng(seed)
        columns = []
        for i in range(design.num_units):
            y = rng.normal(2.0) * np.ones(len(drawn))
            for k in range(1, order + 1):
                for some in itertools.combinations(reached(reach, i), k):
                    y = y + rng.normal() * drawn[:, list(some)].prod(1)
            columns.append(y)
        return np.stack(columns, axis=1)

    return of


def additive(design, reach, seed=0, spill=1.0, curve=0.0):
    """Effects of neighbours that add up, also with the own treatment; `curve` bends them."""

    def of(drawn):
        rng = np.random.default_rng(seed)
        columns = []
        for i in range(design.num_units):
            coins = reached(reach, i)
            own = drawn[:, coins[0]]
            slopes = rng.normal(0.5, 0.5, (2, len(coins) - 1))
            felt = [spill * drawn[:, coins[1:]] @ s for s in slopes]
            felt = [f + curve * f**2 for f in felt]
            columns.append(rng.normal(2.0) + rng.normal() * own + felt[0] + own * felt[1])
        return np.stack(columns, axis=1)

    return of


def truth(design, outcome):
    ends = np.stack([np.zeros(design.num_coins, int), np.ones(design.num_coins, int)])
    y = outcome(ends).mean(1)
    return y[1] - y[0]


def enumerated(design, reach, outcome, estimate):
    """Mean and variance of an estimator over everything the coins may say."""
    drawn, chance = all_draws(design)
    data = network.NetworkData(outcome(drawn), drawn, design.probability, reach)
    found = np.asarray(estimate(data).estimate)
    mean = chance @ found
    return mean, chance @ (found - mean) ** 2


def reach_of(design):
    return network.interference(design, GRAPH)


@pytest.mark.parametrize("name", DESIGNS)
def test_horvitz_thompson_has_no_bias_whatever_the_outcomes(double, name):
    design = DESIGNS[name]
    reach = reach_of(design)
    outcome = any_outcome(design, reach)
    mean, _ = enumerated(design, reach, outcome, network.horvitz_thompson)
    assert mean == pytest.approx(truth(design, outcome), abs=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("name", DESIGNS)
def test_the_expansion_has_no_bias_up_to_its_order(double, name, baseline, order):
    design = DESIGNS[name]
    reach = reach_of(design)
    estimate = lambda data: network.snipe(data, order, baseline=baseline)  # noqa: E731
    outcome = limited(design, reach, order)
    mean, _ = enumerated(design, reach, outcome, estimate)
    assert mean == pytest.approx(truth(design, outcome), abs=1e-10)
    if order >= max(len(reached(reach, i)) for i in range(7)):
        return  # nothing is beyond it
    outcome = limited(design, reach, order + 1)
    mean, _ = enumerated(design, reach, outcome, estimate)
    assert abs(mean - truth(design, outcome)) > 1e-3


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("name", ["unit", "clusters"])
def test_differences_in_neighbors_are_exact_under_additive_interference(double, name, baseline):
    design = DESIGNS[name]
    reach = reach_of(design)
    outcome = additive(design, reach)
    for features in (None, np.random.default_rng(0).normal(size=(7, 2))):
        estimate = lambda data, x=features: network.dn(data, baseline=baseline, features=x)  # noqa: E731
        mean, _ = enumerated(design, reach, outcome, estimate)
        assert mean == pytest.approx(truth(design, outcome), abs=1e-10)
    # effects of neighbours that depend on the own treatment are of second order in the expansion
    mean, _ = enumerated(design, reach, outcome, lambda data: network.snipe(data, 1))
    assert abs(mean - truth(design, outcome)) > 1e-3


def test_a_mean_that_does_not_leave_out_has_a_bias(double):
    design = DESIGNS["unit"]
    reach = reach_of(design)
    outcome = additive(design, reach)

    def with_mean(data):
        mean = data.outcome.mean(-1, keepdims=True)
        return network.dn(data._replace(outcome=data.outcome - mean), baseline=False)

    mean, _ = enumerated(design, reach, outcome, with_mean)
    assert abs(mean - truth(design, outcome)) > 1e-2


def test_the_bias_is_of_second_order_in_the_spillover(double):
    design = DESIGNS["unit"]
    reach = reach_of(design)

    def bias(delta):
        outcome = additive(design, reach, spill=float(delta), curve=1.0)
        return enumerated(design, reach, outcome, network.dn)[0] - truth(design, outcome)

    assert testing.bias_order(bias, order=2).passed


@pytest.mark.parametrize("baseline", [True, False])
def test_at_one_half_order_one_and_two_are_differences_in_neighbors(double, baseline):
    design = designs.unit(7)
    reach = reach_of(design)
    drawn, _ = all_draws(design)
    y = any_outcome(design, reach)(drawn)
    data = network.NetworkData(y, drawn, design.probability, reach)
    found = network.dn(data, baseline=baseline).estimate
    for order in (1, 2):
        np.testing.assert_allclose(
            network.snipe(data, order, baseline=baseline).estimate, found, rtol=0, atol=1e-10
        )


def test_no_graph_leaves_the_difference_of_own_scores(double):
    design = DESIGNS["unit"]
    reach = network.interference(design)
    drawn, _ = all_draws(design)
    y = any_outcome(design, reach)(drawn)
    data = network.NetworkData(y, drawn, design.probability, reach)
    score = drawn / P - (1 - drawn) / (1 - P)
    for estimate in (
        lambda d: network.dn(d, baseline=False),
        network.horvitz_thompson,
        lambda d: network.snipe(d, 4, baseline=False),
    ):
        np.testing.assert_allclose(estimate(data).estimate, (score * y).mean(1), atol=1e-10)
    np.testing.assert_allclose(
        network.hajek(data).estimate, network.difference_in_means(data).estimate, atol=1e-10
    )


def test_clusters_of_one_are_the_unit_design(double):
    single = designs.cluster(np.arange(7), P)
    drawn, _ = all_draws(single)
    y = any_outcome(single, reach_of(single))(drawn)
    found = []
    for design in (DESIGNS["unit"], single):
        data = network.NetworkData(y, drawn, design.probability, reach_of(design))
        found.append([
            e(data) for e in (network.dn, network.horvitz_thompson, network.difference_in_means)
        ])  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *found)


def test_the_highest_order_is_horvitz_thompson(double):
    design = DESIGNS["two-sided"]
    reach = reach_of(design)
    drawn, _ = all_draws(design)
    data = network.NetworkData(
        any_outcome(design, reach)(drawn), drawn, design.probability, reach
    )  # fmt: skip
    most = max(len(reached(reach, i)) for i in range(7))
    np.testing.assert_allclose(
        network.snipe(data, most, baseline=False).estimate,
        network.horvitz_thompson(data).estimate, atol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("order", [1, 2, None])
def test_scores_of_coins_are_orthogonal_where_outcomes_are_fixed(double, name, order):
    """The sum of their squares is then the variance without bias: the tau that centres is zero."""
    design = DESIGNS[name]
    reach = reach_of(design)
    drawn, chance = all_draws(design)
    y = np.broadcast_to(np.random.default_rng(1).normal(size=7), (len(drawn), 7))
    pairs = weights.sorted_pairs(reach)

    def by_coin(z):
        v = weights.view(y[0], z, design.probability, reach, pairs)
        added = weights.added_weight(v, order)
        each = (added[:, 0] - added[:, 1]) * v.y[pairs[0]]
        return jax.ops.segment_sum(each, pairs[1], design.num_coins)

    scores = np.asarray(jax.jit(jax.vmap(by_coin))(drawn))
    np.testing.assert_allclose(chance @ scores, 0, atol=1e-10)
    products = np.einsum("d,di,dj->ij", chance, scores, scores)
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-9)
    estimate = (
        network.horvitz_thompson if order is None
        else lambda data: network.snipe(data, order, baseline=False)
    )  # fmt: skip
    _, variance = enumerated(design, reach, lambda _: y, estimate)
    assert np.trace(products) / 49 == pytest.approx(variance, rel=1e-10)


def test_differences_are_the_sum_of_their_scores(double):
    design = DESIGNS["unit"]
    reach = reach_of(design)
    drawn, _ = all_draws(design)
    y = any_outcome(design, reach)(drawn)
    for i in (0, 17, 100):
        v = weights.view(y[i], drawn[i], P, reach)
        for across in (True, False):
            found = differences(v, True, across=across, even=False)
            assert float(found.by_coin.sum() - found.parts.sum()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("across", [True, False])
def test_equal_probabilities_take_the_short_way_to_the_same_result(double, across):
    design = designs.unit(7, 0.3)
    reach = reach_of(design)
    drawn, _ = all_draws(design)
    y = any_outcome(design, reach)(drawn)
    v = weights.view(y[77], drawn[77], design.probability, reach)
    found = [differences(v, True, across=across, even=e) for e in (True, False)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *found)


# --- laws -------------------------------------------------------------------------------------


@given(testing.strategies.keys(), st.floats(0.1, 0.9))
def test_scale_shift_and_swapped_arms(key, p):
    design = designs.unit(7, p)
    reach = reach_of(design)
    y = np.asarray(jax.random.normal(key, (7,)))
    z = np.asarray(jax.random.bernoulli(jax.random.fold_in(key, 1), p, (7,)), int)
    data = network.NetworkData(y, z, design.probability, reach)
    swapped = network.NetworkData(y, 1 - z, 1 - design.probability, reach)
    moved = data._replace(outcome=3.0 * y + 10.0)
    for estimate in (network.dn, lambda d: network.snipe(d, 2)):
        found = estimate(data).estimate
        np.testing.assert_allclose(estimate(swapped).estimate, -found, rtol=2e-3, atol=2e-3)
        far = len(np.unique(z)) == 2  # with units of both arms left out, means move along
        if far:
            np.testing.assert_allclose(
                estimate(moved).estimate, 3 * found, rtol=0.02, atol=0.05 / min(p, 1 - p) ** 2
            )


def test_a_constant_outcome_has_no_effect():
    design = designs.unit(7)
    data = network.NetworkData(
        np.full(7, 5.0), np.array([0, 1, 0, 1, 1, 0, 0]), design.probability, reach_of(design)
    )
    assert network.dn(data).estimate == pytest.approx(0.0, abs=1e-5)
    assert abs(network.dn(data, baseline=False).estimate) > 0.5


def test_the_baseline_leaves_out_who_is_reached(double):
    design = DESIGNS["clusters"]
    reach = reach_of(design)
    rng = np.random.default_rng(3)
    y, z = rng.normal(size=7), np.array([1, 0, 0, 1])
    v = weights.view(y, z, design.probability, reach)
    each = moments(v)
    found = np.asarray(left_out(v, each, weights.by_coin(v, each)))[..., 0]
    treated = z[np.asarray(design.coin)[:, 0]]
    for coin in range(4):
        rest = np.array([i for i in range(7) if coin not in reached(reach, i)])
        for arm in (0, 1):
            those = rest[treated[rest] == arm]
            expected = y[those].mean() if len(those) else y[rest].mean()
            assert found[coin, arm] == pytest.approx(expected, abs=1e-12)


def test_a_regression_leaves_out_who_is_reached(double):
    design = designs.unit(40, 0.4)
    ring = network.graph([[i, (i + 1) % 40] for i in range(40)])
    reach = network.interference(design, ring)
    rng = np.random.default_rng(3)
    y, z, x = rng.normal(size=40), rng.integers(0, 2, 40), rng.normal(5.0, 2.0, (40, 2))
    v = weights.view(y, z, design.probability, reach, features=x)
    each = moments(v)
    found = left_out(v, each, weights.by_coin(v, each))
    for coin in (0, 7):
        rest = np.array([i for i in range(40) if coin not in reached(reach, i)])
        for arm in (0, 1):
            those = rest[z[rest] == arm]
            full = np.column_stack([np.ones(len(those)), x[those]])
            exact = np.linalg.lstsq(full, y[those], rcond=None)[0]
            fitted = np.asarray(v.x) @ np.asarray(found[coin, arm])
            # up to the little of both arms that it holds
            np.testing.assert_allclose(fitted, np.column_stack([np.ones(40), x]) @ exact, atol=0.01)


def test_small_definite_systems_are_solved(double):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 2, 4, 4))
    matrix, right = root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(4), rng.normal(size=(5, 2, 4))
    expected = np.linalg.solve(matrix, right[..., None])[..., 0]
    np.testing.assert_allclose(solve_definite(matrix, right), expected, rtol=1e-9)


def test_features_take_off_what_they_explain():
    ring = network.graph([[i, (i + 1) % 500] for i in range(500)])
    design = designs.unit(500)
    reach = network.interference(design, ring)
    data = network.experiment(
        gallery.spillovers(ring, noise=0.3).model, design, reach, key=0, num_runs=50
    )
    x = np.random.default_rng(0).normal(size=(500, 2))
    far = data._replace(outcome=data.outcome + x @ np.array([3.0, -2.0]))
    spread = [network.dn(d, features=f).estimate.std()
              for d, f in ((data, None), (far, None), (far, x))]  # fmt: skip
    assert spread[1] > 5 * spread[0]
    assert spread[2] < 1.2 * spread[0]


def test_no_one_left_to_make_a_baseline_of():
    pair = network.graph([[0, 1]])
    design = designs.unit(2)
    data = network.NetworkData(
        [1.0, 3.0], [1, 0], design.probability, network.interference(design, pair)
    )
    assert network.dn(data).estimate == network.dn(data, baseline=False).estimate


def test_overlaps_are_pairs_that_one_coin_reaches(double):
    for design in DESIGNS.values():
        reach = reach_of(design)
        block = np.asarray(reach.block)
        expected = set()
        for i, j in itertools.combinations(range(7), 2):
            a, b = sorted((int(block[i]), int(block[j])))
            if a != b and set(reached(reach, i)) & set(reached(reach, j)):
                expected.add((a, b))
        assert set(zip(reach.first.tolist(), reach.second.tolist(), strict=True)) == expected
        influence = np.random.default_rng(0).normal(size=7)
        v = weights.view(np.zeros(7), np.zeros(design.num_coins), design.probability, reach)
        sums = np.bincount(block, influence, minlength=7)
        together = (sums**2).sum() + 2 * sum(sums[a] * sums[b] for a, b in expected)
        found = float(weights.overlap_variance(v, jnp.asarray(influence)))
        assert found * 49 == pytest.approx(max(together, (sums**2).sum()), abs=1e-10)


def test_products_so_far_begin_anew_with_every_unit(double):
    unit = np.array([0, 0, 0, 1, 2, 2])
    x = np.random.default_rng(0).normal(size=(6, 2))
    whole = np.asarray(weights.products(unit, jnp.asarray(x), None))
    first = np.asarray(weights.products(unit, jnp.asarray(x), 1))
    second = np.asarray(weights.products(unit, jnp.asarray(x), 2))
    for i in range(6):
        upto = x[: i + 1][unit[: i + 1] == unit[i]]
        np.testing.assert_allclose(whole[i], (1 + upto).prod(0), atol=1e-12)
        np.testing.assert_allclose(first[i], 1 + upto.sum(0), atol=1e-12)
        pairs = sum(a * b for a, b in itertools.combinations(upto, 2)) if len(upto) > 1 else 0.0
        np.testing.assert_allclose(second[i], 1 + upto.sum(0) + pairs, atol=1e-12)


def test_without_a_list_of_overlaps_units_of_one_coin_still_count_together():
    design = designs.cluster(np.arange(40) // 8)
    y, z = np.random.default_rng(0).normal(size=40), np.array([1, 0, 1, 0, 1])
    reach = network.interference(design, overlaps=False)
    found = network.difference_in_means(network.NetworkData(y, z, design.probability, reach))
    treat = np.repeat(z, 8)
    off = np.where(treat == 1, (y - y[treat == 1].mean()) / 24, -(y - y[treat == 0].mean()) / 16)
    expected = np.sqrt((off.reshape(5, 8).sum(1) ** 2).sum())
    assert float(found.stderr) == pytest.approx(expected, rel=1e-5)


def test_many_units():
    """Squares of numbers of units are beyond 32 bits."""
    count = 60_000
    design = designs.unit(count)
    ring = network.graph(np.stack([np.arange(count), np.roll(np.arange(count), 1)], 1))
    reach = network.interference(design, ring)
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, count)
    y = 5 + z + 0.5 * np.asarray(ring.share(z)) + rng.normal(size=count)
    data = network.NetworkData(y, z, design.probability, reach)
    for estimate in (network.dn, network.horvitz_thompson):
        found = estimate(data)
        assert abs(found.estimate - 1.5) < 6 * found.stderr
        assert found.stderr < 0.2
    assert reach.first is not None
    no_list = data._replace(reach=network.interference(design, ring, overlaps=False))
    ratio = network.dn(no_list).stderr / network.dn(data).stderr
    assert 0.9 < float(ratio) <= 1.0


# --- exposures that are declared --------------------------------------------------------------


def most(treated, share):
    return (treated == 1) & (share >= 0.5), (treated == 0) & (share < 0.5)


def test_probabilities_of_declared_exposures_are_drawn():
    design = DESIGNS["unit"]
    reach = reach_of(design)
    drawn, chance = all_draws(design)
    exact = np.zeros((2, 7))
    for i in range(7):
        coins = reached(reach, i)
        others = drawn[:, coins[1:]].mean(1) if len(coins) > 1 else drawn[:, coins[0]]
        for which, found in enumerate(most(drawn[:, coins[0]], others)):
            exact[which, i] = chance @ found
    draws = 20_000
    found = drawn_chances(Same(most), draws, jax.random.key(0), P, reach)
    error = np.sqrt(exact * (1 - exact) / draws)
    assert (np.abs(np.asarray(found) - exact) < 6.5 * error + 2 / draws).all()


def test_an_exposure_that_drawing_never_meets_is_no_division_by_zero():
    design = designs.unit(7, 1e-3)
    data = network.NetworkData(np.ones(7), np.ones(7, int), design.probability, reach_of(design))
    found = network.horvitz_thompson(data, exposure=most, key=0, num_draws=10)
    assert np.isfinite(found.estimate)


def test_an_exposure_needs_a_key_and_two_arrays():
    design = DESIGNS["unit"]
    data = network.NetworkData(np.ones(7), np.ones(7, int), P, reach_of(design))
    with pytest.raises(ValueError, match="exposure: its probabilities are found by drawing"):
        network.hajek(data, exposure=most)
    with pytest.raises(ValueError, match=r"exposure: expected two arrays \[7\]"):
        network.hajek(data, exposure=lambda a, b: (a > 0, True), key=0)
    with pytest.raises(ValueError, match="num_draws"):
        network.hajek(data, exposure=most, key=0, num_draws=0)


# --- graphs and who is reached ----------------------------------------------------------------


def test_graphs_of_every_make_are_the_same():
    import networkx as nx
    from scipy import sparse

    edges = [(0, 1), (1, 2), (2, 0), (3, 3), (1, 0)]
    undirected = nx.Graph(edges)
    matrix = nx.to_numpy_array(undirected)
    made = [
        network.graph(undirected), network.graph(matrix), network.graph(matrix > 0),
        network.graph(sparse.csr_array(matrix)), network.graph(edges, num_units=4),
    ]  # fmt: skip
    for one in made:
        assert one.receiver.tolist() == [0, 0, 1, 1, 2, 2]
        assert one.sender.tolist() == [1, 2, 0, 2, 0, 1]
        assert one.degree.tolist() == [2, 2, 2, 0]
    directed = [
        network.graph(nx.DiGraph([(0, 1), (2, 1)])),
        network.graph([(0, 1), (2, 1)], directed=True),
        network.graph(np.array([[0, 0, 0], [1, 0, 2.5], [0, 0, 0]])),
    ]
    for one in directed:
        assert one.receiver.tolist() == [1, 1]
        assert one.sender.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [
        (np.ones((2, 3)), None, "square matrix"),
        ([[0, -1]], None, "from 0, got -1"),
        ([[0, 5]], 3, "num_units: expected a whole number of at least 6, got 3"),
        (np.zeros((0, 2), int), None, "no edges"),
        ("abc", None, "expected a NetworkX graph"),
        ([[0, 1], [1, 0]], None, "two edges or a matrix"),
    ],
)
def test_graphs_refuse_what_they_cannot_read(source, count, message):
    with pytest.raises(ValueError, match=message):
        network.graph(source, count)


def test_shares_of_neighbours():
    share = GRAPH.share(np.array([1, 0, 0, 1, 1, 0, 1]))
    np.testing.assert_allclose(share, [0.5, 2 / 3, 0.5, 1 / 3, 0, 1, 0], atol=1e-6)


@pytest.mark.parametrize("name", DESIGNS)
def test_interference_of_a_graph(name):
    design = DESIGNS[name]
    reach = reach_of(design)
    own = np.asarray(design.coin)
    for i in range(7):
        neighbours = np.asarray(GRAPH.sender)[np.asarray(GRAPH.receiver) == i]
        expected = sorted(set(own[neighbours].ravel()) - set(own[i]))
        assert np.asarray(reach.coin)[np.asarray(reach.unit) == i].tolist() == expected
    assert (np.diff(reach.unit) >= 0).all()


def test_interference_between_coins_and_of_pairs():
    design = DESIGNS["clusters"]
    line = network.graph([[0, 1], [1, 2], [2, 3]])
    reach = network.interference(design, between=line)
    expected = [(i, c) for i in range(7)
                for c in sorted({int(design.coin[i, 0]) - 1, int(design.coin[i, 0]) + 1})
                if 0 <= c < 4]  # fmt: skip
    assert list(zip(reach.unit.tolist(), reach.coin.tolist(), strict=True)) == expected
    # given pairs: sorted, each once, own coins left out
    pairs = (np.array([3, 0, 3, 0]), np.array([2, 0, 2, 1]))
    reach = network.interference(design, pairs=pairs)
    assert (reach.unit.tolist(), reach.coin.tolist()) == ([0, 3], [1, 2])


@pytest.mark.parametrize("name", DESIGNS)
def test_padding_changes_nothing_but_the_shape(double, name):
    design = DESIGNS[name]
    reach = reach_of(design)
    drawn, _ = all_draws(design)
    y = any_outcome(design, reach)(drawn)
    plain = network.NetworkData(
        y, drawn, design.probability, network.interference(design, GRAPH, overlaps=False)
    )
    padded = plain._replace(reach=network.interference(design, GRAPH, size=64))
    assert len(padded.reach.unit) == 64
    some = [network.horvitz_thompson, network.hajek, lambda d: network.snipe(d, 2)]
    for estimate in (*some, network.snipe if name == "two-sided" else network.dn):
        found = [estimate(d) for d in (plain, padded)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *found)
    with pytest.raises(ValueError, match="size: expected at least"):
        network.interference(design, GRAPH, size=1)


def test_interference_refuses_what_does_not_fit():
    design = DESIGNS["clusters"]
    with pytest.raises(ValueError, match="has 7 units, the design has 4 coins"):
        network.interference(design, between=GRAPH)
    with pytest.raises(ValueError, match="has 3 units, the design has 7 units"):
        network.interference(design, network.graph([[0, 1], [1, 2]]))
    with pytest.raises(ValueError, match="expected one of them"):
        network.interference(design, GRAPH, pairs=(np.zeros(1, int), np.zeros(1, int)))
    with pytest.raises(ValueError, match="expected coin from 0 to 3, got 4 to 4"):
        network.interference(design, pairs=(np.array([0]), np.array([4])))
    with pytest.raises(ValueError, match="expected whole numbers"):
        network.interference(design, pairs=(np.array([0.5]), np.array([1.0])))
    with pytest.raises(TypeError, match="expected network.graph"):
        network.interference(design, np.eye(7))


@given(st.integers(0, 50), st.sampled_from([0.0, 25.0, 100.0, 130.0]))
def test_recent_stretches(seed, window):
    rng = np.random.default_rng(seed)
    time, zone, length = rng.uniform(0, 400, 30), rng.integers(0, 3, 30), 50.0
    near = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    design = designs.switchback(time, length, zone=zone)
    unit, coin = network.recent(design, time, length, window=window, zone=zone, near=near)
    found = set(zip(unit.tolist(), coin.tolist(), strict=True))
    expected = set()
    first = np.floor(time / length).min()
    stretch = np.floor(time / length) - first
    own = design.coin[:, 0]
    for i in range(30):
        for k in range(30):  # the stretch and zone of unit k, felt by unit i
            since = time[i] - (first + stretch[k] + 1) * length
            over = stretch[k] < stretch[i]
            felt = stretch[k] == stretch[i] or (over and since < window)
            if felt and near[zone[i], zone[k]] and own[k] != own[i]:
                expected.add((i, int(own[k])))
    assert found == expected


def test_recent_refuses_what_does_not_fit():
    time, zone = np.arange(10.0), np.zeros(10, int)
    design = designs.switchback(time, 2.0)
    with pytest.raises(ValueError, match="window"):
        network.recent(design, time, 2.0, window=-1.0)
    with pytest.raises(ValueError, match="zone: expected whole numbers"):
        network.recent(design, time, 2.0, window=1.0, zone=zone + 0.5)
    with pytest.raises(ValueError, match=r"near: expected bools \[2, 2\]"):
        network.recent(design, time, 2.0, window=1.0, zone=zone + 1, near=np.eye(1))
    with pytest.raises(ValueError, match="one coin for each of 10 units"):
        network.recent(designs.unit(3), time, 2.0, window=1.0)


# --- experiments ------------------------------------------------------------------------------


def sales(design):
    treat = design("treat")
    dp.reward("sales", dist.Normal(1.0 + 2.0 * treat + GRAPH.share(treat), 0.1))
    dp.cost("price", 0.5 * treat)


def test_an_experiment_is_the_model_under_its_law():
    design = DESIGNS["clusters"]
    data = network.experiment(sales, design, reach_of(design), key=0, num_runs=400)
    assert data.outcome.shape == (400, 7)
    np.testing.assert_allclose(data.probability, design.probability, rtol=1e-6)
    p = np.asarray(design.probability)
    error = np.sqrt(p * (1 - p) / 400)
    assert (np.abs(data.drawn.mean(0) - p) < 6 * error).all()
    treat = design.treatment(data.drawn)
    mean = 1 + 1.5 * treat + jax.vmap(GRAPH.share)(treat)
    assert (np.abs(data.outcome - mean) < 0.7).all()
    assert abs(float(jnp.std(data.outcome - mean)) - 0.1) < 0.01


def test_one_run_has_no_axis_and_one_compilation_serves_all(compilations):
    design = DESIGNS["unit"]
    reach = reach_of(design)
    data = network.experiment(sales, design, reach, key=0)
    assert data.outcome.shape == (7,)
    network.dn(data)
    before = compilations()
    other = network.experiment(sales, designs.unit(7, 0.5 * P), reach, key=1)
    found = network.dn(other)
    assert compilations() == before
    assert found.estimate.shape == ()


def test_probabilities_are_those_of_the_law_that_drew():
    def biased(design):
        with dp_plate(7):
            drawn = dp.action("treat", dist.Bernoulli(0.2))
        dp.reward("sales", dist.Normal(drawn, 1.0))

    from numpyro import plate

    dp_plate = lambda n: plate("coins", n)  # noqa: E731
    data = network.experiment(biased, designs.unit(7), reach_of(designs.unit(7)), key=0)
    np.testing.assert_allclose(data.probability, 0.2, rtol=1e-6)


def test_the_total_effect_is_an_intervention():
    found = network.total_effect(sales, DESIGNS["clusters"], key=0, num_runs=4)
    assert found.estimate == pytest.approx(1.5 + 6 / 7, abs=1e-5)  # unit 6 is alone
    assert found.diagnostics["control"] == pytest.approx(1.0, abs=0.2)
    # the noise is shared, so there is none in the difference
    assert found.stderr < 1e-5

    def deaf(design):
        design("treat")
        dp.reward("sales", dist.Normal(jnp.zeros(7), 1.0))

    assert network.total_effect(deaf, DESIGNS["unit"], key=0).estimate == 0.0


def test_models_that_are_no_experiments_are_refused():
    design = DESIGNS["unit"]
    reach = reach_of(design)

    def no_reward(design):
        design("treat")

    def no_action(design):
        dp.reward("sales", jnp.zeros(7))

    def one_number(design):
        dp.reward("sales", design("treat").mean())

    def other_shape(design):
        dp.action("treat", 2)
        dp.reward("sales", jnp.zeros(7))

    for model, message in (
        (no_reward, "no reward site"),
        (no_action, r"action sites \[\]"),
        (one_number, r"reward site 'sales': expected one value per unit \[7\], got shape \[\]"),
        (other_shape, r"action site 'treat': expected shape \[7\], one coin each, got \[\]"),
    ):
        with pytest.raises(ValueError, match=message):
            network.experiment(model, design, reach, key=0)
    with pytest.raises(ValueError, match="num_runs"):
        network.experiment(sales, design, reach, key=0, num_runs=0)
    with pytest.raises(ValueError, match="num_runs"):
        network.total_effect(sales, design, key=0, num_runs=0)
    with pytest.raises(TypeError, match="reach: expected network.interference"):
        network.experiment(sales, design, GRAPH, key=0)
    with pytest.raises(TypeError, match="design: expected one of"):
        network.experiment(sales, 0.5, reach, key=0)
    with pytest.raises(ValueError, match="of 7 units, the design has 3"):
        network.experiment(sales, designs.unit(3), reach, key=0)


def test_estimators_refuse_what_they_cannot_read():
    design = DESIGNS["unit"]
    data = network.NetworkData(np.ones(7), np.ones(7, int), P, reach_of(design))
    for estimate in (network.dn, network.snipe, network.hajek):
        with pytest.raises(TypeError, match="expected NetworkData"):
            estimate(np.ones(7))
    with pytest.raises(ValueError, match=r"expected outcome \[7\]"):
        network.dn(data._replace(outcome=np.ones(6)))
    with pytest.raises(ValueError, match="coin 0 says 1 with probability 1"):
        network.dn(data._replace(probability=np.ones(7)))
    with pytest.raises(ValueError, match="order: expected a whole number from 1 to 6, got 0"):
        network.snipe(data, 0)
    with pytest.raises(ValueError, match="features: expected"):
        network.dn(data, features=np.ones(7))
    with pytest.raises(ValueError, match="level"):
        network.dn(data, level=95)
    two = DESIGNS["two-sided"]
    drawn = np.ones(two.num_coins, int)
    with pytest.raises(ValueError, match=r"Use snipe\(data, order=2\)"):
        network.dn(network.NetworkData(np.ones(7), drawn, two.probability, reach_of(two)))


def test_estimators_work_under_jit_and_vmap():
    design = DESIGNS["unit"]
    data = network.experiment(sales, design, reach_of(design), key=0, num_runs=5)
    for estimate in (network.dn, network.horvitz_thompson, network.difference_in_means):
        expected = estimate(data)
        found = jax.jit(estimate)(data)
        np.testing.assert_allclose(found.estimate, expected.estimate, rtol=1e-5)
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-5)
        rows = jax.vmap(
            lambda y, z, f=estimate: f(data._replace(outcome=y, drawn=z)).estimate
        )(data.outcome, data.drawn)  # fmt: skip
        np.testing.assert_allclose(rows, expected.estimate, rtol=1e-4, atol=1e-5)


# --- tables -----------------------------------------------------------------------------------

PEOPLE = {
    "name": ["ann", "bob", "cem", "dee"],
    "town": ["x", "x", "y", "y"],
    "spent": [3.0, 1.0, 2.0, 4.0],
    "ad": [1, 1, 0, 0],
    "chance": [0.3, 0.3, 0.6, 0.6],
}
FRIENDS = {"from": ["ann", "dee", "cem"], "to": ["cem", "ann", "ann"]}


def read(people=PEOPLE, friends=FRIENDS, **changes):
    given = {"outcome": "spent", "treated": "ad", "unit": "name", "propensity": "chance",
             "cluster_by": "town", "edges": (friends, "from", "to"), **changes}  # fmt: skip
    return network.from_table(people, **given)


def test_a_table_is_read_with_its_edges_and_clusters():
    pd = pytest.importorskip("pandas")
    for table, friends in ((PEOPLE, FRIENDS), (pd.DataFrame(PEOPLE), pd.DataFrame(FRIENDS))):
        data = read(table, friends)
        assert data.outcome.tolist() == [3.0, 1.0, 2.0, 4.0]
        assert data.drawn.tolist() == [1, 0]
        assert data.probability.tolist() == [0.3, 0.6]
        assert data.reach.own[:, 0].tolist() == [0, 0, 1, 1]
        # ann with cem and dee, who share a coin
        assert data.reach.unit.tolist() == [0, 2, 3]
        assert data.reach.coin.tolist() == [1, 0, 0]
        assert np.isfinite(network.dn(data).estimate)
    by_unit = read(cluster_by=None, propensity=None, p=0.5)
    assert by_unit.reach.coin.tolist() == [2, 3, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treated": "adv"}, "no column 'adv'.*Did you mean 'ad'"),
        ({"treated": "spent"}, "column 'spent': got 3.0 in row 0.*expected 0 or 1"),
        ({"outcome": "town"}, "column 'town': expected numbers"),
        ({"propensity": None}, "propensity and p: got neither"),
        ({"p": 0.5}, "propensity and p: got both"),
        ({"unit": None}, "edges: give unit="),
        ({"graph": GRAPH}, "edges and graph: got both"),
        ({"edges": (FRIENDS, "from")}, r"expected \(table, sender column, receiver column\)"),
        ({"edges": ({"from": ["eve"], "to": ["ann"]}, "from", "to")},
         "column 'from': got eve in row 0.*expected a name in column 'name'"),
        ({"people": {**PEOPLE, "ad": [1, 0, 0, 0]}},
         "column 'ad': got 0.0 in row 1.*the same value in all rows of a cluster"),
        ({"people": {**PEOPLE, "chance": [0.3, 0.3, 1.0, 1.0]}},
         "column 'chance': got 1.0 in row 2.*strictly between 0 and 1"),
        ({"people": {**PEOPLE, "name": ["ann", "ann", "cem", "dee"]}},
         "column 'name': 'ann' stands in 2 rows"),
        ({"people": {**PEOPLE, "spent": [3.0, float("nan"), 2.0, 1.0]}}, "column 'spent': got nan"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        read(**change)


# --- statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 10])
def test_intervals_cover(clusters):
    """400 experiments: a share of .95 is met within .062 but for a probability of 1e-8."""
    ring = network.graph([[i, (i + k) % 600] for i in range(600) for k in (1, 2, 3)])
    market = gallery.spillovers(ring, response="linear")
    design = designs.cluster(np.arange(600) // clusters)
    reach = network.interference(design, ring)
    data = network.experiment(market.model, design, reach, key=3, num_runs=400)
    estimators = [network.dn, lambda d: network.dn(d, baseline=False)]
    if clusters > 1:
        estimators += [network.horvitz_thompson]
    for estimate in estimators:
        found = estimate(data)
        lower, upper = found.interval
        cover = np.mean((lower <= market.effect) & (market.effect <= upper))
        assert 0.888 < cover <= 1.0
        assert abs(found.estimate.mean() - market.effect) < 6 * found.estimate.std() / 20
        assert found.stderr.mean() == pytest.approx(found.estimate.std(), rel=0.25)


def test_the_baseline_takes_most_of_the_noise():
    ring = network.graph([[i, (i + k) % 600] for i in range(600) for k in (1, 2, 3)])
    market = gallery.spillovers(ring, base=5.0)
    design = designs.unit(600)
    data = network.experiment(
        market.model, design, network.interference(design, ring), key=1, num_runs=100
    )
    plain, based = (network.dn(data, baseline=b).estimate.std() for b in (False, True))
    assert based < plain / 5
