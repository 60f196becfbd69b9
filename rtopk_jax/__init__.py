"""rTop-k gradient compression for JAX, as an optax transformation."""

from rtopk_jax._platform import platform as platform
from rtopk_jax.exchange._auto import Auto as Auto
from rtopk_jax.exchange._auto import Hierarchical as Hierarchical
from rtopk_jax.exchange._collective import AllGather as AllGather
from rtopk_jax.exchange._cost import Link as Link
from rtopk_jax.exchange._cost import LocalSpeed as LocalSpeed
from rtopk_jax.exchange._reduce_scatter import ReduceScatter as ReduceScatter
from rtopk_jax.mesh._local import local as local
from rtopk_jax.mesh._local import local_value_and_grad as local_value_and_grad
from rtopk_jax.mesh._resize import resize_rows as resize_rows
from rtopk_jax.mesh._resize import resize_workers as resize_workers
from rtopk_jax.mesh._specs import init as init
from rtopk_jax.mesh._specs import state_axes as state_axes
from rtopk_jax.mesh._specs import state_specs as state_specs
from rtopk_jax.mesh._train_step import make_train_step as make_train_step
from rtopk_jax.planning._advice import Advice as Advice
from rtopk_jax.planning._advice import advise as advise
from rtopk_jax.planning._speed import measure_local as measure_local
from rtopk_jax.select._named import random_k as random_k
from rtopk_jax.select._named import rtop_k as rtop_k
from rtopk_jax.select._named import top_k as top_k
from rtopk_jax.select._selector import Selector as Selector
from rtopk_jax.select._slices import SparseSlices as SparseSlices
from rtopk_jax.select._warmup import Stages as Stages
from rtopk_jax.select._warmup import warmup_density as warmup_density
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
from rtopk_jax.vector._layout import Block as Block
from rtopk_jax.wire._wire import Wire as Wire

__version__ = "0.1.0"
