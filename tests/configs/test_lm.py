"""The presets of language models: what each exchanges, what its name may have behind it, and that it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rtopk_jax
from configs import lm
from train import train_and_evaluate
from train.planning import settings
from train.steps import methods

pytestmark = pytest.mark.usefixtures("usual_promotion")
SHAPES = {"a": (33, 128)}


def _exchanged(config, rounds=2):
  """What the means of some rounds are, of gradients that are drawn, with the config's exchange."""
  (method,) = config.methods
  tx = methods.exchange(config, method, 1, 0)
  return _means(tx, rounds)


def _means(tx, rounds=2):
  rng = np.random.default_rng(0)
  draw = lambda: {
    name: jnp.asarray(rng.standard_normal((4, *shape)), jnp.float32)
    for name, shape in SHAPES.items()
  }
  zeros = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  axes = rtopk_jax.state_axes(tx, zeros)
  update = jax.jit(jax.vmap(tx.update, (0, axes), (None, axes), axis_name=methods.AXIS))
  init = jax.vmap(tx.init, None, axes, axis_name=methods.AXIS, axis_size=4)
  state, found = init(zeros), []
  for _ in range(rounds):
    mean, state = update(draw(), state)
    found.append(mean)
  return found


def test_sparseloco_is_top_64_of_4096_in_2_bits_with_a_decaying_memory():
  config = lm.get_config("sparseloco")
  tx = rtopk_jax.sparse_exchange(
    rtopk_jax.top_k(64 / 4096),
    methods.AXIS,
    scope=rtopk_jax.Block(4096),
    average="senders",
    memory_decay=0.95,
    dense=False,
    wire=rtopk_jax.Wire("int2", "block"),
  )
  for a, b in zip(_exchanged(config), _means(tx), strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  # A block of 64 entries and one of 2: 2 + 12 bits each, beside scales and a header, in a tile of 512 bytes.
  params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
  assert rtopk_jax.wire_bytes(methods.exchange(config, "topk", 1, 0), params, 4).sent == 512


def test_outer_steps_are_diloco_s_and_sparseloco_s():
  diloco, sparse = lm.get_config("diloco"), lm.get_config("sparseloco")
  outer = lambda c: (c.outer_learning_rate, c.outer_momentum, c.outer_nesterov)
  assert outer(diloco) == (0.7, 0.9, True)
  # The memory is in the place of momentum.
  assert outer(sparse) == (1.0, 0.0, False)
  assert sparse.error_feedback
  for config in (diloco, sparse):
    assert config.setting == "federated"
    assert config.optimizer.name == "adamw"
    assert config.keep_local_optimizer


def test_the_random_subset_is_of_a_block_s_largest():
  config = lm.get_config("sparseloco_rtopk")
  assert dict(lm.get_config("sparseloco"), methods=None) == dict(config, methods=None)
  assert config.methods == ("rtopk",)


@pytest.mark.parametrize("preset", lm.PRESETS)
def test_presets_are_configs_without_momentum_on_both_sides(preset):
  config = lm.get_config(preset)
  settings.check(config)
  assert config.momentum == 0


def test_a_density_may_follow_where_one_is():
  assert lm.get_config("sparse").density == 0.01
  assert lm.get_config("sparse,0.05").density == 0.05
  assert lm.get_config("sparseloco, 0.03").density == 0.03
  assert lm.get_config().methods == ("none",)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("loco", r"PRESET is one of nanogpt, dense, .* such as sparse,0.01; got 'loco'"),
    ("dense,0.1", r"PRESET dense sends everything and has no DENSITY"),
    ("sparse,2", r"DENSITY is the share that is sent, above 0 and below 1"),
    ("sparse,much", r"DENSITY is the share that is sent"),
    ("sparse,0.1,0.2", r"PRESET is one of"),
  ],
)
def test_what_is_no_preset_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    lm.get_config(text)


@pytest.mark.slow
@pytest.mark.parametrize(
  "preset", ["nanogpt", "dense", "sparse,0.05", "diloco", "sparseloco", "sparseloco_rtopk,0.05"]
)
def test_presets_train_on_python_s_own_text(preset, tmp_path):
  config = lm.get_config(preset)
  config.dataset, config.compilation_cache = "python_docs_characters", None
  config.model.layers, config.model.heads, config.model.width = 1, 2, 32
  config.batch_size, config.unroll, config.max_batches, config.eval_batch_size = 8, 16, 20, 500
  config.train_examples, config.learning_rate, config.workers = 40_000, 1e-2, "simulated"
  if config.setting == "federated":
    config.local_steps = 5
  record = train_and_evaluate(config, str(tmp_path))[-1]
  assert record["step"] * (config.local_steps or 1) == 20
  assert record["skipped_steps"] == 0
  # Less than that of a guess among 66 characters.
  assert record["train_loss"] < np.log(66)
  assert np.isfinite(record["valid_loss"])
  assert "| method | validation loss |" in (tmp_path / "results.md").read_text()
