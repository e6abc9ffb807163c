"""The systems of the field, one file each, with the program that runs in the system's own environment beside it.

Nothing is imported here: the programs are modules of this package, and have only their own environment.
"""
