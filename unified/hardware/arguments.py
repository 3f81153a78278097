"""What scripts are told about the machine: flags, and for each an environment variable where no flag is given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unified.hardware.decisions import DEVICES, PRECISIONS, Wishes, with_reason
from unified.hardware.waiting import OVERRIDE, POLICIES

DEVICE, PRECISION, THREADS = "UNIFIED_DEVICE", "UNIFIED_PRECISION", "UNIFIED_THREADS"


@dataclass
class HardwareArguments:
    """What a command runs on; what is not given is chosen by `unified.hardware` and said on stderr."""

    device: Literal["cpu", "cuda", "mps"] | None = field(
        default=None, metadata={"help": f"where models run; or {DEVICE}; by default chosen, and said on stderr"}
    )
    precision: Literal["float32", "bf16", "fp16"] | None = field(
        default=None, metadata={"help": f"of products; weights stay as they are stored; or {PRECISION}"}
    )
    threads: int | None = field(default=None, metadata={"help": f"threads of a process on the CPU; or {THREADS}"})
    wait_policy: Literal["passive", "brief", "active", "system"] | None = field(
        default=None, metadata={"help": f"how OpenMP's threads wait; system: as OpenMP itself says; or {OVERRIDE}"}
    )

    def wishes(self, environment: Mapping[str, str] = os.environ) -> Wishes:
        """Flags, else environment variables; ValueError for words that are not known."""
        self.check_policy(environment)
        wishes = Wishes()
        for name, variable, flag in (
            ("device", DEVICE, self.device),
            ("precision", PRECISION, self.precision),
            ("threads", THREADS, self.threads),
        ):
            value: Any = flag if flag is not None else environment.get(variable) or None
            who = f"--{name}" if flag is not None else variable
            wishes = with_reason(wishes, who, **{name: value if value is None else checked(name, value, who)})
        return wishes

    def check_policy(self, environment: Mapping[str, str]) -> None:
        """Raise ValueError where the environment variable holds no policy, which was not said when it acted."""
        word = environment.get(OVERRIDE, "").lower()
        if word and word not in POLICIES:
            raise ValueError(f"{OVERRIDE}={word}: give one of {', '.join(POLICIES)}")


def checked(name: str, value: Any, who: str) -> Any:
    """A wish as its field's type; ValueError where it is none."""
    if name == "threads":
        if not str(value).isdecimal() or int(value) < 1:
            raise ValueError(f"{who} {value}: give a number of threads, 1 or more")
        return int(value)
    valid = DEVICES if name == "device" else PRECISIONS
    if value not in valid:
        raise ValueError(f"{who} {value}: give one of {', '.join(valid)}")
    return value
