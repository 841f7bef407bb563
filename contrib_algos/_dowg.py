"""DoWG: DoG, with each gradient weighted by the distance at which it was taken."""

import jax.numpy as jnp

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import BOUNDED_ESTIMATE, ISOMETRIES, Laws, laws_if_zero, Needs
from contrib_core.ranges import Guess, is_zero, NonNegative, Rate
from contrib_core.typing import Mask, P, Scalar, Tree

from ._recipe import factored


class DoWGState(AbstractState):
    """State of [`contrib_algos.DoWG`][]."""

    init_params: P  # x_0
    weighted_sq_norm_grads: Scalar  # v_t, in units of the loss squared
    estim_sq_dist: Scalar  # \bar r_t^2, in units of the parameters squared


class DoWG(AbstractTransform[DoWGState]):
    r"""Distance over Weighted Gradients.

    $$\bar r_t^2 = \max(\bar r_{t-1}^2, \|x_t - x_0\|^2), \quad
      v_t = v_{t-1} + \bar r_t^2 \|g_t\|^2, \quad
      x_{t+1} = x_t - \frac{\bar r_t^2}{\sqrt{v_t} + \epsilon}\, g_t$$

    The rule is equivariant to translations and rotations, and partition-invariant. With
    $\epsilon = 0$ it is invariant to the scale of the gradients. A step is no longer
    than $\bar r_t$, so that $\bar r_t$ at most doubles in a step.

    ??? cite "Reference"

        Khaled, Mishchenko, Jin, *DoWG Unleashed: An Efficient Universal Parameter-Free
        Gradient Descent Method*, arXiv 2305.16284, algorithm 1.

    **Arguments:**

    - `init_estim_sq_dist`: $\bar r_{-1}^2$, a first (under)estimate of the squared
        distance to the solution, in units of the parameters squared; `eps` if `None`.
    - `eps`: $\epsilon$, in units of the loss.

    **Raises:** `ValueError` for an `init_estim_sq_dist` that is not positive, for a
    negative `eps`, and for an `eps` of 0 without an `init_estim_sq_dist`, because the
    parameters would never move.

    **Differences from optax.contrib and from the paper:**

    - A step is 0 where it would be $0/0$: `eps` is 0, and no gradient has come yet.
    - Statistics are float32 or wider, whatever the dtype of the parameters. First steps
        have the size $\bar r_{-1}$, by default 0.01, below the resolution of bfloat16
        parameters above 2. These need a wide copy that DoWG moves (master weights).
    - The paper has no $\epsilon$; the authors' code has one.
    """

    init_estim_sq_dist: Guess | None = None
    eps: NonNegative = 1e-4

    def __check_init__(self):
        if self.init_estim_sq_dist is None and is_zero(self.eps):
            example = "`DoWG(init_estim_sq_dist=1e-4, eps=0)`"
            raise ValueError(f"DoWG: with eps=0 nothing would move. Use {example}.")

    @property
    def needs(self) -> Needs:
        """The parameters, whose distance from the start it measures."""
        return frozenset({"params"})

    @property
    def laws(self) -> Laws:
        """It sees only the geometry of the coordinates, and its estimate only grows."""
        return ISOMETRIES | BOUNDED_ESTIMATE | laws_if_zero(self.eps, "gradient_scale")

    def start(self, params: Tree) -> DoWGState:
        guess = self.eps if self.init_estim_sq_dist is None else self.init_estim_sq_dist
        zero, guess = tree.scalar(0, like=params), tree.scalar(guess, like=params)
        return DoWGState(params, weighted_sq_norm_grads=zero, estim_sq_dist=guess)

    def step(
        self, grads: Tree, state: DoWGState, params: Tree, extra: Extra
    ) -> tuple[Tree, DoWGState]:
        x0, weighted = state.init_params, state.weighted_sq_norm_grads
        sq_dist = tree.clamp_to_finite(tree.sq_dist(params, x0))
        sq_dist = jnp.maximum(state.estim_sq_dist, sq_dist)
        weighted = weighted + sq_dist * tree.sq_norm(grads)
        step_size = tree.divide(sq_dist, tree.sqrt(weighted) + self.eps)
        weighted = tree.clamp_to_finite(weighted)
        return tree.scale(-step_size, grads), DoWGState(x0, weighted, sq_dist)

    def metrics(self, state: DoWGState) -> dict[str, Scalar]:
        """`dowg/distance`: $\\bar r_t$; `dowg/step_size`: $\\bar r_t^2 / (\\sqrt{v_t} +
        \\epsilon)$, the step size of the last step."""
        sq_dist, weighted = state.estim_sq_dist, state.weighted_sq_norm_grads
        step_size = tree.divide(sq_dist, tree.sqrt(weighted) + self.eps)
        return {"dowg/distance": tree.sqrt(sq_dist), "dowg/step_size": step_size}


def dowg(
    learning_rate: Rate = 1.0,
    init_estim_sq_dist: Guess | None = None,
    eps: NonNegative = 1e-4,
    weight_decay: NonNegative | None = None,
    mask: Mask | None = None,
) -> AnyTransform:
    """[`contrib_algos.DoWG`][], with weight decay in front and a learning rate behind.

    **Arguments:**

    - `learning_rate`: dimensionless factor or schedule; 1 is the method of the paper.
    - `init_estim_sq_dist`, `eps`: as for [`contrib_algos.DoWG`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    **Raises:** `ValueError` as for [`contrib_algos.DoWG`][], and for a negative
    `learning_rate` or `weight_decay`.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import dowg
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = dowg()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        ...     print(f"{f(x):.4f}")
        13.9254
        13.8728
        13.7754
        13.5962
        13.2688

        ```
    """
    rule = DoWG(init_estim_sq_dist, eps)
    return factored(rule, learning_rate, weight_decay, mask)
