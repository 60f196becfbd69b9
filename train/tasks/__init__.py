"""What is trained on what; nothing here knows how gradients are exchanged.

1. ``task``: what a task has, which is all that the rest of ``train`` uses of it, and the score of a run.
2. ``named``: what a config names, such as a model or a data set.
3. ``classification``: images and a model that names what they show.
4. ``language``: a text and a model of it, which may carry its state from batch to batch.
5. ``make``: which of them a config asks for, or the user's own task.
"""
