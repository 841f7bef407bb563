"""Gaussian noise that makes a clipped sum private."""

from typing import Annotated, Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from contrib_core import (
    AbstractMechanism,
    AbstractState,
    Caller,
    check_gradients,
    Extra,
    trainable,
    tree,
)
from contrib_core.claims import claim, Laws
from contrib_core.ranges import Range
from contrib_core.schedule import increment, zero_count
from contrib_core.typing import AnyTree, Count, KeyData, RealLike, Tree

from ._clip import ClippedSum
from ._devices import varying_axes
from ._examples import check_unmasked
from ._random import normal_like


_LARGEST = float(np.finfo(np.float32).max)

Noise: TypeAlias = Annotated[
    RealLike, Range("at least 0, and finite", lambda x: (x >= 0) & (x <= _LARGEST))
]
"""A noise multiplier: at least 0, and finite in float32."""

Divisor: TypeAlias = Annotated[
    RealLike, Range("above 0, and finite", lambda x: (x > 0) & (x <= _LARGEST))
]
"""A public number of examples: above 0, and finite in float32."""


class DifferentiallyPrivateAggregateState(AbstractState):
    """State of [`contrib_algos.DPAggregate`][] and [`contrib_algos.GaussianNoise`][].

    The state is secret: anyone who has its key can subtract the noise.
    """

    rng_key: KeyData
    count: Count  # t


class GaussianNoise(AbstractMechanism[DifferentiallyPrivateAggregateState]):
    r"""Adds Gaussian noise to a [`contrib_algos.ClippedSum`][], and divides.

    $$\tilde g_t = \frac{1}{n} \Big(\sum_i \bar g_{t, i} + \sigma C z_t\Big), \quad
      z_t \sim \mathcal N(0, I)$$

    The result is private, so later transforms may see it. `GaussianNoise` can only be
    the first of a chain; `update` of the chain then takes a `ClippedSum` in place of
    gradients:

    ```python
    opt = chain(GaussianNoise(1.1, key), adam(1e-3))
    updates, state = opt.update(clipped_grad(model, batch), state, model)
    ```

    ??? cite "Reference"

        Abadi et al., *Deep Learning with Differential Privacy*, arXiv 1607.00133,
        algorithm 1.

    **Arguments:**

    - `noise_multiplier`: $\sigma$, the standard deviation of the noise in the sum,
        divided by the clipping norm $C$; dimensionless.
        [`contrib_algos.calibrate_noise`][] computes it. 0 is allowed, and gives no
        privacy.
    - `key`: a typed key; a raw key, such as the 64 secret bits of
        `np.frombuffer(secrets.token_bytes(8), np.uint32)`; or for tests a seed from 0
        to $2^{32} - 1$. Keep the key secret, and never use it again, neither in another
        run nor in another transform. It has no default, because a key that everybody
        knows hides nothing. `init` copies the key into the state, and `update` uses
        only that copy.
    - `normalize_by`: $n$, a public number, such as the expected number of examples. By
        default it is the number of rows of the batch, masked ones included (1 for a
        batch without rows). It is never the number of unmasked rows, which is not
        public.

    **Raises:** `ValueError` for noise that is negative, infinite or NaN, for
    `normalize_by` that is not positive and finite, and for a key of another kind. In
    `update`, `ValueError` for anything but a `ClippedSum` that fits the parameters.

    The noise depends only on the key, the step and the position of the leaf, and not on
    data, masks, dtypes or block sizes. It is drawn in float32 or wider, because normal
    numbers in bfloat16 take only 128 values and end at 2.9. Each number is half of a
    sum of four, because a normal number in float32 ends at 5.4. The real and the
    imaginary part of a complex number both have variance $(\sigma C / n)^2$.
    """

    noise_multiplier: Noise
    key: int | KeyData
    normalize_by: Divisor | None
    impl: str = eqx.field(static=True)  # The name of the generator.

    def __init__(
        self,
        noise_multiplier: RealLike,
        key: Any,
        *,
        normalize_by: RealLike | None = None,
    ):
        self.noise_multiplier = noise_multiplier
        self.normalize_by = normalize_by
        self.key, self.impl = _checked_key(key), _kind(key)

    @property
    def laws(self) -> Laws:
        """It sees only the shapes of the parameters."""
        return claim("translation")

    def receive(self, caller: Caller, grads: AnyTree, params: Tree) -> ClippedSum:
        if not isinstance(grads, ClippedSum):
            raise ValueError(
                f"{caller}: noise is scaled to the clipping norm of a `ClippedSum`, so "
                f"{type(grads).__name__} cannot take its place. Call `update(clipped, "
                "state, params)` with `clipped = value_and_clipped_grad(loss, "
                "l2_norm_clip)(params, batch)`."
            )
        check_unmasked(caller, grads)
        for part in ("sum", "rest"):
            named = Caller(self, f", `.{part}`")
            check_gradients(named, trainable(getattr(grads, part)), params)
        if grads.norms.ndim != 1 or grads.l2_norm_clip.shape:
            raise ValueError(
                f"{caller}: there are several `ClippedSum`s, as `jax.vmap` returns "
                "them. Call `update` inside of `jax.vmap` too, with a key for each."
            )
        if axes := varying_axes(grads):
            raise ValueError(
                f"{caller}: the sum differs between devices, along {sorted(axes)} of a "
                "`jax.shard_map`, and noise would be added by each of them. Add up "
                "first, `clipped.psum(axis_name)`."
            )
        return grads

    def start(self, params: Tree) -> DifferentiallyPrivateAggregateState:
        key = self.key
        if isinstance(key, int) or key.ndim == 0:
            # A seed. Under `jax.jit` it may be an array.
            seed = np.uint32(key) if isinstance(key, int) else key
            key = jax.random.key_data(jax.random.key(seed, impl=self.impl))
        return DifferentiallyPrivateAggregateState(key, zero_count())

    def step(
        self,
        grads: ClippedSum,
        state: DifferentiallyPrivateAggregateState,
        params: Tree,
        extra: Extra,
    ) -> tuple[Tree, DifferentiallyPrivateAggregateState]:
        std = self.noise_multiplier * grads.l2_norm_clip
        rows = max(1, grads.norms.shape[0])
        n = rows if self.normalize_by is None else self.normalize_by
        key = jax.random.wrap_key_data(state.rng_key, impl=self.impl)
        noise = normal_like(grads.sum, jax.random.fold_in(key, state.count))

        def entry(total: Array, rest: Array, z: Array, std: Any, n: Any) -> Array:
            return (total + (rest + std * z)) / n

        private = tree.map(entry, grads.sum, grads.rest, noise, std, n)
        # Later transforms accumulate in these dtypes.
        private = tree.cast_like(private, tree.widen(params))
        count = increment(state.count)
        return private, DifferentiallyPrivateAggregateState(state.rng_key, count)


def _checked_key(key: Any) -> int | KeyData:
    """A seed unchanged, so that it stays static; a key as plain data."""
    if isinstance(key, np.integer):
        key = int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 2**32:
        return key  # JAX truncates larger seeds, so that some of them coincide.
    if (typed := _typed(key)) is None or typed.shape:
        is_array = isinstance(key, jax.Array | np.ndarray)
        of = f" of shape {key.shape}, {key.dtype}" if is_array else ""
        raise ValueError(
            "GaussianNoise: a key is one key of `jax.random`, or secret bits "
            "`np.frombuffer(secrets.token_bytes(8), np.uint32)`, or for tests one seed "
            f"from 0 to 2**32 - 1; got {type(key).__name__}{of}. For several, use "
            "`eqx.filter_vmap`."
        )
    return jax.random.key_data(typed)


def _typed(key: Any) -> Any:
    """`key` as a typed key or an array of typed keys; `None` if it is not a key."""
    if not isinstance(key, jax.Array | np.ndarray | np.generic):
        return None
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if jnp.issubdtype(key.dtype, jnp.integer) and key.shape == ():
        return jax.random.key(key)
    raw = jax.random.key_data(jax.random.key(0))
    is_raw = key.dtype == raw.dtype and key.shape[-1:] == raw.shape
    return jax.random.wrap_key_data(key) if is_raw else None


def _kind(key: Any) -> str:
    """The name of the random number generator of a key."""
    is_key = eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return str(jax.random.key_impl(key if is_key else jax.random.key(0)))
