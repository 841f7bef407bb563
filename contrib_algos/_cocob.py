"""COCOB: a rule without a step size, which bets on the sign of each gradient."""

import jax.numpy as jnp
from jaxtyping import Array

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import ENTRYWISE, Laws, laws_if_zero, Needs, PARAMS
from contrib_core.ranges import NonNegative, Rate
from contrib_core.typing import Mask, P, RealLike, Scalar, Tree

from ._recipe import factored


class COCOBState(AbstractState):
    """State of [`contrib_algos.COCOB`][]."""

    init_particles: P  # w_1, the parameters at the start
    cumulative_gradients: P  # G_t
    scale: P  # L_t, the largest gradient of each coordinate so far
    subgradients: P  # \theta_t
    reward: P  # R_t


class COCOB(AbstractTransform[COCOBState]):
    r"""Continuous coin betting: one gambler for each coordinate.

    For each coordinate, where $c_t$ is its gradient:

    $$\begin{aligned}
      L_t &= \max(L_{t-1}, |c_t|) \\
      G_t &= G_{t-1} + |c_t| \\
      R_t &= \max(R_{t-1} - c_t (w_t - w_1), 0) \\
      \theta_t &= \theta_{t-1} - c_t \\
      w_{t+1} &= w_1 + \frac{\theta_t}{L_t \max(G_t + L_t, \alpha L_t)} (L_t + R_t)
    \end{aligned}$$

    At the start $L_0 = \epsilon$, and the other statistics are 0. The rule is
    equivariant to translations and permutations, and partition-invariant. For a complex
    coordinate, $|c_t|$ is the modulus, and the real inner product takes the place of
    $c_t (w_t - w_1)$.

    ??? cite "Reference"

        Orabona & Tommasi, *Training Deep Networks without Learning Rates Through Coin
        Betting*, arXiv 1705.07795, algorithm 2.

    **Arguments:**

    - `alpha`: $\alpha \ge 0$, dimensionless. The first bets are the fraction $1/\alpha$
        of the wealth.
    - `eps`: $\epsilon$, in units of the gradients.

    **Raises:** `ValueError` for a negative argument.

    **Differences from optax.contrib and from the paper:**

    - Statistics are float32 or wider, whatever the dtype of the parameters. In float16,
        `eps` rounds to 0, and optax divides by it.
    - Complex coordinates are supported. Optax compares complex numbers, which have no
        order.
    - Gradients are clamped to $\pm 2^{48}$ in float32 ($\pm 2^{384}$ in float64), so
        that their sums stay finite.
    """

    alpha: NonNegative = 100
    eps: NonNegative = 1e-8

    @property
    def needs(self) -> Needs:
        """The parameters: their difference from the start is the last bet."""
        return PARAMS

    @property
    def owns_iterates(self) -> bool:
        """It reads its last bet from the difference of parameters and start."""
        return True

    @property
    def laws(self) -> Laws:
        """It treats each coordinate separately, and only `eps` has a unit."""
        return ENTRYWISE | laws_if_zero(self.eps, "gradient_scale")

    def start(self, params: Tree) -> COCOBState:
        total, reward = (tree.accumulator_like(params, real=True) for _ in range(2))
        largest = tree.map(lambda a, eps: a + eps, total, self.eps)
        theta = tree.accumulator_like(params)
        return COCOBState(params, total, largest, theta, reward)

    def step(
        self, grads: Tree, state: COCOBState, params: Tree, extra: Extra
    ) -> tuple[Tree, COCOBState]:
        c, start = tree.saturate(grads), state.init_particles
        moved = tree.sub(tree.widen(params), tree.widen(start))

        total = tree.map(lambda g, c: g + jnp.abs(c), state.cumulative_gradients, c)
        largest = tree.map(lambda a, c: jnp.maximum(a, jnp.abs(c)), state.scale, c)
        theta = tree.sub(state.subgradients, c)
        reward = tree.map(_won, state.reward, c, moved)

        def bet(theta: Array, most: Array, sum: Array, r: Array, alpha: RealLike):
            stakes = jnp.maximum(sum + most, alpha * most)
            fraction = tree.divide(theta, stakes, least=self.eps)
            return fraction * (1 + tree.divide(r, most, least=self.eps))

        bets = tree.map(bet, theta, largest, total, reward, self.alpha)
        new_state = COCOBState(start, total, largest, theta, reward)
        return tree.sub(bets, moved), new_state

    def metrics(self, state: COCOBState) -> dict[str, Scalar]:
        """`cocob/reward`: $\\sum R_t$, the winnings of all coordinates."""
        return {"cocob/reward": tree.sum(lambda r: r, state.reward)}


def _won(reward: Array, c: Array, moved: Array) -> Array:
    return jnp.maximum(reward - (jnp.conj(c) * moved).real, 0)


def cocob(
    learning_rate: Rate = 1.0,
    alpha: NonNegative = 100,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative | None = 0,
    mask: Mask | None = None,
) -> AnyTransform:
    """[`contrib_algos.COCOB`][], applied to decayed gradients times `learning_rate`.

    **Arguments:**

    - `learning_rate`: a dimensionless factor of the gradients, or a schedule. It is not
        a step size, because the rule does not depend on the scale of the gradients: a
        constant has no effect, and a schedule weights the gradients of different steps.
    - `alpha`, `eps`: as for [`contrib_algos.COCOB`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    **Raises:** `ValueError` for a negative argument.

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
    return factored(rule, learning_rate, weight_decay, mask, of_gradients=True)
