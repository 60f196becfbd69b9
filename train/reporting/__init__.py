"""What a run says of itself while it trains, and what a comparison ends with.

1. ``progress``: the bar or the lines on the terminal.
2. ``clock``: how long a run takes, and how long it will.
3. ``writer``: ``steps.jsonl`` and TensorBoard's files; ``events`` is the format of the latter.
4. ``profiling``: a profile of a few steps.
5. ``report``: the table and the picture of all methods.
"""
