"""What `show` says of a model: every site and role, and the dependencies that there are."""

import sys

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib.figure import Figure
from numpyro.contrib.control_flow import cond, scan

import decisionppl as dp
from decisionppl import models
from decisionppl._play import example_run
from decisionppl._roles import role_of
from decisionppl._show import ModelView
from decisionppl._show_draw import _layout
from decisionppl.models import GALLERY, data_mixture, rental_marketplace, replenishment, sequences


def bandit(x):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([3, 2]).to_event(2))
    arm = dp.action("arm", 3, given=x)
    dp.reward("click", dist.BernoulliLogits(w[arm] @ x))


def hierarchy(x):
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    with numpyro.plate("arms", 4):
        level = numpyro.sample("level", dist.Normal(0, spread))
    season = dp.context("season", dist.Normal(x, 1))
    arm = dp.action("arm", 4, given={"season": season})
    mean = numpyro.deterministic("mean", level[arm] + season)
    y = dp.outcome("y", dist.Normal(mean, 1.0))
    dp.reward("gain", 2 * y)
    dp.cost("price", 0.1 * arm)
    numpyro.factor("nothing", -0.0 * spread)


def dose():
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    f = numpyro.sample("f", dp.GaussianProcess(dp.kernels.Matern52(scale)))
    at = dp.action("dose", dist.Uniform(0, 2))
    dp.outcome("y", dist.Normal(f(at), 0.1))
    dp.reward("value", -f(at))


def slate():
    worth = numpyro.sample("worth", dist.Normal(0, 1).expand([5]).to_event(1))
    dp.reward("y", dist.Normal(worth[dp.action("items", dp.Subsets(5, 2))].sum(), 1))


def sequence(length):
    p = numpyro.sample("p", dist.Beta(1, 1).expand([2]).to_event(1))

    def step(state, _):
        count, last = state
        a = dp.action("a", 2, given=last)
        y = dp.reward("y", dist.Bernoulli(p[a] * 0.9**count))
        return (count + y, a), y

    (count, _), ys = scan(step, (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), None,
                          length=length)  # fmt: skip
    dp.outcome("total", dist.Normal(ys.sum() + count, 1.0))


def test_dependencies_of_a_bandit():
    view = dp.show(bandit, jnp.ones(2))
    assert [n.name for n in view.arguments] == ["x"]
    assert [(n.name, n.role, n.law) for n in view.sites] == [
        ("w", "latent", "Normal(0, 1)"),
        ("arm", "action", "Categorical(3 equal)"),
        ("click", "reward", "Bernoulli"),
    ]
    assert (view["w"].shape, view["arm"].shape) == ((3, 2), ())
    assert (view["w"].parents, view["arm"].parents, view["arm"].arguments) == ((), (), ())
    assert view["arm"].given == ("x",)
    assert view["arm"].support == "integers 0 to 2"
    assert (view["click"].parents, view["click"].arguments) == (("w", "arm"), ("x",))
    with pytest.raises(KeyError, match="no site 'v'; the model has"):
        view["v"]


def test_dependencies_are_direct_and_know_every_role():
    view = dp.show(hierarchy, 1.0)
    found = {n.name: (n.role, n.parents, n.arguments) for n in view.sites}
    assert found == {
        "spread": ("latent", (), ()),
        "level": ("latent", ("spread",), ()),
        "season": ("context", (), ("x",)),
        "arm": ("action", (), ()),
        "mean": ("computed", ("level", "season", "arm"), ()),
        "y": ("outcome", ("mean",), ()),
        "gain": ("reward", ("y",), ()),
        "price": ("cost", ("arm",), ()),
        "nothing": ("factor", ("spread",), ()),
    }
    assert view["arm"].given == ("season",)
    assert view["level"].inside == ("arms of 4",)
    assert view["spread"].law == "HalfNormal(2)"
    assert view["spread"].support == "positive"


def test_functions_are_values():
    view = dp.show(dose)
    assert view["f"].value == "function"
    assert view["f"].parents == ("scale",)
    assert view["y"].parents == ("f", "dose")
    assert view["value"].parents == ("f", "dose")
    assert view["dose"].support == "0 to 2"
    assert "a function" in str(view)


def test_a_markov_step_has_states_in_and_out():
    view = dp.show(rental_marketplace.rental_marketplace(10, unknown=True).step, 3)
    assert [n.name for n in view.arguments] == ["free"]
    assert view["treat"].given == ("free",)
    assert view["booking"].parents == ("event", "utility", "treat")
    assert view["free"].role == "state"
    assert view["free"].arguments == ("free",)
    assert view["free"].parents == ("booking", "return")
    stock = replenishment.replenishment(3)
    shown = dp.show(stock.step, stock.init)
    assert (shown.arguments[0].law, shown.arguments[0].shape) == ("Stock", None)
    assert shown["order"].given == ("state", "demand")
    # an argument and a site of one name are two nodes
    assert len(_layout(view).nodes) == len(view.sites) + 1


def test_subsets():
    view = dp.show(slate)
    assert view["items"].shape == (2,)
    assert view["items"].support == "subsets, 2 of 5"
    assert view["y"].parents == ("worth", "items")


def test_loops_are_shown_by_one_step():
    view = dp.show(sequence, 5)
    assert view["a"].inside == view["y"].inside == ("scan of 5",)
    assert (view["a"].shape, view["y"].shape) == ((), ())
    assert view["a"].given == ("a (step before)",)
    assert (view["a"].parents, view["a"].before) == ((), ())
    assert (view["y"].parents, view["y"].before) == (("p", "a"), ("y",))
    assert (view["total"].parents, view["total"].inside) == (("y",), ())
    urn = dp.show(sequences.polya_urn().sequence, 4)
    assert (urn["y"].role, urn["y"].before) == ("outcome", ("y",))


def test_short_loops_two_loops_and_conditioned_ones():
    assert dp.show(sequence, 1)["y"].before == ()

    def two():
        def walk(name):
            return lambda at, _: (numpyro.sample(name, dist.Normal(at, 1)),) * 2

        end, _ = scan(walk("x"), jnp.zeros(()), None, length=3)
        scan(walk("z"), end, None, length=4)

    view = dp.show(two)
    assert (view["x"].before, view["z"].before, view["z"].parents) == (("x",), ("z",), ("x",))
    assert view["z"].inside == ("scan 2 of 4",)
    logged = numpyro.handlers.condition(two, {"x": jnp.arange(3.0)})
    seen = dp.show(logged)
    assert (seen["x"].role, seen["x"].shape, seen["z"].parents) == ("observed", (), ("x",))


def test_branches_depend_on_their_condition():
    def model():
        up = numpyro.sample("up", dist.Bernoulli(0.5))
        at = numpyro.sample("at", dist.Normal(0, 1))
        x = cond(up == 1, lambda m: numpyro.sample("x", dist.Normal(m, 1)),
                 lambda m: numpyro.sample("x", dist.Normal(0.0, 1)), at)  # fmt: skip
        dp.outcome("y", dist.Normal(x, 1))

    view = dp.show(model)
    assert view["x"].parents == ("up", "at")
    assert view["y"].parents == ("up", "x")


@pytest.mark.parametrize("name", GALLERY)
def test_every_site_and_role_of_the_gallery(name):
    problem = models.build(name)
    view = dp.show(problem.model, *problem.args)
    trace = example_run(problem.model, problem.args)
    assert [n.name for n in view.sites] == list(trace)
    for site in view.sites:
        role = role_of(trace[site.name])
        assert site.role == role or (role is None and site.role in ("latent", "computed"))
        assert site.shape == np.shape(trace[site.name]["value"])
        assert site.name in str(view)
    rewards = [n for n in view.sites if n.role == "reward"]
    assert all(n.parents for n in rewards)
    shown = view.to_dict()
    assert ModelView.from_dict(shown) == view
    assert view._drawn().axes[0].texts


def test_bounds_that_vary_are_not_named():
    def model(most):
        count = numpyro.sample("count", dist.Binomial(most, 0.5))
        top = numpyro.sample("top", dist.HalfNormal(1.0))
        numpyro.sample("part", dist.Binomial(count, 0.5))
        numpyro.sample("share", dist.Uniform(0.0, top))
        numpyro.sample("beyond", dist.Pareto(top, 2.0))

    view = dp.show(model, 7)
    assert view["count"].support == "integers 0 to 7"
    assert view["part"].support == "integers 0 to ..."
    assert view["share"].support == "0 to ..."
    assert view["beyond"].support == "above ..."
    assert (view["count"].law, view["share"].law) == ("Binomial", "Uniform")


def test_mixtures_of_the_gallery():
    view = dp.show(data_mixture.surface(3, [1e6, 1e8]))
    assert {n.role for n in view.sites} >= {"action", "cost", "reward", "latent"}


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="model: expected a function with NumPyro sites, got int"):
        dp.show(3)

    def twice():
        numpyro.sample("a", dist.Normal(0, 1))
        dp.outcome("a", dist.Normal(0, 1))

    with pytest.raises(ValueError, match="'a' is declared twice"):
        dp.show(twice)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        dp.show(bandit)


def test_the_html_is_escaped_and_holds_the_graph():
    def model():
        numpyro.sample("<script>", dist.Normal(0, 1))

    model.__name__ = "<b>"
    shown = dp.show(model)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "<b><b>" not in shown
    assert 'src="data:image/png;base64,iVBOR' in shown


def test_boxes_do_not_overlap_and_arrows_point_down():
    found = _layout(dp.show(hierarchy, 1.0))
    for edge in found.edges:
        assert found.places[edge.source][1] > found.places[edge.target][1]
    names = list(found.nodes)
    for i, a in enumerate(names):
        for b in names[:i]:
            (xa, ya), (xb, yb) = found.places[a], found.places[b]
            apart = abs(xa - xb) - (found.width[a] + found.width[b]) / 2
            assert ya != yb or apart > 0.29
    wide, tall = found.size
    assert all(abs(x) < wide / 2 and -tall < y <= 0 for x, y in found.places.values())


def test_graphs_are_drawn_into_axes_and_written_for_graphviz():
    view = dp.show(sequence, 5)
    ax = Figure().add_subplot()
    assert view.plot(ax, title="runs") is ax
    assert ax.get_title() == "runs"
    words = {t.get_text().split("\n")[0] for t in ax.texts if t.get_text()}
    assert words == {"length", "p", "a", "y", "total"}
    lines = view.dot().splitlines()
    assert lines[0] == "digraph model {"
    assert any('label="scan of 5"' in line for line in lines)
    assert any("shape=box" in line and '"a\\naction' in line for line in lines)
    assert sum("->" in line for line in lines) == len(_layout(view).edges)
    assert sum("style=dotted" in line for line in lines) == 2
    assert view.dot().count("{") == view.dot().count("}")


def test_graph_says_what_is_missing(monkeypatch):
    view = dp.show(slate)
    monkeypatch.setitem(sys.modules, "graphviz", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionppl\[plot\]'"):
        view.graph()
    fake = type(sys)("graphviz")
    fake.Source = str
    monkeypatch.setitem(sys.modules, "graphviz", fake)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs the program dot"):
        view.graph()
    monkeypatch.setattr("shutil.which", lambda name: "dot")
    assert view.graph() == view.dot()


def test_files_of_later_formats_are_refused():
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        ModelView.from_dict({"format": 99})
