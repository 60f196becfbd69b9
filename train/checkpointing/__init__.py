"""The folder of a job: what is saved in it, and how a run goes on from there.

1. ``folder``: one run holds a folder at a time; files are written whole; a disk that
   refuses is told in one line.
2. ``integrity``: digests, by which a damaged checkpoint is recognised.
3. ``checkpoints``: saves a run, and finds the last checkpoint that is whole.
4. ``compatibility``: refuses a config that is not the one of the checkpoints.
5. ``elastic``: a checkpoint of n workers opened by another number of them.
6. ``trained``: weights, config and task of a run, for whoever uses what was learnt.
"""
