"""Workers on a device mesh: local gradients, state with a row of every worker, and a ready training step.

Comes in: parameters, batch and state from anywhere. Goes out: global arrays on the user's mesh.

1. ``_local`` takes gradients of one worker's loss, with no sum over workers hidden in them.
2. ``_specs`` says where each leaf of a state lives, and makes the first state.
3. ``_train_step`` is the compiled step for users of ``jit``; ``_worker_step`` is the function that it compiles.
4. ``_placement`` puts arrays on a mesh with axes of any type.
5. ``_resize`` deals what n workers remember to another number of them.
"""

from rtopk_jax.mesh._local import local as local
from rtopk_jax.mesh._local import local_value_and_grad as local_value_and_grad
from rtopk_jax.mesh._resize import resize_rows as resize_rows
from rtopk_jax.mesh._resize import resize_workers as resize_workers
from rtopk_jax.mesh._specs import init as init
from rtopk_jax.mesh._specs import state_axes as state_axes
from rtopk_jax.mesh._specs import state_specs as state_specs
from rtopk_jax.mesh._train_step import make_train_step as make_train_step
