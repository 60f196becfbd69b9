"""Several processes that train together, usually one a host.

1. ``cluster``: joins the processes, and leaves; the rest of ``train`` calls this one.
2. ``hub``: what process 0 serves: who is there, who has gone silent, and what all must agree on.
3. ``member``: a process's line to the hub, and its end when another process is gone.
4. ``identity``: config, code and data as digests, which must be the same in all processes.
"""
