"""Tries to break the LAMMPS side: `make torture` runs all of it, test_torture.py a part.
Everything is generated from a seed.
"""
