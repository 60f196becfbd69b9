"""The exchange as optax transformations: local gradients go in, the update that all workers agree on comes out.

1. ``_sparse`` is ``sparse_exchange``: its arguments, state and update. ``_step`` is one step of it, in order:
   clip, memory, select, encode, exchange, reduce, update of the memory. ``_delay`` is a step whose messages arrive
   one step later.
2. ``_gradients`` checks what comes in, and who takes part. ``_state`` has what all states have in common.
3. ``_metrics`` says how an exchange went, and what it sends, by a trace that is not run.
4. ``_dense`` is the uncompressed baseline. ``_sgd`` and ``_weight_decay`` are the paper's recipe as one optimizer.
5. ``_ownership`` finds by tracing which state is each worker's own; ``_dataflow`` follows the trace. ``_lockstep``
   uses it to make a whole chain one step that all workers take, or none. ``_optax`` calls any transformation with what
   it wants. ``_momentum_twice`` warns of a chain that has momentum before the exchange and again after it.
6. ``_federated`` makes one exchange of many local steps. ``_loss`` reads what the user's loss function returns.
"""

from rtopk_jax.transform._delay import InFlight as InFlight
from rtopk_jax.transform._dense import DenseExchangeState as DenseExchangeState
from rtopk_jax.transform._dense import dense_exchange as dense_exchange
from rtopk_jax.transform._federated import Federated as Federated
from rtopk_jax.transform._federated import FederatedState as FederatedState
from rtopk_jax.transform._federated import Local as Local
from rtopk_jax.transform._federated import Round as Round
from rtopk_jax.transform._federated import federated as federated
from rtopk_jax.transform._lockstep import lockstep as lockstep
from rtopk_jax.transform._metrics import ExchangeMetrics as ExchangeMetrics
from rtopk_jax.transform._metrics import WireBytes as WireBytes
from rtopk_jax.transform._metrics import chosen_collectives as chosen_collectives
from rtopk_jax.transform._metrics import exchange_metrics as exchange_metrics
from rtopk_jax.transform._metrics import wire_bytes as wire_bytes
from rtopk_jax.transform._sgd import rtopk_sgd as rtopk_sgd
from rtopk_jax.transform._sparse import SparseExchangeState as SparseExchangeState
from rtopk_jax.transform._sparse import sparse_exchange as sparse_exchange
from rtopk_jax.transform._weight_decay import add_decayed_weights as add_decayed_weights
