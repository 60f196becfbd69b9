"""The paper's recipe as one optimizer."""

from typing import Any

import optax

from rtopk_jax import _checks
from rtopk_jax._axis import AxisName
from rtopk_jax.select._named import rtop_k
from rtopk_jax.select._warmup import Stages
from rtopk_jax.transform import _sparse, _weight_decay
from rtopk_jax.transform._lockstep import lockstep


def rtopk_sgd(
  learning_rate: optax.ScalarOrSchedule,
  density: float | Stages,
  axis_name: AxisName,
  *,
  subsample: float | None = None,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  **exchange_options: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""SGD with rTop-k compression, error feedback and momentum correction (paper, Section III-A).

  With :math:`\bar u` the update of ``sparse_exchange``, whose momentum is this one,

  .. math::
    s \leftarrow m s + \lambda w, \qquad w \leftarrow w - \eta\, (\bar u + s)

  Weight decay is not part of what is exchanged, since every worker can work it out, but has momentum as
  it has in ``optax.sgd``: one worker at density 1 without masking takes the same steps as
  ``optax.chain(optax.add_decayed_weights(λ), optax.sgd(η, m))``.

  With ``optax.inject_hyperparams`` learning rate and weight decay can be injected; ``density``, ``subsample`` and
  ``momentum`` decide what is compiled and belong in ``static_args``.

  Args:
    learning_rate: :math:`\eta`, a number or a schedule.
    density: k/d in (0, 1], or ``warmup_density(…)``.
    axis_name: the mapped axis of the workers.
    subsample: r/k; None is the number of workers.
    momentum: m in [0, 1).
    nesterov: Nesterov's form of momentum.
    weight_decay: :math:`\lambda`, at least 0, or a schedule of it.
    weight_decay_mask: which leaves decay, a tree of bools or a function of the parameters, as in
      ``optax.add_decayed_weights``.
    **exchange_options: further arguments of ``sparse_exchange``.

  Returns:
    An ``optax.GradientTransformationExtraArgs``, in lockstep: a step that is skipped changes nothing.

  Raises:
    TypeError: as ``rtop_k`` and ``sparse_exchange`` do, and for a weight decay that is not a number.
    ValueError: likewise, and for a weight decay below 0.

  Examples:
    >>> import jax, jax.numpy as jnp, optax, rtopk_jax
    >>> tx = rtopk_jax.rtopk_sgd(0.1, density=0.01, axis_name="data", weight_decay=1e-4, clip_norm=5.0)
    >>> state = tx.init({"w": jnp.zeros((64, 32))})
    >>> optax.tree.get(state, "momentum")["w"].shape  # outside a mapped axis: no worker, no row
    (0, 64, 32)
  """
  _checks.number_or_schedule("weight_decay", weight_decay)
  # This is how optax.inject_hyperparams hands over arguments that have no name here.
  exchange_options |= exchange_options.pop("exchange_options", {})
  exchange = _sparse.sparse_exchange(
    rtop_k(density, subsample),
    axis_name,
    momentum=momentum,
    nesterov=nesterov,
    **exchange_options,
  )
  parts: list[optax.GradientTransformation] = [exchange]
  if not (isinstance(weight_decay, int | float) and weight_decay == 0):
    parts.append(
      _weight_decay.add_decayed_weights(
        weight_decay, momentum, nesterov=nesterov, mask=weight_decay_mask
      )
    )
  parts.append(optax.scale_by_learning_rate(learning_rate))
  return lockstep(optax.chain(*parts), axis_name)
