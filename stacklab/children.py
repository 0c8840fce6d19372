"""Prefixes of command lines, for what must not outlive stacklab: it ends with us, however we end.

Not even kill -9 leaves anything behind that writes on into what the next `stacklab up` makes.
"""

# The command itself. It ends when the thread that started it does.
BOUND = ("setpriv", "--pdeathsig", "KILL")
# The command and all that it starts, as a tree of its own.
BOUND_TREE = (*BOUND, "unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child")
