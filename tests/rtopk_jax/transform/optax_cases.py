"""Transformations of optax: after an exchange, before one, around one, and those that are refused."""

import jax
import optax

import rtopk_jax
from tests.rtopk_jax.harness import AXIS


def exchange(**options):
  return rtopk_jax.sparse_exchange(rtopk_jax.top_k(1.0), AXIS, **{"dense": False, **options})


mask = {"w": True, "b": False}

contrib = optax.contrib

# An optimizer, or what is done with the mean gradient.
AFTER = {
  "adabelief": lambda: optax.adabelief(0.01),
  "adadelta": lambda: optax.adadelta(0.1),
  "adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4),
  "adagrad": lambda: optax.adagrad(0.1),
  "adam": lambda: optax.adam(0.01),
  "adamax": lambda: optax.adamax(0.01),
  "adamaxw": lambda: optax.adamaxw(0.01),
  "adamw": lambda: optax.adamw(optax.linear_schedule(0.1, 0.0, 3), mask=mask),
  "adan": lambda: optax.adan(0.01),
  "amsgrad": lambda: optax.amsgrad(0.01),
  "fromage": lambda: optax.fromage(0.01),
  "lamb": lambda: optax.lamb(0.01),
  "lars": lambda: optax.lars(0.01),
  "lion": lambda: optax.lion(0.01),
  "nadam": lambda: optax.nadam(0.01),
  "nadamw": lambda: optax.nadamw(0.01),
  "noisy_sgd": lambda: optax.noisy_sgd(0.01, key=1),
  "novograd": lambda: optax.novograd(0.01),
  "optimistic_adam": lambda: optax.optimistic_adam_v2(0.01),
  "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.1),
  "polyak_sgd": lambda: optax.polyak_sgd(),
  "radam": lambda: optax.radam(0.01),
  "rmsprop": lambda: optax.rmsprop(0.01, momentum=0.9),
  "rprop": lambda: optax.rprop(0.01),
  "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
  "sign_sgd": lambda: optax.sign_sgd(0.01),
  "signum": lambda: optax.signum(0.01),
  "sm3": lambda: optax.sm3(0.1),
  "yogi": lambda: optax.yogi(0.01),
  "acprop": lambda: contrib.acprop(0.01),
  "ademamix": lambda: contrib.ademamix(0.01),
  "simplified_ademamix": lambda: contrib.simplified_ademamix(0.01),
  "adopt": lambda: contrib.adopt(0.01),
  "cocob": lambda: contrib.cocob(),
  "dadapt_adamw": lambda: contrib.dadapt_adamw(),
  "dog": lambda: optax.chain(contrib.dog(), optax.scale(-1.0)),
  "dowg": lambda: optax.chain(contrib.dowg(), optax.scale(-1.0)),
  "galore": lambda: optax.chain(contrib.scale_by_galore(2), optax.scale(-0.01)),
  "madgrad": lambda: contrib.madgrad(0.01),
  "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
  "momo": lambda: contrib.momo(0.1),
  "momo_adam": lambda: contrib.momo_adam(0.01),
  "muon": lambda: contrib.muon(0.01),
  "prodigy": lambda: contrib.prodigy(0.1),
  "reduce_on_plateau": lambda: optax.chain(
    optax.sgd(0.1), contrib.reduce_on_plateau(patience=1, rtol=0.5)
  ),
  "schedule_free": lambda: contrib.schedule_free_sgd(0.1),
  "add_noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, key=3), optax.sgd(0.1)),
  "add_decayed_weights": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  "apply_every": lambda: optax.chain(optax.apply_every(2), optax.sgd(0.1)),
  "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.01), 3),
  "conditionally_transform": lambda: optax.chain(
    optax.conditionally_transform(optax.clip(0.01), lambda step: step > 1), optax.sgd(0.1)
  ),
  "ema": lambda: optax.chain(optax.ema(0.9), optax.sgd(0.1)),
  "flatten": lambda: optax.flatten(optax.adam(0.01)),
  "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
    optax.linear_schedule(0.1, 0.0, 3)
  ),
  "keep_params_nonnegative": lambda: optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
  "masked": lambda: optax.chain(optax.masked(optax.trace(0.9), mask), optax.sgd(0.1)),
  "multi_steps": lambda: optax.MultiSteps(optax.adam(0.01), 2).gradient_transformation(),
  "skip_not_finite": lambda: optax.MultiSteps(
    optax.adam(0.01), 2, should_skip_update_fn=optax.skip_not_finite
  ).gradient_transformation(),
  "named_chain": lambda: optax.named_chain(("a", optax.trace(0.9)), ("b", optax.sgd(0.1))),
  "partition": lambda: optax.partition({True: optax.adam(0.01), False: optax.sgd(0.1)}, mask),
  "freeze": lambda: optax.chain(optax.adam(0.01), optax.freeze({"w": False, "b": True})),
  "selective_transform": lambda: optax.selective_transform(
    optax.adam(0.01), freeze_mask={"w": False, "b": True}
  ),
  "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.01)),
  "sam": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2),
  "normalize": lambda: optax.chain(contrib.normalize(), optax.sgd(0.1)),
  "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.sgd(0.1)),
}

# What each worker does to its own gradient.
BEFORE = {
  "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.05),
  "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
  "apply_every": lambda: optax.apply_every(2),
  "centralize": lambda: optax.centralize(),
  "clip": lambda: optax.clip(0.01),
  "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.01),
  "clip_by_global_norm": lambda: optax.clip_by_global_norm(0.1),
  "conditionally_transform": lambda: optax.conditionally_transform(
    optax.clip(0.01), lambda step: step > 1
  ),
  "ema": lambda: optax.ema(0.9),
  "flatten": lambda: optax.flatten(optax.trace(0.9)),
  "galore": lambda: contrib.scale_by_galore(2),
  "keep": lambda: optax.identity(),
  "masked": lambda: optax.masked(optax.trace(0.9), mask),
  "named_chain": lambda: optax.named_chain(("a", optax.trace(0.5)), ("b", optax.ema(0.5))),
  "normalize": lambda: contrib.normalize(),
  "partition": lambda: optax.partition({True: optax.trace(0.9), False: optax.identity()}, mask),
  "scale_by_adam": lambda: optax.scale_by_adam(),
  "scale_by_factored_rms": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
  "scale_by_lion": lambda: optax.scale_by_lion(),
  "scale_by_rms": lambda: optax.scale_by_rms(),
  "scale_by_sm3": lambda: optax.scale_by_sm3(),
  "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.trace(0.9)),
  "trace": lambda: optax.trace(0.9, nesterov=True),
  "zero_nans": lambda: optax.zero_nans(),
}

OF_STATE = lambda first: optax.chain(first, optax.adam(0.01))

# From the exchange, or what does nothing in its place, to the whole.
AROUND = {
  "chain": OF_STATE,
  "conditionally_mask": lambda first: optax.conditionally_mask(
    OF_STATE(first), lambda step: step > 1
  ),
  "flatten": lambda first: optax.flatten(OF_STATE(first)),
  "inject_hyperparams": lambda first: optax.inject_hyperparams(
    lambda rate: optax.chain(first, optax.adam(rate))
  )(0.01),
  "lookahead": lambda first: optax.lookahead(OF_STATE(first), 2, 0.5),
  "multi_steps": lambda first: optax.MultiSteps(OF_STATE(first), 2).gradient_transformation(),
  "multi_steps_sum": lambda first: optax.MultiSteps(
    OF_STATE(first), 2, use_grad_mean=False
  ).gradient_transformation(),
  "named_chain": lambda first: optax.named_chain(("a", first), ("b", optax.adam(0.01))),
  "partition": lambda first: optax.partition(
    {True: OF_STATE(first), False: optax.chain(first, optax.sgd(0.1))}, mask
  ),
  "partition_frozen": lambda first: optax.partition(
    {True: OF_STATE(first), False: optax.set_to_zero()}, mask
  ),
  "sam": lambda first: contrib.sam(
    optax.chain(first, optax.sgd(0.1)), optax.chain(first, optax.sgd(0.05)), sync_period=2
  ),
  "schedule_free": lambda first: contrib.schedule_free(optax.chain(first, optax.sgd(0.1)), 0.1),
  "split_real_and_imaginary": lambda first: contrib.split_real_and_imaginary(OF_STATE(first)),
  "with_extra_args": lambda first: optax.with_extra_args_support(OF_STATE(first)),
}

DEADLOCK = "under a condition that can differ between workers.*rtopk_jax.lockstep"

PARTED = r"makes updates\['\w'\].* went through no exchange, and workers would part ways"

REFUSED = {
  "apply_if_finite around": (
    lambda: optax.apply_if_finite(optax.chain(exchange(), optax.sgd(0.1)), 3),
    DEADLOCK,
  ),
  "conditionally_transform around": (
    lambda: optax.conditionally_transform(exchange(), lambda step: step > 1),
    PARTED,
  ),
  "lbfgs after": (
    lambda: optax.chain(exchange(), optax.lbfgs()),
    "update wants arguments.*value_fn",
  ),
  "masked around": (lambda: optax.masked(exchange(), mask), r"updates\['b'\].*dense=mask"),
  "masked around nothing": (
    lambda: optax.masked(exchange(), lambda params: jax.tree.map(lambda _: False, params)),
    PARTED,
  ),
  "mechanize around": (
    lambda: contrib.mechanize(optax.chain(exchange(), optax.sgd(0.1))),
    f"{PARTED}.*goes after the exchange",
  ),
  "monitor after": (
    lambda: optax.chain(exchange(), optax.monitor({"norm": optax.tree.norm})),
    "state of another structure than tx.init",
  ),
  "multi_steps with a condition around": (
    lambda: optax.MultiSteps(
      exchange(), 2, should_skip_update_fn=optax.skip_not_finite
    ).gradient_transformation(),
    DEADLOCK,
  ),
  "multi_steps unfinished": (
    lambda: optax.MultiSteps(exchange(), 2),
    "tx must be an optax.GradientTransformation.*pass tx.gradient_transformation",
  ),
  "nothing": (lambda: optax.sgd(0.1), "tx has no exchange in it"),
  "partition without an exchange": (
    lambda: optax.partition({True: exchange(), False: optax.sgd(0.1)}, mask),
    r"updates\['b'\].*workers would part ways",
  ),
}
