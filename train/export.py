"""The weights of a run and nothing else, for other programs.

python -m train.export --workdir=DIR --method=rtopk --seed=0 --to=weights.safetensors

A file that ends with .safetensors, or a folder, which is a checkpoint of Orbax: in both, weights and the
statistics that an evaluation needs. The file has flat names, "params.head.kernel", and the config.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from train.checkpointing import folder
from train.command import program
from train.errors import UserError


def main(arguments: Sequence[str]) -> None:
  """Exports."""
  parser = program.Parser("train.export", __doc__)
  parser.add_argument("--to", metavar="PATH", help="FILE.safetensors, or a folder for Orbax")
  options = program.with_run(parser, arguments)
  if not options.to:
    raise UserError("--to is missing, such as --to=weights.safetensors.")
  if os.path.lexists(os.path.expanduser(options.to)):
    raise UserError(f"--to={options.to} is there already; name another, or delete it.")
  path = folder.local(options.to, "--to")
  from train.checkpointing import trained

  run = trained.load_trained(
    options.workdir, options.method, options.seed, options.step, options.data_dir
  )
  with folder.told(path.parent):
    folder.make(path.parent)
    save(run, path)
  print(f"{run.method} seed {run.seed} at step {run.step} is in {path}")


def save(run: Any, path: pathlib.Path) -> None:
  """Writes a run's weights and statistics.

  Args:
    run: as ``train.load_trained`` gives it.
    path: a file that ends with .safetensors, or a folder that there is not yet.
  """
  import jax
  import numpy as np

  from train.checkpointing import compatibility

  tree = {"params": run.params, "statistics": run.statistics}
  if path.suffix == ".safetensors":
    from safetensors.numpy import save_file

    flat = {
      jax.tree_util.keystr(where, simple=True, separator="."): np.ascontiguousarray(x)
      for where, x in jax.tree.leaves_with_path(tree)
    }
    about = {
      "method": run.method,
      "seed": str(run.seed),
      "step": str(run.step),
      "config": json.dumps(compatibility.fields_of(run.config)),
    }
    save_file(flat, path, metadata=about)
    return
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as writer:
    writer.save(path.absolute(), jax.tree.map(np.asarray, tree))


if __name__ == "__main__":
  program.run(main)
