"""Private means of the gradients of single examples, and DP-SGD."""

from typing import Any

from jaxtyping import PyTree

from contrib_core import (
    AbstractTransform,
    chain,
    checked_examples,
    Extra,
    RealLike,
    RealOrSchedule,
    summed_over_devices,
    Tree,
)

from ._clip import check_bound, clipped_sum, ClippedSum
from ._noise import DifferentiallyPrivateAggregateState, GaussianNoise
from ._sgd import sgd


class DPAggregate(AbstractTransform[DifferentiallyPrivateAggregateState[Tree]]):
    r"""Clips the gradient of each example, adds them up, adds noise, and divides.

    $$\bar g_{t, i} = g_{t, i} \min(1, C / \|g_{t, i}\|), \quad
      \tilde g_t = \frac{1}{n} \Big(\sum_i \bar g_{t, i} + \sigma C z_t\Big), \quad
      z_t \sim \mathcal N(0, I)$$

    Gradients have a first axis of examples, as
    `jax.vmap(jax.grad(loss), (None, 0))(params, batch)` gives them; updates do not. It
    is the first of a chain. Where so many gradients have no room,
    [`contrib_algos.value_and_clipped_grad`][] gives
    [`contrib_algos.GaussianNoise`][] the same sum. What is promised, and what is not:
    `docs/privacy.md`.

    ??? cite "Reference"

        Abadi et al., *Deep Learning with Differential Privacy*, arXiv 1607.00133,
        algorithm 1.

    **Arguments:**

    - `l2_norm_clip`: $C$, in units of the gradients of one example, from 1e-30 to 1e30.
    - `noise_multiplier`, `key`, `normalize_by`: as for
        [`contrib_algos.GaussianNoise`][].

    **Raises:** `ValueError` for a bound out of its range, for noise and keys as
    `GaussianNoise`; and in `update`, with the path of the leaf, for gradients
    without an axis of examples, or with different numbers of them.

    **Differences from optax.contrib:**

    - An example with a NaN or an infinity adds nothing; there, it is not clipped at
        all, nor is one whose norm underflows, as of [1e-30] at a bound of 1e-32.
    - Norms and sums are float32 or wider. In bfloat16, one of 4,096 examples can change
        the sum there by 11 times the bound.
    - The norm is at most the bound also after rounding, and noise has no 5.4 σ at which
        it ends.
    - The state counts steps; the key in it stays as it is, as plain data.
    """

    l2_norm_clip: RealLike
    noise: GaussianNoise

    def __init__(
        self,
        l2_norm_clip: RealLike,
        noise_multiplier: RealLike,
        key: Any,
        *,
        normalize_by: RealLike | None = None,
    ):
        self.l2_norm_clip = l2_norm_clip
        self.noise = GaussianNoise(noise_multiplier, key, normalize_by=normalize_by)
        check_bound(self)

    @property
    def laws(self) -> frozenset[str]:
        """Those of the noise."""
        return self.noise.laws

    @property
    def needs(self) -> frozenset[str]:
        """The parameters, which gradients must fit, and single examples."""
        return self.noise.needs

    def receive(self, who: str, grads: PyTree[Any], params: Tree) -> Tree:
        if isinstance(grads, ClippedSum):
            raise ValueError(
                f"{who}: a `ClippedSum` has been clipped already: what adds noise to "
                "it is `GaussianNoise(...)`, in place of this."
            )
        return checked_examples(who, grads, params)

    def start(self, params: Tree) -> DifferentiallyPrivateAggregateState[Tree]:
        return self.noise.start(params)

    def step(
        self,
        grads: Tree,
        state: DifferentiallyPrivateAggregateState[Tree],
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, DifferentiallyPrivateAggregateState[Tree]]:
        clipped = summed_over_devices(clipped_sum, self.l2_norm_clip, (grads,))
        return self.noise.step(clipped, state, params, extra)


def differentially_private_aggregate(
    l2_norm_clip: RealLike,
    noise_multiplier: RealLike,
    seed: Any,
    *,
    normalize_by: RealLike | None = None,
) -> DPAggregate:
    """The private mean of the examples' gradients: [`contrib_algos.DPAggregate`][].

    **Arguments:** as there; `seed` is its `key`.
    """
    return DPAggregate(l2_norm_clip, noise_multiplier, seed, normalize_by=normalize_by)


def dpsgd(
    learning_rate: RealOrSchedule,
    l2_norm_clip: RealLike,
    noise_multiplier: RealLike,
    seed: Any,
    momentum: RealLike | None = None,
    nesterov: bool = False,
    *,
    normalize_by: RealLike | None = None,
) -> AbstractTransform:
    """DP-SGD: [`contrib_algos.DPAggregate`][], and gradient descent along its mean.

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from contrib_algos import dpsgd
    >>> loss = lambda w, example: (w @ example) ** 2
    >>> w, batch = jnp.ones(2), jnp.array([[1.0, 2.0], [300.0, 400.0]])
    >>> grads = jax.vmap(jax.grad(loss), (None, 0))(w, batch)
    >>> opt = dpsgd(0.1, l2_norm_clip=1.0, noise_multiplier=0.0, seed=42)
    >>> updates, state = opt.update(grads, opt.init(w), w)
    >>> print(jnp.round(updates, 4))
    [-0.0524 -0.0847]

    ```

    **Arguments:**

    - `learning_rate`: number or schedule, in units of parameters over gradients.
    - `l2_norm_clip`, `noise_multiplier`, `seed`, `normalize_by`: as for
        [`contrib_algos.DPAggregate`][], whose `key` is the `seed`.
    - `momentum`, `nesterov`: as for [`contrib_algos.sgd`][].
    """
    private = DPAggregate(
        l2_norm_clip, noise_multiplier, seed, normalize_by=normalize_by
    )
    return chain(private, sgd(learning_rate, momentum, nesterov))
