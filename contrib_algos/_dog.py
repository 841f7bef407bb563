"""DoG: the step size is the distance from the start over the norm of all gradients."""

import jax.numpy as jnp

from contrib_core import AbstractState, AbstractTransform, AnyTransform, Extra, tree
from contrib_core.claims import BOUNDED_ESTIMATE, ISOMETRIES, Laws, laws_if_zero, Needs
from contrib_core.ranges import Guess, GuessOrZero, NonNegative, Rate
from contrib_core.typing import Flag, Mask, P, Scalar, Tree

from ._recipe import factored


class DoGState(AbstractState):
    """State of [`contrib_algos.DoG`][]."""

    first_step: Flag  # No step has moved the parameters yet.
    init_params: P  # x_0
    estim_dist: Scalar  # \bar r_t, in units of the parameters
    sum_sq_norm_grads: Scalar  # G_t, in units of the gradients squared


class DoG(AbstractTransform[DoGState]):
    r"""Distance over Gradients.

    $$\bar r_t = \max(\bar r_{t-1}, \|x_t - x_0\|), \quad
      G_t = G_{t-1} + \|g_t\|^2, \quad
      x_{t+1} = x_t - \frac{\bar r_t}{\sqrt{G_t + \epsilon}}\, g_t$$

    with $\bar r_{-1} = r_\text{rel} (1 + \|x_0\|)$. The rule is equivariant to
    translations (except for $\|x_0\|$ in $\bar r_{-1}$) and rotations. With
    $\epsilon = 0$ it is invariant to the scale of the gradients. It is also
    partition-invariant: how coordinates are split into leaves does not matter.

    ??? cite "Reference"

        Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step
        Size Schedule*, arXiv 2302.12022, equations (1) and (2).

    **Arguments:**

    - `reps_rel`: $r_\text{rel}$, the length of the first step relative to
        $1 + \|x_0\|$, dimensionless. The authors advise 1e-6, and 1e-4 for models with
        batch normalisation.
    - `eps`: $\epsilon$, in units of the gradients squared.
    - `init_learning_rate`: the step size until the parameters have moved, in units of
        parameters over gradients. If given, $\bar r_{-1} = 0$ and `reps_rel` is unused.

    **Raises:** `ValueError` for a negative argument, or an `init_learning_rate` of 0.

    **Differences from optax.contrib and from the paper:**

    - Optax uses `init_learning_rate` at step 0 only. If that step is 0 (a gradient of
        0, a warm-up from 0), the distance and every later step stay 0. Here it is used
        until the parameters have moved.
    - A step is 0 where it would be $0/0$: `eps` is 0, and no gradient has come yet.
    - Statistics are float32 or wider, whatever the dtype of the parameters. First steps
        have a relative size of 1e-6, below the resolution of bfloat16 and float16.
        Parameters of these dtypes need a wide copy that DoG moves (master weights).
    - The authors evaluate a polynomial-decay average of the iterates (their section
        4). Use a wrapper for it.
    """

    reps_rel: GuessOrZero = 1e-6
    eps: NonNegative = 1e-8
    init_learning_rate: Guess | None = None

    @property
    def needs(self) -> Needs:
        """The parameters, whose distance from the start it measures."""
        return frozenset({"params"})

    @property
    def laws(self) -> Laws:
        """It sees only the geometry of the coordinates, and its estimate only grows.

        The first guess depends on the distance to the origin. With `init_learning_rate`
        it does not, but then the first step can be of any length.
        """
        if self.init_learning_rate is not None:
            return ISOMETRIES | BOUNDED_ESTIMATE - {"bounded_growth"}
        scale = laws_if_zero(self.eps, "gradient_scale")
        return ISOMETRIES - {"translation"} | BOUNDED_ESTIMATE | scale

    def start(self, params: Tree) -> DoGState:
        has_rate = self.init_learning_rate is not None
        dist = 0.0 if has_rate else self.reps_rel * (1 + tree.norm(params))
        dist, zero = tree.scalar(dist, like=params), tree.scalar(0, like=params)
        return DoGState(jnp.asarray(True), params, dist, sum_sq_norm_grads=zero)

    def step(
        self, grads: Tree, state: DoGState, params: Tree, extra: Extra
    ) -> tuple[Tree, DoGState]:
        x0 = state.init_params
        dist = tree.sqrt(tree.clamp_to_finite(tree.sq_dist(params, x0)))
        max_dist = jnp.maximum(state.estim_dist, dist)
        sum_sq = state.sum_sq_norm_grads + tree.sq_norm(grads)
        unmoved = state.first_step & (dist == 0)
        step_size = self._step_size(max_dist, sum_sq, unmoved)
        sum_sq = tree.clamp_to_finite(sum_sq)
        return tree.scale(-step_size, grads), DoGState(unmoved, x0, max_dist, sum_sq)

    def _step_size(self, dist: Scalar, sum_sq: Scalar, unmoved: Flag) -> Scalar:
        step_size = tree.divide(dist, tree.sqrt(sum_sq + self.eps))
        if self.init_learning_rate is None:
            return step_size
        return jnp.where(unmoved, self.init_learning_rate, step_size)

    def metrics(self, state: DoGState) -> dict[str, Scalar]:
        """`dog/distance`: $\\bar r_t$; `dog/step_size`: $\\bar r_t / \\sqrt{G_t +
        \\epsilon}$, the step size of the last step."""
        dist, sum_sq = state.estim_dist, state.sum_sq_norm_grads
        step_size = self._step_size(dist, sum_sq, state.first_step)
        return {"dog/distance": dist, "dog/step_size": step_size}


def dog(
    learning_rate: Rate = 1.0,
    reps_rel: GuessOrZero = 1e-6,
    eps: NonNegative = 1e-8,
    init_learning_rate: Guess | None = None,
    weight_decay: NonNegative | None = None,
    mask: Mask | None = None,
) -> AnyTransform:
    """[`contrib_algos.DoG`][], with weight decay in front and a learning rate behind.

    **Arguments:**

    - `learning_rate`: dimensionless factor or schedule; 1 is the method of the paper.
    - `reps_rel`, `eps`, `init_learning_rate`: as for [`contrib_algos.DoG`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

    **Raises:** `ValueError` for a negative argument.

    !!! example

        ```python
        >>> import jax, jax.numpy as jnp
        >>> from contrib_algos import dog
        >>> f = lambda x: jnp.sum(x**2)
        >>> opt = dog()
        >>> x = jnp.array([1.0, 2.0, 3.0])
        >>> state = opt.init(x)
        >>> for _ in range(5):
        ...     updates, state = opt.update(jax.grad(f)(x), state, x)
        ...     x = x + updates
        >>> print(f"{f(x):.3f}")
        14.000

        ```
    """
    rule = DoG(reps_rel, eps, init_learning_rate)
    return factored(rule, learning_rate, weight_decay, mask)
