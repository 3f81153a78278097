"""A machine as the decisions see it: plain numbers, so that tests can make machines up."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """An accelerator beside the CPU."""

    name: str
    kind: str = "cuda"  # or mps
    memory_gib: float = 0.0
    capability: tuple[int, int] = (0, 0)  # CUDA's compute capability
    bf16: bool = False  # has units for bf16 products, rather than emulating them
    float32_gflops: float | None = None  # measured; None: not measured


@dataclass(frozen=True)
class Machine:
    """What was asked and measured; `unified.hardware.probe` fills it in."""

    cpu: str
    system: str = "Linux"  # as `platform.system()` says: Linux, Darwin, Windows
    cores: int = 1  # on which this process may run
    quota: float | None = None  # how many cores' time a container may use; None: no limit
    others: float = 0.0  # tasks of others that want to run now, on these cores
    processes: int = 1  # of this run on this machine
    omp_threads: int | None = None  # OMP_NUM_THREADS
    omp_default: bool = False  # a launcher set it by itself
    wait_policy: str | None = None  # as torch found it: passive, brief, active; None: OpenMP's own
    isa: tuple[str, ...] = ()  # instruction sets that matter for products
    memory_gib: float | None = None
    bf16_products: bool = False  # oneDNN has bf16 products for this CPU
    float32_gflops: float | None = None  # measured; None: not measured
    bf16_gflops: float | None = None
    gpus: tuple[Gpu, ...] = ()
    compiles: tuple[str, ...] = ()  # devices for which torch can compile here
