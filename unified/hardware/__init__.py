"""What the machine has, asked by every other package: device, precision, threads, waiting, attention, compilation.

A command calls `waiting.set_wait_policy` before torch loads and `setup.set_up` before it works; the rest is theirs.

allocator   what the C library does with freed memory
arguments   flags and environment variables that override what is chosen
compiler    what torch.compile needs
console     what a terminal can show
decisions   the choice and its reasons, from a machine's numbers alone
device      the best device there is, for library calls that name none
limits      cores, a container's quota, what others leave of them
machine     a machine's numbers
memory      running out of memory, in one line
operations  what torch runs: kernels, waits for the device, products' own time
precision   the dtype in which products run, which autocast may set
probe       asks and measures this machine
quiet       what libraries say on every good run
setup       the one call of every command: probes, decides, sets, says
waiting     how OpenMP's threads wait for each other
"""

__all__ = [
    "allocator",
    "arguments",
    "compiler",
    "console",
    "decisions",
    "device",
    "limits",
    "machine",
    "memory",
    "operations",
    "precision",
    "probe",
    "quiet",
    "setup",
    "waiting",
]
