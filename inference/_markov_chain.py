r"""Finite Markov chains under a policy: checked, solved, and expanded in the policy.

One set of formulas for three criteria. With the mixed kernel P, a row of weights and a resolvent,

- average reward: the stationary law :math:`\rho`, :math:`Z = (I - P + 1\rho)^{-1}`;
- discounted: :math:`\mu (I - \gamma P)^{-1}`, :math:`N = \gamma (I - \gamma P)^{-1}`, with the
  initial law :math:`\mu`;
- total reward over T steps: sums over the steps to go.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import linalg, sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import splu

from decisionppl.inference._kernel import Kernel

_DENSE = 400  # up to here all eigenvalues are found
_FULL = 0.1  # share of entries from which a matrix is solved as a dense one
_TERMS = 40  # from which the rate of a series is read
_ROUNDING = 1e-12
_FEW = 8  # states that an error names


class Chain(NamedTuple):
    """A chain under a policy, ready to be asked.

    Attributes:
        transition: sparse [states, next states].
        reward: [states].
        weights: row of weights of the criterion, [states].
        resolve: `(vector [states]) -> vector`: Z or N.
        resolve_row: the same from the left.
        initial: law of the first state, or None.
        discount: or None.
    """

    transition: sparse.csr_array
    reward: np.ndarray
    weights: np.ndarray
    resolve: Callable
    resolve_row: Callable
    initial: np.ndarray | None
    discount: float | None


def policy_table(kernel: Kernel, policy: Any = None) -> np.ndarray:
    """Probabilities of the arms in every state, [states, arms].

    Args:
        kernel: of one world.
        policy: None is the logging law; a number is the probability of arm 1 of two; an array
            [arms] or [states, arms].

    Raises:
        ValueError: not probabilities, or of another shape.
    """
    if kernel.probability.ndim > 1:
        raise ValueError(
            "kernel: this one has several draws of its parameters. Use effects.posterior, or the "
            "kernel of one world."
        )
    arms, states = kernel.reward.shape
    if policy is None:
        return kernel.propensity
    table = np.asarray(policy, float)
    if table.ndim == 0:
        if arms != 2:
            raise ValueError(
                f"policy: one number is the probability of arm 1 of two, this kernel has {arms} "
                "arms. Give an array [arms] or [states, arms]."
            )
        table = np.stack([1 - table, table])
    if table.shape not in ((arms,), (states, arms)):
        raise ValueError(
            f"policy: expected a number, [{arms}] or [{states}, {arms}], got {list(table.shape)}."
        )
    wrong = ~((table >= 0).all(-1) & np.isclose(table.sum(-1), 1, rtol=0, atol=1e-9))
    if wrong.any():
        raise ValueError(
            f"policy: expected probabilities that sum to one, got {table[wrong][0].tolist()}."
            if table.ndim > 1
            else f"policy: expected probabilities that sum to one, got {table.tolist()}."
        )
    return np.broadcast_to(table, (states, arms))


def mixed(kernel: Kernel, table: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """Transition probabilities and rewards under a policy."""
    weight = kernel.probability * table[kernel.source, kernel.arm]
    size = kernel.num_states
    transition = sparse.csr_array((weight, (kernel.source, kernel.target)), shape=(size, size))
    transition.eliminate_zeros()
    return transition, (table.T * kernel.reward).sum(0)


def initial_law(kernel: Kernel, initial: Any) -> np.ndarray:
    """Law of the first state, [states]."""
    size = kernel.num_states
    law = np.full(size, 1 / size) if initial is None else np.asarray(initial, float)
    if law.ndim == 0 and float(law).is_integer() and 0 <= law < size:
        law = np.eye(1, size, int(law))[0]
    if law.shape != (size,) or (law < 0).any() or not np.isclose(law.sum(), 1, atol=1e-9):
        raise ValueError(
            f"initial: expected the number of a state or probabilities [{size}], got {initial!r}."
        )
    return law


def make_chain(
    kernel: Kernel, table: np.ndarray, discount: float | None = None, initial: Any = None,
    name: str = "the chain",
) -> Chain:  # fmt: skip
    """A chain under a policy with its weights and resolvents."""
    transition, reward = mixed(kernel, table)
    size = len(reward)
    identity = sparse.csr_array(sparse.eye_array(size))
    if discount is not None:
        if not 0 < discount < 1:
            raise ValueError(
                f"discount: expected a number between 0 and 1, got {discount!r}. Without one the "
                "average reward is meant."
            )
        law = initial_law(kernel, initial)
        solve, solve_row = _factored(identity - discount * transition)
        return Chain(
            transition, reward, solve_row(law), lambda v: discount * solve(v),
            lambda v: discount * solve_row(v), law, discount,
        )  # fmt: skip
    recurrent = _ergodic(transition, kernel.states, name)
    law, solve, solve_row = _stationary(transition, identity, recurrent)

    def resolve(v: np.ndarray) -> np.ndarray:
        level = law @ v
        found = solve(v - level)
        return found - law @ found + level

    def resolve_row(x: np.ndarray) -> np.ndarray:
        total = x.sum()
        found = solve_row(x - total * law)
        return found - (found.sum() - total) * law

    return Chain(transition, reward, law, resolve, resolve_row, None, None)


def _factored(matrix: Any) -> tuple[Callable, Callable]:
    """Solutions of `matrix @ x = v` and of `x @ matrix = v`; diagonally dominant by rows."""
    if matrix.nnz > _FULL * matrix.shape[0] ** 2:
        dense = linalg.lu_factor(matrix.toarray())
        return partial(linalg.lu_solve, dense), partial(linalg.lu_solve, dense, trans=1)
    factors = splu(
        matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )  # fmt: skip
    return factors.solve, lambda v: factors.solve(v, trans="T")


def _stationary(
    transition: sparse.csr_array, identity: sparse.csr_array, recurrent: np.ndarray
) -> tuple[np.ndarray, Callable, Callable]:
    """The stationary law, and solutions of `(I - P) x = v` with one entry fixed at zero.

    The entry should be that of a state which is often visited, or the system is all but singular:
    it is found by the law of a chain that starts anew now and then.
    """
    size = len(recurrent)
    start = recurrent / recurrent.sum()
    renewal = 1e-4
    _, near = _factored((1 + renewal) * identity - transition)
    anchor = int(np.argmax(near(renewal * start) * recurrent))
    others = np.delete(np.arange(size), anchor)
    if size == 1:
        return np.ones(1), np.zeros_like, np.zeros_like
    reduced = (identity - transition)[others][:, others]
    solve, solve_row = _factored(reduced)

    def full(found: np.ndarray) -> np.ndarray:
        out = np.zeros((size, *found.shape[1:]))
        out[others] = found
        return out

    law = full(solve_row(transition[[anchor]].toarray()[0][others]))
    law[anchor] = 1.0
    law = np.where(recurrent, np.maximum(law, 0.0), 0.0)
    law = law / law.sum()
    return law, lambda v: full(solve(v[others])), lambda v: full(solve_row(v[others]))


def _ergodic(transition: sparse.csr_array, states: Any, name: str) -> np.ndarray:
    """Which states recur; an error where there are several classes of them, or a period."""
    count, label = csgraph.connected_components(transition, directed=True, connection="strong")
    label = label.astype(int)
    source, target = transition.nonzero()
    leaves = label[source] != label[target]
    closed = np.setdiff1d(np.arange(count), label[source[leaves]])
    if len(closed) > 1:
        named = [_named(states, np.nonzero(label == c)[0]) for c in closed[:2]]
        raise ValueError(
            f"{name} is reducible: from {named[0]} it never reaches {named[1]}"
            f"{' (and there are more such classes)' if len(closed) > 2 else ''}, so its average "
            "reward depends on where it starts. Leave out states that cannot be reached, or use a "
            "discount or a horizon with an initial law."
        )
    recurrent = label == closed[0]
    if (transition.diagonal()[recurrent] > 0).any():
        return recurrent  # who may stay is not periodic
    inside = recurrent[source] & recurrent[target]
    root = int(np.argmax(recurrent))
    depth = csgraph.dijkstra(transition, indices=root, unweighted=True)
    excess = depth[source[inside]] + 1 - depth[target[inside]]
    period = int(np.gcd.reduce(np.abs(excess).astype(int)))
    if period > 1:
        raise ValueError(
            f"{name} is periodic: it returns to {_named(states, np.array([root]))} only after "
            f"multiples of {period} steps, so that it does not settle. Model a step that may stay "
            "(a lazy or uniformised chain), or use a discount or a horizon."
        )
    return recurrent


def _named(states: Any, which: np.ndarray) -> str:
    shown = [jax.tree.map(lambda x, i=i: np.asarray(x)[i].tolist(), states) for i in which[:_FEW]]
    more = f" and {len(which) - _FEW} more" if len(which) > _FEW else ""
    return f"{'state' if len(shown) == 1 else 'states'} {', '.join(map(str, shown))}{more}"


def shrinkage(apply: Callable, start: np.ndarray, weights: np.ndarray) -> float:
    """What the terms `weights @ apply^k(start)` of a series shrink by in the long run.

    The spectral radius of the linear map [states] to itself; in chains of many states, where most
    may be too rare to be seen in the terms, the rate of the terms themselves.
    """
    size = len(start)
    if size <= _DENSE:
        return float(np.abs(np.linalg.eigvals(apply(np.eye(size)))).max())
    now, log, logs = start, 0.0, []
    for _ in range(_TERMS):
        now = apply(now)
        length = weights @ np.abs(now)
        term = abs(weights @ now)
        if not term > _ROUNDING * length:
            break
        logs.append(log + np.log(term))
        now, log = now / length, log + np.log(length)
    half = len(logs) // 2  # the first terms have not settled
    if len(logs) < 4:
        return 0.0
    return float(np.exp((logs[-1] - logs[half]) / (len(logs) - 1 - half)))
