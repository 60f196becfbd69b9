"""Wrong use of rounds of local steps is refused by name."""

import jax
import numpy as np
import optax
import pytest

import rtopk_jax
from tests.rtopk_jax.transform.rounds import AXIS, RATE, exchange, loss_fn, problem


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"inner": 0.1}, TypeError, "inner must be an optax.GradientTransformation, or a function"),
    ({"exchange": "rtopk"}, TypeError, "exchange must be an optax.GradientTransformation"),
    ({"outer": 0.7}, TypeError, "outer must be an optax.GradientTransformation, got 0.7"),
    ({"loss_fn": None}, TypeError, "loss_fn must be a function, got None"),
    ({"axis_name": 3}, TypeError, "axis_name must be the name of a mapped axis"),
    ({"keep_inner": 1}, TypeError, "keep_inner must be True or False, got 1"),
    ({"has_aux": "yes"}, TypeError, "has_aux must be True or False"),
    ({"has_model_state": None}, TypeError, "has_model_state must be True or False"),
  ],
)
def test_wrong_arguments_are_refused(change, error, message):
  good = {"loss_fn": loss_fn, "inner": optax.sgd(1.0), "exchange": exchange(), "axis_name": AXIS}
  with pytest.raises(error, match=message):
    rtopk_jax.federated(**{**good, **change})


def test_no_exchange_is_refused():
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0), optax.identity(), AXIS)
  with pytest.raises(ValueError, match="exchange has no sparse_exchange or dense_exchange in it"):
    fed.tx.init(problem()[0])


@pytest.mark.parametrize(
  "batches", [{"x": 1.0}, {}, {"x": np.zeros((0, 2))}, [np.ones(2), np.ones(3)]]
)
def test_batches_without_one_number_of_local_steps_are_refused(batches):
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0), exchange(), AXIS)
  params = problem()[0]
  with pytest.raises(ValueError, match="batches must have one leading axis"):
    fed.round(params, fed.tx.init(params), batches)


def test_kept_state_made_outside_is_refused():
  params, batches = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(1.0, 0.9), exchange(), AXIS, keep_inner=True)
  outside = fed.tx.init(params)
  with pytest.raises(ValueError, match=r"state.inner.*trace.* was made outside the mapped axis"):
    jax.vmap(lambda x: fed.round(params, outside, x).params, axis_name=AXIS, out_axes=None)(
      jax.tree.map(lambda x: x[0], batches)
    )


def test_a_loss_function_that_returns_something_else():
  params, batches = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), exchange(), AXIS, has_aux=True)
  one = lambda x: fed.round(params, fed.tx.init(params), x).params
  with pytest.raises(
    TypeError,
    match=r"loss_fn must return \(loss, aux\).*as has_model_state=False and has_aux=True say",
  ):
    jax.vmap(one, axis_name=AXIS, out_axes=None)(jax.tree.map(lambda x: x[0], batches))


@pytest.mark.parametrize("weight", [np.ones(3, np.float32), np.bool_(True)])
def test_a_weight_that_is_none(weight):
  params, batches = problem()
  fed = rtopk_jax.federated(loss_fn, optax.sgd(RATE), exchange(), AXIS)
  one = lambda x: fed.round(params, fed.tx.init(params), x, weight=weight).params
  with pytest.raises(
    TypeError, match=r"weight says how much this worker counts.*a real scalar, got"
  ):
    jax.vmap(one, axis_name=AXIS, out_axes=None)(jax.tree.map(lambda x: x[0], batches))
