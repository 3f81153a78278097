"""What the machine has, asked by every other package: which device, which precision.

device     the best device there is
precision  the dtype in which products run, which autocast may set
"""

__all__ = ["device", "precision"]
