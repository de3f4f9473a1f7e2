"""A policy that is a program, as the static argument of a compiled function."""

from collections.abc import Callable

import jax
from jax.tree_util import Partial

from decisionppl._play import Same
from decisionppl.inference._program import is_array


class Rule:
    """What of a policy is compiled for: of a `jax.tree_util.Partial`, all but its arrays.

    Policies that differ in the values of these arrays are one program. What else a Partial holds,
    numbers among it, belongs to the program, as it may decide about shapes.
    """

    def __init__(self, policy: Callable) -> None:
        self.fixed: tuple = ()
        self.structure = None
        self.program = Same(policy)
        if isinstance(policy, Partial):
            leaves, self.structure = jax.tree.flatten(policy)
            # an int and a float that are equal are different arguments
            self.fixed = tuple(None if is_array(x) else (type(x), x) for x in leaves)
            self.program = Same(policy.func)

    def __hash__(self) -> int:
        return hash((self.program, len(self.fixed)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule) or self.program != other.program:
            return False
        return self.structure == other.structure and self.fixed == other.fixed

    def arrays(self, policy: Callable) -> list:
        """The arrays of the policy, which are not compiled for."""
        if self.structure is None:
            return []
        return [x for x in jax.tree.leaves(policy) if is_array(x)]

    def policy(self, arrays: list) -> Callable:
        """The policy again."""
        if self.structure is None:
            return self.program.value
        given = iter(arrays)
        leaves = [next(given) if x is None else x[1] for x in self.fixed]
        return jax.tree.unflatten(self.structure, leaves)
