"""Digits whose classifier is to be evaluated; public through `decisionppl.models.labelling`."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import decisionppl as dp
from decisionppl import lookahead
from decisionppl.models._labelling_clusters import Labelling, regression

_OF_CHANCES = 1.5  # next to principal components, whose standard deviations are .8 to .4


def correctness(
    dim: int = 20, *, lengthscale: float = 1.0, variance: float = 0.2, noise: float = 0.2
) -> Callable:
    """Whether a classifier is right, as a smooth function of features; see `digits`.

    Args:
        dim: number of features.
        lengthscale, variance, noise: as for `regression`; the defaults were chosen on a small grid
            for ten divisions of the digits (seeds 100 to 109), which no result uses.

    Returns:
        A one-round model without arguments, of prior mean 1/2.

    Raises:
        ValueError: a scale that is not positive.

    Example:
        >>> import decisionppl as dp
        >>> from decisionppl.models import labelling
        >>> dp.play(labelling.correctness(2), 0)()["x"]["value"].shape
        (2,)
    """
    return regression(dim, lengthscale=lengthscale, variance=variance, noise=noise, mean=0.5)


def digits(
    seed: int,
    predictor: Callable | None = None,
    *,
    dim: int = 10,
    num_clusters: int = 20,
    num_seen: int = 10,
    num_trained: int = 100,
    num_labelled: int = 50,
    num_candidates: int = 500,
) -> Labelling:
    """Is a classifier of digits right where it was not trained? Real images, biased labels.

    The 1,797 images form clusters (k-means on their principal components). Of the images in
    `num_seen` clusters, drawn at random, some train the classifier, and some say at the start how
    often it is right; half of the pool is from these clusters too, half from the others. The
    population are all other images, most of them from clusters of which no label was seen. Needs
    scikit-learn.

    Args:
        seed: of the clusters and of the division.
        predictor: the classifier under evaluation, `images [n, 64] -> probabilities [n, 10]`,
            pixels from 0 to 1; None trains a logistic regression on the training images.
        dim: principal components; the inputs are these and 1.5 times the ten probabilities.
        num_clusters, num_seen: clusters, and how many of them the labelled set shows.
        num_trained: images that train the classifier.
        num_labelled: labelled images beside them.
        num_candidates: images in the pool.

    Returns:
        Labelling; labels are 1.0 where the classifier is right, the functional is its mean over the
        population, and `truth` the accuracy there.

    Raises:
        ValueError: numbers of images or clusters that cannot be had, or a predictor whose result
            has another shape.

    Example:
        >>> from decisionppl.models import labelling
        >>> found = labelling.digits(0)
        >>> known = found.labelled.sites["label"].mean()
        >>> found.candidates["x"].shape, bool(known > found.truth)
        ((500, 20), True)
    """
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    if not 1 <= num_seen < num_clusters:
        raise ValueError(
            f"num_seen: expected from 1 to fewer than the {num_clusters} clusters, got {num_seen}."
        )
    images, digit = (np.asarray(v) for v in load_digits(return_X_y=True))
    images = images / 16.0
    rng = np.random.default_rng(seed)
    x = PCA(dim, random_state=0).fit_transform(images)
    restarts: Any = 2
    cluster = KMeans(num_clusters, n_init=restarts, random_state=seed).fit_predict(x)
    seen = np.isin(cluster, rng.permutation(num_clusters)[:num_seen])
    near, far = (rng.permutation(np.flatnonzero(s)) for s in (seen, ~seen))
    half = num_candidates // 2
    sizes = [num_trained, num_labelled, half]
    if sum(sizes) >= len(near) or num_candidates - half >= len(far):
        raise ValueError(
            f"{sum(sizes)} images are asked for of {len(near)} in the clusters seen, and "
            f"{num_candidates - half} of {len(far)} in the others; a population must be left. Ask "
            "for fewer."
        )
    trained, known, pool, rest = np.split(near, np.cumsum(sizes))
    pool = np.concatenate([pool, far[: num_candidates - half]])
    population = np.concatenate([rest, far[num_candidates - half :]])
    if predictor is None:
        predictor = _trained(images[trained], digit[trained])
    chance = np.asarray(predictor(images))
    if chance.shape != (len(images), 10):
        raise ValueError(
            f"predictor: expected probabilities [{len(images)}, 10], got shape {chance.shape}."
        )
    right = jnp.asarray(chance.argmax(1) == digit, float)
    # what a classifier thinks it sees says much about whether it is right
    x = jnp.asarray(np.column_stack([x, _OF_CHANCES * chance]), float)
    goal = lookahead.mean_outcome({"x": x[population]})
    labelled = dp.Rows((), {"x": x[known], "label": right[known]}, jnp.ones(num_labelled, bool))
    return Labelling(labelled, {"x": x[pool]}, right[pool], goal, goal(right[population]))


def _trained(images: np.ndarray, digit: np.ndarray) -> Callable:
    """Probabilities of all ten digits, also of those that were not seen."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=1000).fit(images, digit)

    def predictor(images: np.ndarray) -> np.ndarray:
        chance = np.zeros((len(images), 10))
        chance[:, fitted.classes_] = fitted.predict_proba(images)
        return chance

    return predictor
