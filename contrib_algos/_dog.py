"""DoG: the step size is the distance travelled over the gradients met."""

from typing import Any

import jax.numpy as jnp

from contrib_core import (
    AbstractState,
    AbstractTransform,
    add_decayed_weights,
    chain,
    check_nonnegative,
    check_positive,
    Extra,
    Flag,
    free_of,
    ISOMETRIES,
    layerwise,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    Tree,
    tree,
)

from ._recipe import factor


class DoGState(AbstractState[P]):
    """State of [`contrib_algos.DoG`][]."""

    first_step: Flag  # No step has moved the parameters yet.
    init_params: P  # x_0
    estim_dist: Scalar  # \bar r_t, in units of the parameters
    sum_sq_norm_grads: Scalar  # G_t, in units of the gradients squared


class DoG(AbstractTransform[DoGState[Tree]]):
    r"""Distance over Gradients.

    $$\bar r_t = \max(\bar r_{t-1}, \|x_t - x_0\|), \quad
      G_t = G_{t-1} + \|g_t\|^2, \quad
      x_{t+1} = x_t - \frac{\bar r_t}{\sqrt{G_t + \epsilon}}\, g_t$$

    with $\bar r_{-1} = r_\text{rel} (1 + \|x_0\|)$. Equivariant to translations (but
    for $\|x_0\|$ in $\bar r_{-1}$) and rotations, and with $\epsilon = 0$ invariant to
    the scale of the gradients. Partition-invariant: how coordinates are split into
    leaves does not matter.

    ??? cite "Reference"

        Ivgi, Hinder, Carmon, *DoG is SGD's Best Friend: A Parameter-Free Dynamic Step
        Size Schedule*, arXiv 2302.12022, equations (1) and (2).

    **Arguments:**

    - `reps_rel`: first movement relative to $1 + \|x_0\|$, dimensionless. The authors
        advise 1e-6, and 1e-4 for models with batch normalisation.
    - `eps`: added to the sum of squared gradient norms, in units of the
        gradients squared.
    - `init_learning_rate`: step size as long as nothing has moved, in units of
        parameters over gradients; then $\bar r_{-1} = 0$ and `reps_rel` is not used.

    **Raises:** `ValueError` for a negative argument, or an `init_learning_rate` of 0.

    **Differences from optax.contrib and from the paper:**

    - With `init_learning_rate`, optax uses it at step 0 only. If that step is null (a
        zero gradient, a warm-up from 0), its distance, and so every later step, stays 0
        for ever. Here it is used until the parameters have moved.
    - $0/0$, where `eps` is 0 and no gradient has come yet, is a step of 0.
    - Statistics are float32 or wider whatever the parameters are. First steps are of
        relative size 1e-6, below the resolution of bfloat16 and float16: wrap DoG in
        `contrib_wrappers.master_weights` to train parameters of these dtypes.
    - The authors evaluate a polynomial-decay average of the iterates (their section
        4), which is `contrib_wrappers.average(dog())`.
    """

    reps_rel: RealLike = 1e-6
    eps: RealLike = 1e-8
    init_learning_rate: RealLike | None = None

    def __post_init__(self):
        check_nonnegative(self, "reps_rel", "eps")
        check_positive(self, "init_learning_rate")

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, whose distance from the start it measures."""
        return frozenset({"params"})

    @property
    def laws(self) -> frozenset[str]:
        """It knows nothing of coordinates but distances: to the start, by an estimate
        that only grows, and to the origin, where that is its first guess."""
        laws = ISOMETRIES | {"monotone", "initial_guess"}
        if self.init_learning_rate is not None:
            return laws
        scale = free_of(self.eps, "gradient_scale")
        return laws - {"translation"} | {"bounded_growth"} | scale

    def start(self, params: Tree) -> DoGState[Tree]:
        dist = (
            self.reps_rel * (1 + tree.norm(params))
            if self.init_learning_rate is None
            else 0.0
        )
        return DoGState(
            first_step=jnp.asarray(True),
            init_params=params,
            estim_dist=tree.scalar(dist, like=params),
            sum_sq_norm_grads=tree.scalar(0, like=params),
        )

    def step(
        self, grads: Tree, state: DoGState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, DoGState[Tree]]:
        dist = tree.sqrt(tree.finite(tree.sq_dist(params, state.init_params)))
        max_dist = jnp.maximum(state.estim_dist, dist)
        sum_sq = state.sum_sq_norm_grads + tree.sq_norm(grads)
        step_size = tree.divide(max_dist, tree.sqrt(sum_sq + self.eps))
        unmoved = state.first_step & (dist == 0)
        if self.init_learning_rate is not None:
            step_size = jnp.where(unmoved, self.init_learning_rate, step_size)
        new_state = DoGState(
            first_step=unmoved,
            init_params=state.init_params,
            estim_dist=max_dist,
            sum_sq_norm_grads=tree.finite(sum_sq),
        )
        return tree.scale(-step_size, grads), new_state

    def metrics(self, state: DoGState[Tree]) -> dict[str, Scalar]:
        """`dog/distance`: $\\bar r_t$; `dog/step_size`: $\\bar r_t / \\sqrt{G_t +
        \\epsilon}$, the last one taken."""
        step_size = tree.divide(
            state.estim_dist, tree.sqrt(state.sum_sq_norm_grads + self.eps)
        )
        if self.init_learning_rate is not None:
            step_size = jnp.where(state.first_step, self.init_learning_rate, step_size)
        return {"dog/distance": state.estim_dist, "dog/step_size": step_size}


def dog(
    learning_rate: RealOrSchedule = 1.0,
    reps_rel: RealLike = 1e-6,
    eps: RealLike = 1e-8,
    init_learning_rate: RealLike | None = None,
    weight_decay: RealLike | None = None,
    mask: Any = None,
    *,
    layer_wise: bool = False,
) -> AbstractTransform:
    """[`contrib_algos.DoG`][] with weight decay before it and a learning rate behind.

    **Arguments:**

    - `learning_rate`: dimensionless factor or schedule; 1 is the method of the paper.
    - `reps_rel`, `eps`, `init_learning_rate`: as for [`contrib_algos.DoG`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].
    - `layer_wise`: whether each leaf has a distance and a step size of its own, which
        is the authors' LDoG, by [`contrib_core.layerwise`][].

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
    return chain(
        add_decayed_weights(weight_decay, mask),
        layerwise(rule) if layer_wise else rule,
        factor("dog", learning_rate),
    )
