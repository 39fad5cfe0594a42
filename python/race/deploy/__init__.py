"""From a trained run to one file, and from that file to ASE. LAMMPS reads the same file
(lammps_plugin/).
"""
