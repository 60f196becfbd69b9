"""Optimizers on both sides of the exchange, against optax and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.steps.workers import started
from train import ConfigError
from train.planning import settings
from train.planning.plan import make_plan
from train.steps.optimizers import optimizer
from train.steps.schedules import learning_rate, of_exchanges

pytestmark = pytest.mark.usefixtures("usual_promotion")


def _with(config, name, **fields):
  config.optimizer.name, config.momentum, config.schedule = name, 0.0, "step"
  config.methods, config.learning_rate = ("none",), 0.05
  for field, value in fields.items():
    config.optimizer[field] = value


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_step_after_the_exchange_is_optax_s_of_the_mean_gradient(config, name):
  _with(config, name, b2=0.9)
  config.weight_decay = 0.1
  task, _, state, step = started(config, "none", "simulated")
  params, means = state.params, state.model_state
  if name == "adamw":
    mask = {"w": True, "b": False}
    tx = optax.adamw(0.05, 0.9, 0.9, weight_decay=0.1, mask=mask)
  else:
    tx = optax.contrib.muon(0.05, weight_decay=0.1, adam_b2=0.9, consistent_rms=0.2)
  own = tx.init(params)
  source = task.source(seed=0)
  gradient = jax.jit(jax.grad(task.loss, has_aux=True))
  for s in range(4):
    found = []
    for i in range(4):
      mine = jax.tree.map(lambda x, i=i: x[i], means)
      g, (mine, _) = gradient(params, mine, source.batch(0, s, i))
      found.append((g, mine))
    mean = jax.tree.map(lambda *x: sum(x) / 4, *(g for g, _ in found))
    means = jax.tree.map(lambda *x: jnp.stack(x), *(m for _, m in found))
    updates, own = tx.update(mean, own, params)
    params = optax.apply_updates(params, updates)
    state, _ = step(state)
  for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_local_steps_are_optax_s_and_go_on_or_begin_anew(config, keep):
  _with(config, "adamw")
  config.setting, config.local_steps, config.num_workers = "federated", 2, 1
  config.keep_local_optimizer, config.learning_rate_warmup = keep, 0.3
  task, workers, state, _ = started(config, "none", "simulated")
  # 40 batches of the only worker in an epoch, and 3 of them: the rate rises for 36 of 120 local steps.
  rate = lambda i: 0.05 * (i + 1) / 37
  params, mine = state.params, jax.tree.map(lambda x: x[0], state.model_state)
  source = task.source(seed=0)
  gradient = jax.jit(jax.grad(task.loss, has_aux=True))
  own = None
  for r in range(3):
    for s in range(2):
      scale = optax.scale_by_adam()
      own = scale.init(params) if own is None or (s == 0 and not keep) else own
      g, (mine, _) = gradient(params, mine, source.batch(0, 2 * r + s, 0))
      updates, own = scale.update(g, own, params)
      params = jax.tree.map(lambda p, u, r=r, s=s: p - rate(2 * r + s) * u, params, updates)
    batches = (jax.tree.map(lambda x: x[None], source.batch(0, 2 * r + s, 0)) for s in range(2))
    state, _ = workers.step(state, batches, jnp.int32(0))
    for name, x in params.items():
      np.testing.assert_allclose(state.params[name], x, rtol=1e-4, atol=1e-5)


def test_muon_leaves_the_embedding_and_the_head_to_adamw(config):
  _with(config, "muon")
  leaf = jnp.ones((6, 4))
  params = {"embedding": leaf, "layers": {0: {"up": leaf}}, "head": leaf, "norm": jnp.ones(4)}
  step = optimizer(config).after(config, 1.0)
  gradient = jax.tree.map(
    lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params
  )
  updates, _ = step.update(gradient, step.init(params), params)
  # AdamW's first step is the sign, with Nesterov's momentum of some height. Muon's is not, and has the root mean
  # square asked for, or nearly so.
  for name in ("embedding", "head", "norm"):
    height = float(jnp.abs(updates[name]).max())
    np.testing.assert_allclose(updates[name], -height * jnp.sign(gradient[name]), rtol=1e-4)
  of_muon = np.asarray(updates["layers"][0]["up"])
  assert of_muon.std() > 0.05
  assert np.abs(of_muon).std() > 0.01
  assert 0.1 < np.sqrt(np.mean(of_muon**2)) < 0.3


@pytest.mark.parametrize(
  ("name", "setting"),
  [
    ("muon", "federated"),
    pytest.param("adamw", "distributed", marks=pytest.mark.slow),
    pytest.param("adamw", "federated", marks=pytest.mark.slow),
    pytest.param("muon", "distributed", marks=pytest.mark.slow),
  ],
)
def test_devices_do_what_simulated_workers_do(config, name, setting):
  _with(config, name)
  config.setting, config.methods, config.density = setting, ("rtopk",), 0.2
  if setting == "federated":
    config.local_steps, config.keep_local_optimizer = 2, True
  states = []
  for kind in ("simulated", "devices"):
    _, _, state, step = started(config, "rtopk", kind)
    for _ in range(3):
      state, metrics = step(state)
    assert metrics["skipped_steps"] == 0
    states.append(jax.device_get(state))
  for a, b in zip(*(jax.tree.leaves(x) for x in states), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(momentum=0.9), r"config.momentum must be 0.0 .*'adamw', which has momentum of its own"),
    (dict(nesterov=True), r"config.nesterov must be False with config.optimizer.name='adamw'"),
    (dict(learning_rate_end=2.0), r"config.learning_rate_end must be at most config.learning_rate"),
    (dict(learning_rate_warmup=1.0), r"config.learning_rate_warmup must be at least 0 and below 1"),
  ],
)
def test_what_would_count_twice_or_never_is_refused(config, fields, message):
  _with(config, "adamw")
  settings.check(config)
  for field, value in fields.items():
    config[field] = value
  with pytest.raises(ConfigError, match=message):
    settings.check(config)


def test_fields_of_another_optimizer_are_refused(config):
  config.optimizer.b1 = 0.8
  with pytest.raises(
    ConfigError, match=r"config.optimizer.b1 must be 0.9 .*'sgd', where it has no"
  ):
    settings.check(config)
  config.optimizer.name = "adam"
  with pytest.raises(ConfigError, match=r"config.optimizer.name must be one of sgd, adamw, muon"):
    settings.check(config)


def test_a_rate_rises_in_a_line_and_falls_to_its_end(config):
  config.schedule, config.learning_rate, config.learning_rate_end = "cosine", 2.0, 0.2
  config.learning_rate_warmup = 0.1
  rate = learning_rate(config, per_epoch=10, total=100)
  expected = [2 / 11, 2 * 6 / 11, 2.0, 0.2 + 0.9 * (1 + np.cos(np.pi / 2)), 0.2]
  np.testing.assert_allclose([rate(x) for x in (0, 5, 10, 55, 100)], expected, rtol=1e-5)
  # Of rounds it is that of their first local steps.
  config.setting = "federated"
  rounds = of_exchanges(config, per_epoch=2, total=20, batches=5)
  np.testing.assert_allclose([rounds(x) for x in (0, 1, 2, 11, 20)], expected, rtol=1e-5)


def test_batches_end_a_run_whatever_is_exchanged_when(config):
  config.max_batches = 12
  assert make_plan(config, 10).exchanges == 12
  config.setting, config.local_steps = "federated", 5
  assert make_plan(config, 10).exchanges == 2
  config.max_batches = 3
  assert make_plan(config, 10).exchanges == 1
