"""Takes a cell and the names it needs to another machine.

The user's side uses ``analysis``, ``capture`` and ``replay``; the container uses ``restore``
alone. Nothing is imported here, so that the container loads no more than it needs.
"""
