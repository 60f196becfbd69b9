"""What is trained on what; nothing here knows how gradients are exchanged.

1. ``task``: what a task has, which is all that the rest of ``train`` uses of it, and the score of a run.
2. ``classification``: images and a ResNet.
3. ``language``: a text and an LSTM, whose state is carried from batch to batch.
4. ``make``: which of them a config asks for, or the user's own task.
"""
