"""A package for Spack: put this file into packages/py-race-potential of a repository of yours.

`race build-plugin --lammps $(spack location -i lammps)` compiles the plugin for a LAMMPS with the
PLUGIN package and its headers.
"""

from spack.package import depends_on, license, version
from spack_repo.builtin.build_systems.python import PythonPackage


class PyRacePotential(PythonPackage):
    """E(3)-equivariant interatomic potentials that know their own error, from training to
    LAMMPS.
    """

    license("BSD-3-Clause")

    version("0.1.0", url="file:///path/to/race_potential-0.1.0.tar.gz")

    depends_on("cxx", type="build")
    depends_on("cmake@3.26:", type="build")
    depends_on("ninja", type="build")
    depends_on("py-scikit-build-core@0.10:", type="build")
    depends_on("py-pybind11@2.13:", type="build")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-torch@2.11:2.13", type=("build", "link", "run"))
    depends_on("py-e3nn@0.5.6:", type="run")
    depends_on("py-numpy@2:", type="run")
    depends_on("py-ase", type="run")
    depends_on("py-vesin", type="run")
    depends_on("py-pydantic@2:", type="run")
    depends_on("py-pyyaml", type="run")
    depends_on("py-safetensors", type="run")
    depends_on("py-rich", type="run")
    depends_on("py-matplotlib", type="run")
    depends_on("py-jinja2", type="run")
    depends_on("py-tensorboard", type="run")
    depends_on("py-scipy", type="run")
    depends_on("py-shtab", type="run")

    def setup_build_environment(self, env):
        """Without the plugin: the LAMMPS that it is for is not known yet."""
        env.set("SKBUILD_CMAKE_DEFINE", "RACE_LAMMPS=OFF")
        env.set("SKBUILD_BUILD_TARGETS", "_race")
