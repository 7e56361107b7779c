"""Communication between ranks of one host through shared memory, for arrays in host memory. Imports no MindSpore.

    build.py        compiles and caches the C++ library (src/)
    rendezvous.py   how the ranks of a host find each other and agree on one region
    roster.py       who takes part, who has left or died, the first failure
    transport.py    collectives and messages on addresses; errors instead of hangs

The region is an anonymous memory file (`memfd_create`) that the other ranks open through `/proc/<pid>/fd`: it has no
name in /dev/shm and no size limit from there, and the kernel frees it with the last process, however that ends.
`collectives/shared_memory.py` puts MindSpore tensors on top.
"""
