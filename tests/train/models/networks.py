"""Independent NumPy versions of the networks, in float64: plain loops, no code shared with the models."""

import numpy as np


def convolve(x, kernel, stride):
  """(n, h, w, c) by (size, size, c, o), padded by half the size."""
  size = kernel.shape[0]
  pad = size // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
  out = np.zeros((x.shape[0], height, width, kernel.shape[-1]))
  for i in range(height):
    for j in range(width):
      patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
      out[:, i, j] = np.tensordot(patch, kernel, 3)
  return out


def max_pool(x):
  """3×3 windows at a stride of 2, padded by 1 with what never wins."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  height, width = ((length - 3) // 2 + 1 for length in x.shape[1:3])
  rows = [
    [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)) for j in range(width)]
    for i in range(height)
  ]
  return np.array(rows).transpose(2, 0, 1, 3)


class ResNet:
  """Residual network of given parameters; ``stats`` None normalises by the batch."""

  def __init__(self, params, stats=None, *, large_stem=False):
    self.params, self.stats, self.large_stem = params, stats, large_stem
    self.seen = []  # (mean, variance) of each normalisation, in order of use

  def _norm(self, x, scale_and_bias, stats):
    mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    self.seen.append((mean, var))
    if stats is not None:
      mean, var = stats["mean"], stats["var"]
    return (x - mean) / np.sqrt(var + 1e-5) * scale_and_bias["scale"] + scale_and_bias["bias"]

  def __call__(self, x):
    """Logits of images (n, h, w, c)."""
    params, stats = self.params, self.stats
    of = lambda tree, name: None if tree is None else tree[name]
    x = convolve(x, params["stem"]["kernel"], 2 if self.large_stem else 1)
    x = np.maximum(self._norm(x, params["norm"], of(stats, "norm")), 0)
    if self.large_stem:
      x = max_pool(x)
    for i, block in params["blocks"].items():
      own = None if stats is None else stats["blocks"][i]
      stride = 2 if "conv_shortcut" in block else 1
      y = convolve(x, block["conv1"]["kernel"], stride)
      y = np.maximum(self._norm(y, block["norm1"], of(own, "norm1")), 0)
      y = convolve(y, block["conv2"]["kernel"], 1)
      y = self._norm(y, block["norm2"], of(own, "norm2"))
      if stride == 2:
        x = convolve(x, block["conv_shortcut"]["kernel"], stride)
        x = self._norm(x, block["norm_shortcut"], of(own, "norm_shortcut"))
      x = np.maximum(x + y, 0)
    return x.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def cross_entropy(logits, labels):
  """Of each example; labels are integers."""
  logits = logits - logits.max(-1, keepdims=True)
  logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(logs, labels[..., None], -1)[..., 0]


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm(params, words, carry, masks):
  """An LSTM language model, one word and one stream after another.

  Args:
    params: "embedding" (v, u), "bias" (v,), "layers": {i: "from_input", "from_hidden", "bias"}.
    words: (batch, time).
    carry: (layers, 2, batch, u): cell and hidden state.
    masks: what multiplies the input of each layer and of the output, (layers + 1, time, batch, u).

  Returns:
    Logits (batch, time, v), the carry after them, and what ``lstm_gradients`` needs.
  """
  batch, time = words.shape
  logits = np.zeros((batch, time, len(params["bias"])))
  carry = np.array(carry, np.float64)
  tape = []
  for t in range(time):
    x = params["embedding"][words[:, t]]
    for i, layer in params["layers"].items():
      x = x * masks[i, t]
      cell, hidden = carry[i].copy()
      gates = x @ layer["from_input"] + hidden @ layer["from_hidden"] + layer["bias"]
      write, forget, new, read = np.split(gates, 4, axis=1)
      write, forget, new, read = _sigmoid(write), _sigmoid(forget), np.tanh(new), _sigmoid(read)
      after = forget * cell + write * new
      out = read * np.tanh(after)
      tape.append((t, i, x, cell, hidden, write, forget, new, read, after))
      carry[i] = after, out
      x = out
    x = x * masks[-1, t]
    tape.append((t, None, x))
    logits[:, t] = x @ params["embedding"].T + params["bias"]
  return logits, carry, tape


def lstm_gradients(params, words, masks, tape, d_logits):
  """Backpropagation through time by hand, of a loss whose gradient at the logits is ``d_logits``."""
  zeros = lambda tree: {
    k: zeros(v) if isinstance(v, dict) else np.zeros_like(v) for k, v in tree.items()
  }
  grads = zeros(params)
  layers, units = len(params["layers"]), params["embedding"].shape[1]
  d_cell = np.zeros((layers, len(words), units))
  d_hidden = np.zeros_like(d_cell)
  d_out = None  # what reaches the output of the layer below at this time
  for entry in reversed(tape):
    t, i = entry[:2]
    if i is None:
      grads["embedding"] += d_logits[:, t].T @ entry[2]
      grads["bias"] += d_logits[:, t].sum(0)
      d_out = d_logits[:, t] @ params["embedding"] * masks[-1, t]
      continue
    _, _, x, cell, hidden, write, forget, new, read, after = entry
    layer, own = params["layers"][i], grads["layers"][i]
    d_h = d_out + d_hidden[i]
    d_c = d_cell[i] + d_h * read * (1 - np.tanh(after) ** 2)
    d_gates = np.concatenate(
      [
        d_c * new * write * (1 - write),
        d_c * cell * forget * (1 - forget),
        d_c * write * (1 - new**2),
        d_h * np.tanh(after) * read * (1 - read),
      ],
      axis=1,
    )
    own["from_input"] += x.T @ d_gates
    own["from_hidden"] += hidden.T @ d_gates
    own["bias"] += d_gates.sum(0)
    d_cell[i], d_hidden[i] = d_c * forget, d_gates @ layer["from_hidden"].T
    d_out = d_gates @ layer["from_input"].T * masks[i, t]
    if i == 0:
      np.add.at(grads["embedding"], words[:, t], d_out)
  return grads


def _rms_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def _turned(x, base):
  """Each pair of entries (i, i + half) as a complex number that is turned by the position."""
  half = x.shape[-1] // 2
  pairs = x[..., :half] + 1j * x[..., half:]
  for position in range(x.shape[0]):
    pairs[position] *= np.exp(1j * position * base ** (-np.arange(half) / half))
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def transformer(params, words, heads, base):
  """A decoder-only transformer, one window, head and query after another.

  Args:
    params: "embedding" (v, w), "layers": {i: …}, "norm", and "head" (w, v) where it is not tied.
    words: (batch, time).
    heads: of attention.
    base: of the rotation.

  Returns:
    Logits (batch, time, v).
  """
  found = []
  for window in words:
    x = params["embedding"][window]
    for layer in params["layers"].values():
      own = layer["attention"]
      y = _rms_norm(x, layer["before_attention"]["scale"])
      query, key, value = (
        np.split(y @ own[name], heads, axis=1) for name in ("query", "key", "value")
      )
      out = np.zeros((heads, *value[0].shape))
      for h in range(heads):
        turned_query, turned_key = _turned(query[h], base), _turned(key[h], base)
        for t in range(len(window)):
          logits = turned_key[: t + 1] @ turned_query[t] / np.sqrt(query[h].shape[1])
          shares = np.exp(logits - logits.max())
          out[h, t] = shares / shares.sum() @ value[h][: t + 1]
      x = x + np.concatenate(out, axis=1) @ own["out"]
      y = _rms_norm(x, layer["before_network"]["scale"])
      x = x + _gelu(y @ layer["network"]["up"]) @ layer["network"]["down"]
    head = params["head"] if "head" in params else params["embedding"].T
    found.append(_rms_norm(x, params["norm"]["scale"]) @ head)
  return np.stack(found)
