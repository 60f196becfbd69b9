"""The tables of the paper; ``python -m train.tables`` is their command line.

1. ``printed``: every table as the paper prints it.
2. ``runs``: each row as a run of ``train.main``, in a directory of its own.
3. ``results``: what the runs came to, beside what is printed, as Markdown and as a picture.
"""
