"""How OpenMP's threads wait for each other, which has to be said before torch loads.

By default they spin long, so beside one busy process on two cores a drawing took 40 s instead of 1.1: each of its
thousands of small products waited for a thread that was not running. Passive ones sleep at once, which costs up to
twice the time on a machine that does nothing else; brief ones spin for a thousand turns and then sleep, which costs a
tenth (GNU's OpenMP; others read the policy alone). Commands call `set_wait_policy` in their first line, which also
leaves out what libraries say while they are imported; `import unified` sets nothing. Must not import torch.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from unified.hardware.limits import other_tasks
from unified.hardware.quiet import quiet_libraries

OPENMP, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
OVERRIDE, KEY = "UNIFIED_WAIT_POLICY", "wait_policy"
FLAG, CONFIG = f"--{KEY}", "--config"
POLICIES = ("passive", "brief", "active", "system")
BRIEF_SPINS = "1000"  # 10,000 are as bad beside others as OpenMP's own, 300 keep half of what passive waiting costs


def set_wait_policy(argv: Sequence[str] | None = None) -> None:
    """Let OpenMP's threads sleep while they wait, unless `--wait_policy`, UNIFIED_WAIT_POLICY or OMP_WAIT_POLICY says.

    A `--config` file may say so, too: by `wait_policy`, or by one of these variables under `env`. Where nobody says:
    `brief`, or `passive` where others want to run just now. `system` leaves it to OpenMP. Says nothing of bad words:
    `wished_policy` is for those who can refuse them.
    """
    quiet_libraries()
    policy = wished_policy(sys.argv[1:] if argv is None else argv)
    if policy is None and OPENMP not in os.environ:
        policy = "passive" if other_tasks() >= 1 else "brief"
    if policy in ("passive", "active"):
        os.environ[OPENMP] = policy.upper()
        os.environ.pop(SPINS, None)
    elif policy == "brief":
        os.environ[OPENMP], os.environ[SPINS] = "PASSIVE", BRIEF_SPINS


def wished_policy(argv: Sequence[str]) -> str | None:
    """What the flag says, else the `--config` file, else the environment; in lower case, None where none is given.

    Variables under the file's `env` are set.
    """
    values = keys_of_file(value_of(argv, CONFIG))
    variables: Any = values.get("env")
    for name in (OPENMP, OVERRIDE):
        if isinstance(variables, dict) and name in variables:
            os.environ[name] = str(variables[name])
    told = value_of(argv, FLAG) or values.get(KEY) or os.environ.get(OVERRIDE)
    return str(told).lower() if told else None


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag, spelt with underscores or dashes; None where it has none."""
    words = [word.replace("-", "_").replace("__", "--", 1) for word in argv]
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return argv[place].partition("=")[2]
        if word == flag and place + 1 < len(words):
            return argv[place + 1]
    return None


def keys_of_file(path: str | None) -> dict[str, Any]:
    """The keys of a YAML file; none where it cannot be read, which its parser refuses later."""
    if path is None or not os.path.isfile(path):
        return {}
    import yaml  # what commands without a file need not load

    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def current_policy() -> str | None:
    """What OpenMP was told: passive, brief or active; None where it decides itself."""
    told = os.environ.get(OPENMP, "").lower() or None
    return "brief" if told == "passive" and SPINS in os.environ else told
