"""TensorRT plans by name: what a plan was built for, and why another machine must not run it."""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from recsys.contracts.errors import ArtifactError, ConfigError

Flavour = Literal["rtx", "full"]
"""TensorRT-RTX (PyPI, builds without a GPU) or TensorRT (NVIDIA's index, builds on the GPU it is for)."""

ANY_DRIVER = "any"
_NAME = re.compile(
    r"(?P<graph>open|append)-(?P<gpu>[a-z0-9_]+)-driver(?P<driver>[a-z0-9.]+)"
    r"-(?P<flavour>rtx|full)(?P<version>[0-9.]+(?:plus)?)-(?P<precision>[a-z0-9]+)-(?P<digest>[0-9a-f]{12})\.plan"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The GPU machine at hand."""

    gpu_name: str
    capability: int
    """80 for an A100."""
    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanName:
    """What the name of a plan says."""

    graph: str
    """`open` or `append`."""
    gpu: str
    """`sm80`: that compute capability; `sm80plus`: that or a later one; else one model of GPU."""
    driver: str
    """`any` where the plan does not depend on it: kernels are compiled when it is loaded."""
    flavour: str
    version: str
    """Of TensorRT; `11.2plus`: that or a later one of the same major version."""
    precision: str
    digest: str
    """Of the graph, first 12 hex digits."""

    def __str__(self) -> str:
        return (
            f"{self.graph}-{self.gpu}-driver{self.driver}-{self.flavour}{self.version}-{self.precision}-"
            f"{self.digest}.plan"
        )

    @classmethod
    def parse(cls, name: str) -> Self:
        """The parts of a file name.

        Raises:
            ArtifactError: not the name of a plan.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ArtifactError(f"{name}: not the name of a TensorRT plan; run `recsys optimize` with --plan again")
        return cls(**{field.name: match[field.name] for field in fields(cls)})

    def check(self, here: Here, version: str, digest: str) -> None:
        """Refuse a plan of another GPU, driver, TensorRT version or graph.

        Raises:
            ConfigError: one line with everything that differs.
        """
        differences = [
            f"{what} {ours}, here {theirs}"
            for what, ours, theirs, same in (
                ("GPU", self.gpu, f"sm{here.capability} ({here.gpu_name})", self._fits(here)),
                ("driver", self.driver, here.driver, self.driver in (ANY_DRIVER, here.driver)),
                ("TensorRT", self.version, version, self._is_read_by(version)),
                ("graph", self.digest, digest, self.digest == digest),
            )
            if not same
        ]
        if differences:
            raise ConfigError(
                f"{self}: built for {'; for '.join(differences)}; run `recsys optimize` with --plan on this machine, "
                "or use the engine `cpu`"
            )

    @property
    def is_version_compatible(self) -> bool:
        """Whether later versions of TensorRT may load it."""
        return self.version.endswith("plus")

    def _is_read_by(self, version: str) -> bool:
        if not self.is_version_compatible:
            return self.version == version
        built, here = ([int(n) for n in re.findall(r"\d+", v)] for v in (self.version, version))
        return built[0] == here[0] and built <= here

    def _fits(self, here: Here) -> bool:
        least = re.fullmatch(r"sm(\d+)plus", self.gpu)
        if least:
            return here.capability >= int(least[1])
        return self.gpu in (f"sm{here.capability}", slug(here.gpu_name))


def slug(gpu_name: str) -> str:
    """A GPU's name as it stands in a plan's."""
    return re.sub(r"[^a-z0-9]+", "_", gpu_name.lower()).strip("_")


def bindings(flavour: str) -> Any:
    """TensorRT's Python module.

    Raises:
        ConfigError: not installed; says how to.
    """
    try:
        if flavour == "full":
            import tensorrt

            return tensorrt
        import tensorrt_rtx_bindings
        import tensorrt_rtx_libs  # noqa: F401  (the libraries, which the bindings need)
    except ImportError as error:
        index = "--extra-index-url https://pypi.nvidia.com tensorrt"
        wanted = index if flavour == "full" else "'recsys[tensorrt]'"
        raise ConfigError(f"a TensorRT plan needs more: pip install {wanted} ({error})") from None
    return tensorrt_rtx_bindings
