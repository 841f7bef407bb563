"""COCOB: bets on the sign of each gradient, with no step size at all."""

from typing import Any

import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    chain,
    check_nonnegative,
    ENTRYWISE,
    Extra,
    free_of,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    Tree,
    tree,
)

from ._recipe import factor


class COCOBState(AbstractState[P]):
    """State of [`contrib_algos.COCOB`][]."""

    init_particles: P  # w_1
    cumulative_gradients: P  # G_t
    scale: P  # L_t, the largest gradient of a coordinate so far
    subgradients: P  # \theta_t
    reward: P  # R_t


class COCOB(AbstractTransform[COCOBState[Tree]]):
    r"""Continuous coin betting: each coordinate has a gambler of its own.

    For each coordinate, with $c_t$ its gradient:

    $$\begin{aligned}
      L_t &= \max(L_{t-1}, |c_t|) \\
      G_t &= G_{t-1} + |c_t| \\
      R_t &= \max(R_{t-1} - c_t (w_t - w_1), 0) \\
      \theta_t &= \theta_{t-1} - c_t \\
      w_{t+1} &= w_1 + \frac{\theta_t}{L_t \max(G_t + L_t, \alpha L_t)} (L_t + R_t)
    \end{aligned}$$

    from $L_0 = \epsilon$ and zeros. Equivariant to translations and permutations.
    Partition-invariant. A complex coordinate is a gambler in the plane, with moduli in
    place of $|c_t|$ and the real inner product in place of $c_t (w_t - w_1)$.

    ??? cite "Reference"

        Orabona & Tommasi, *Training Deep Networks without Learning Rates Through Coin
        Betting*, arXiv 1705.07795, algorithm 2.

    **Arguments:**

    - `alpha`: $\alpha \ge 0$: the first bets are the fraction $1/\alpha$ of what there
        is to bet; dimensionless.
    - `eps`: $\epsilon$, in units of the gradients.

    **Raises:** `ValueError` for a negative argument.

    **Differences from optax.contrib and from the paper:**

    - Statistics are float32 or wider whatever the parameters are, so that `eps` does
        not round to 0 in float16, where optax divides by it.
    - Complex coordinates, of which optax compares numbers that have no order.
    - Gradients beyond $2^{48}$ in float32 ($2^{384}$ in float64) count as that much, so
        that their sums stay finite.
    """

    alpha: RealLike = 100
    eps: RealLike = 1e-8

    def __post_init__(self):
        check_nonnegative(self, "alpha", "eps")

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which are where it has put its bets."""
        return frozenset({"params", "iterates"})

    @property
    def laws(self) -> frozenset[str]:
        """Each coordinate bets by itself."""
        return ENTRYWISE | free_of(self.eps, "gradient_scale")

    def start(self, params: Tree) -> COCOBState[Tree]:
        zeros = tree.accumulator_like(params, real=True)
        return COCOBState(
            init_particles=params,
            cumulative_gradients=zeros,
            scale=tree.map(lambda a, eps: a + eps, zeros, self.eps),
            subgradients=tree.accumulator_like(params),
            reward=tree.accumulator_like(params, real=True),
        )

    def step(
        self, grads: Tree, state: COCOBState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, COCOBState[Tree]]:
        c, x0 = tree.saturate(grads), tree.widen(state.init_particles)
        moved = tree.sub(tree.widen(params), x0)

        def won(r: Any, c: Any, d: Any) -> Any:
            return jnp.maximum(r - (jnp.conj(c) * d).real, 0)

        def bet(theta: Any, largest: Any, total: Any, r: Any, alpha: Any) -> Any:
            fraction = divide(theta, jnp.maximum(total + largest, alpha * largest))
            return fraction * (1 + divide(r, largest))

        divide = tree.divider(self.eps)
        new_state = COCOBState(
            init_particles=state.init_particles,
            cumulative_gradients=tree.map(
                lambda total, c: total + jnp.abs(c), state.cumulative_gradients, c
            ),
            scale=tree.map(
                lambda largest, c: jnp.maximum(largest, jnp.abs(c)), state.scale, c
            ),
            subgradients=tree.sub(state.subgradients, c),
            reward=tree.map(won, state.reward, c, moved),
        )
        bets = tree.map(
            bet,
            new_state.subgradients,
            new_state.scale,
            new_state.cumulative_gradients,
            new_state.reward,
            self.alpha,
        )
        return tree.sub(bets, moved), new_state

    def metrics(self, state: COCOBState[Tree]) -> dict[str, Scalar]:
        """`cocob/reward`: $\\sum R_t$ over all coordinates, what they have won."""
        return {"cocob/reward": tree.sum(lambda r: r, state.reward)}


def cocob(
    learning_rate: RealOrSchedule = 1.0,
    alpha: RealLike = 100,
    eps: RealLike = 1e-8,
    weight_decay: RealLike = 0,
    mask: Any = None,
) -> AbstractTransform:
    """[`contrib_algos.COCOB`][] of decayed gradients times `learning_rate`.

    **Arguments:**

    - `learning_rate`: a factor of the gradients, or a schedule. The rule is free of
        their scale, so that this is no step size: a constant does nothing, and a
        schedule weights the gradients of different steps.
    - `alpha`, `eps`: as for [`contrib_algos.COCOB`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import cocob
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = cocob()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state, step = opt.init(x), jax.jit(opt.update)
        >>> for _ in range(200):
        ...     updates, state = step(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> bool(f(x) < 1e-2)
        True

        ```
    """
    rule = COCOB(alpha, eps)
    return chain(
        add_decayed_weights(weight_decay, mask), factor("cocob", learning_rate), rule
    )
