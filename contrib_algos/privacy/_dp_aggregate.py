"""Private means of the gradients of single examples, and DP-SGD with them."""

from typing import Any

from contrib_core import AbstractMechanism, Caller, chain, Extra
from contrib_core.claims import Laws
from contrib_core.ranges import Fraction, Rate
from contrib_core.typing import AnyTree, RealLike, Tree

from .._sgd import sgd
from ._clip import Bound, clipped_sum, ClippedSum
from ._devices import summed_over_devices
from ._examples import checked_examples
from ._noise import DifferentiallyPrivateAggregateState, GaussianNoise


class DPAggregate(AbstractMechanism[DifferentiallyPrivateAggregateState]):
    r"""Clips the gradient of each example, sums them, adds noise, and divides.

    $$\bar g_{t, i} = g_{t, i} \min(1, C / \|g_{t, i}\|), \quad
      \tilde g_t = \frac{1}{n} \Big(\sum_i \bar g_{t, i} + \sigma C z_t\Big), \quad
      z_t \sim \mathcal N(0, I)$$

    It can only be the first of a chain. Gradients have a first axis of examples, as
    `jax.vmap(jax.grad(loss), (None, 0))(params, batch)` returns them; updates do not.
    If the gradients of all examples do not fit into memory, compute the same sum with
    [`contrib_algos.value_and_clipped_grad`][], and pass it to
    [`contrib_algos.GaussianNoise`][]. `docs/privacy.md` says what is guaranteed, and
    what is not.

    ??? cite "Reference"

        Abadi et al., *Deep Learning with Differential Privacy*, arXiv 1607.00133,
        algorithm 1.

    **Arguments:**

    - `l2_norm_clip`: $C$, in units of the gradients of one example, from 1e-30 to 1e30.
    - `noise_multiplier`, `normalize_by`: as for [`contrib_algos.GaussianNoise`][].
    - `seed`: the `key` of [`contrib_algos.GaussianNoise`][].

    **Raises:** `ValueError` for an `l2_norm_clip` out of range, and for noise or keys
    that [`contrib_algos.GaussianNoise`][] refuses. In `update`, `ValueError` with the
    path of the leaf for gradients without an axis of examples, or with different
    numbers of examples.

    **Differences from optax.contrib:**

    - An example with a NaN or an infinity adds nothing. Optax does not clip it. Nor
        does it clip an example whose norm underflows, such as [1e-30] with a bound of
        1e-32.
    - Norms and sums are float32 or wider. In optax, one of 4,096 bfloat16 examples can
        change the sum by 11 times the bound.
    - The norm of a clipped gradient is at most the bound even after rounding.
    - The noise is not cut off at 5.4 standard deviations.
    - The state counts steps. The key in the state is plain data and never changes.
    """

    l2_norm_clip: Bound
    noise: GaussianNoise

    def __init__(
        self,
        l2_norm_clip: RealLike,
        noise_multiplier: RealLike,
        seed: Any,
        *,
        normalize_by: RealLike | None = None,
    ):
        self.l2_norm_clip = l2_norm_clip
        self.noise = GaussianNoise(noise_multiplier, seed, normalize_by=normalize_by)

    @property
    def laws(self) -> Laws:
        """The laws of the noise."""
        return self.noise.laws

    def receive(self, caller: Caller, grads: AnyTree, params: Tree) -> Tree:
        if isinstance(grads, ClippedSum):
            raise ValueError(
                f"{caller}: a `ClippedSum` has been clipped already. To add noise to "
                "it, use `GaussianNoise(...)` in place of `DPAggregate(...)`."
            )
        return checked_examples(caller, grads, params)

    def start(self, params: Tree) -> DifferentiallyPrivateAggregateState:
        return self.noise.start(params)

    def step(
        self,
        grads: Tree,
        state: DifferentiallyPrivateAggregateState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, DifferentiallyPrivateAggregateState]:
        clipped = summed_over_devices(clipped_sum, self.l2_norm_clip, (grads,))
        return self.noise.step(clipped, state, params, extra)


differentially_private_aggregate = DPAggregate


def dpsgd(
    learning_rate: Rate,
    l2_norm_clip: RealLike,
    noise_multiplier: RealLike,
    seed: Any,
    momentum: Fraction | None = None,
    nesterov: bool = False,
    *,
    normalize_by: RealLike | None = None,
) -> AbstractMechanism[Any]:
    """DP-SGD: [`contrib_algos.DPAggregate`][], followed by gradient descent.

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
        [`contrib_algos.DPAggregate`][].
    - `momentum`, `nesterov`: as for [`contrib_algos.sgd`][].

    **Raises:** `ValueError` as for [`contrib_algos.DPAggregate`][] and
    [`contrib_algos.sgd`][].
    """
    private = DPAggregate(
        l2_norm_clip, noise_multiplier, seed, normalize_by=normalize_by
    )
    return chain(private, sgd(learning_rate, momentum, nesterov))
