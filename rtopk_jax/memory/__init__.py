"""What a worker remembers of what it did not send: error feedback and momentum correction.

Comes in: a worker's gradient, momentum and residual, and later what was sent of them. Goes out: v, the vector to
select from, and the momentum and residual after the step.

1. ``_rule`` has the equations, one entry at a time: ``Memory.vector`` is v before the exchange.
2. ``_update`` is the one update after it: the same equations on whole leaves, then the sent entries, in place.

Whoever changes error feedback reads these two files. The state's rows are made and checked in ``transform``; what
is taken from the residual is said by a collective, as ``Sent``. Users reach all of it by ``sparse_exchange``.
"""
