"""DoWG: DoG, with gradients weighted by the distance at which they were met."""

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
    free_of,
    is_zero,
    ISOMETRIES,
    P,
    RealLike,
    RealOrSchedule,
    Scalar,
    Tree,
    tree,
)

from ._recipe import factor


class DoWGState(AbstractState[P]):
    """State of [`contrib_algos.DoWG`][]."""

    init_params: P  # x_0
    weighted_sq_norm_grads: Scalar  # v_t, in units of the loss squared
    estim_sq_dist: Scalar  # \bar r_t^2, in units of the parameters squared


class DoWG(AbstractTransform[DoWGState[Tree]]):
    r"""Distance over Weighted Gradients.

    $$\bar r_t^2 = \max(\bar r_{t-1}^2, \|x_t - x_0\|^2), \quad
      v_t = v_{t-1} + \bar r_t^2 \|g_t\|^2, \quad
      x_{t+1} = x_t - \frac{\bar r_t^2}{\sqrt{v_t} + \epsilon}\, g_t$$

    Equivariant to translations and rotations, and with $\epsilon = 0$ invariant to the
    scale of the gradients. Partition-invariant. A step is no longer than $\bar r_t$, so
    that this at most doubles.

    ??? cite "Reference"

        Khaled, Mishchenko, Jin, *DoWG Unleashed: An Efficient Universal Parameter-Free
        Gradient Descent Method*, arXiv 2305.16284, algorithm 1.

    **Arguments:**

    - `init_estim_sq_dist`: $\bar r_{-1}^2$, a first (under)estimate of the squared
        distance to the solution, in units of the parameters squared; `eps` if `None`.
    - `eps`: $\epsilon$, in units of the loss.

    **Raises:** `ValueError` for an `init_estim_sq_dist` that is not positive, for a
    negative `eps`, and for an `eps` of 0 without an `init_estim_sq_dist`, with which
    nothing would ever move.

    **Differences from optax.contrib and from the paper:**

    - $0/0$, where `eps` is 0 and no gradient has come yet, is a step of 0.
    - Statistics are float32 or wider whatever the parameters are. First steps are of
        size $\bar r_{-1}$, 0.01 by default, below the resolution of bfloat16 parameters
        above 2: wrap this in `contrib_wrappers.master_weights`.
    - The paper has $\epsilon = 0$; it is in the authors' code.
    """

    init_estim_sq_dist: RealLike | None = None
    eps: RealLike = 1e-4

    def __post_init__(self):
        check_positive(self, "init_estim_sq_dist")
        check_nonnegative(self, "eps")
        if self.init_estim_sq_dist is None and is_zero(self.eps):
            raise ValueError(
                "DoWG: eps=0 is the first estimate of the squared distance too, and so "
                "nothing would move: write DoWG(init_estim_sq_dist=1e-4, eps=0)."
            )

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, whose distance from the start it measures."""
        return frozenset({"params"})

    @property
    def laws(self) -> frozenset[str]:
        """It knows nothing of coordinates but distances, by an estimate that grows."""
        estimate = {"monotone", "bounded_growth", "initial_guess"}
        return ISOMETRIES | estimate | free_of(self.eps, "gradient_scale")

    def start(self, params: Tree) -> DoWGState[Tree]:
        guess = self.eps if self.init_estim_sq_dist is None else self.init_estim_sq_dist
        return DoWGState(
            init_params=params,
            weighted_sq_norm_grads=tree.scalar(0, like=params),
            estim_sq_dist=tree.scalar(guess, like=params),
        )

    def step(
        self, grads: Tree, state: DoWGState[Tree], params: Tree, extra: Extra
    ) -> tuple[Tree, DoWGState[Tree]]:
        sq_dist = tree.finite(tree.sq_dist(params, state.init_params))
        max_sq_dist = jnp.maximum(state.estim_sq_dist, sq_dist)
        weighted = state.weighted_sq_norm_grads + max_sq_dist * tree.sq_norm(grads)
        step_size = tree.divide(max_sq_dist, tree.sqrt(weighted) + self.eps)
        new_state = DoWGState(state.init_params, tree.finite(weighted), max_sq_dist)
        return tree.scale(-step_size, grads), new_state

    def metrics(self, state: DoWGState[Tree]) -> dict[str, Scalar]:
        """`dowg/distance`: $\\bar r_t$; `dowg/step_size`: $\\bar r_t^2 / (\\sqrt{v_t} +
        \\epsilon)$, the last one taken."""
        root = tree.sqrt(state.weighted_sq_norm_grads)
        return {
            "dowg/distance": tree.sqrt(state.estim_sq_dist),
            "dowg/step_size": tree.divide(state.estim_sq_dist, root + self.eps),
        }


def dowg(
    learning_rate: RealOrSchedule = 1.0,
    init_estim_sq_dist: RealLike | None = None,
    eps: RealLike = 1e-4,
    weight_decay: RealLike | None = None,
    mask: Any = None,
) -> AbstractTransform:
    """[`contrib_algos.DoWG`][] with weight decay before it and a learning rate behind.

    **Arguments:**

    - `learning_rate`: dimensionless factor or schedule; 1 is the method of the paper.
    - `init_estim_sq_dist`, `eps`: as for [`contrib_algos.DoWG`][].
    - `weight_decay`: `weight_decay * params` is added to the gradients.
    - `mask`: which leaves decay, as for [`contrib_core.masked`][].

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
    return chain(
        add_decayed_weights(weight_decay, mask), rule, factor("dowg", learning_rate)
    )
