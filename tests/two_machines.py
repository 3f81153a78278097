"""Two machines on one: a training over two network namespaces, of which one is killed, and both started again.

    sudo .venv/bin/python tests/two_machines.py                # in the repository's folder; some minutes
    sudo .venv/bin/python tests/two_machines.py --out out/two_machines --killed 0

Needs Linux, root and iproute2's `ip`. Two namespaces are joined by a veth pair, 10.77.0.1 and 10.77.0.2; in each runs
`accelerate launch --num_machines 2` of recipes/sft.py, ZeRO-2 over gloo, on toys. What is shown, a line each:

    undisturbed    both machines end with status 0
    killed         one machine's processes are killed after its first checkpoint: the other ends with another status
                   than 0, within --patience seconds, and its last error line says what to do
    resumed        both are started again with --resume True, and the weights are those of the undisturbed run
    apart          as resumed, but without a shared file system, where checkpoints lie on the first machine alone: the
                   run is refused on both with one line, and goes on once they are copied

Exit status 1 where one of these does not hold. Logs of every launch lie in --out.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from toys import make_tokenizer, make_vq, save_llm, write_toy_rows

from unified import UnifiedConfig
from unified.checkpoints.extension import extend

ROOT = Path(__file__).parents[1]
NAMES = ("unified-0", "unified-1")  # of the namespaces; veth-0 and veth-1 are their ends of the cable
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29577
STEPS, SAVED = 40, 5


def ip(*words: str) -> None:
    """Run `ip`; raises CalledProcessError with what it says."""
    subprocess.run(["ip", *words], check=True)


class Cable:
    """Two namespaces joined by a veth pair, for as long as the context lasts."""

    def __enter__(self) -> "Cable":
        self.remove()
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "veth-0", "netns", NAMES[0], "type", "veth", "peer", "name", "veth-1", "netns", NAMES[1])
        for machine, name in enumerate(NAMES):
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{ADDRESSES[machine]}/24", "dev", f"veth-{machine}")
            ip(*inside, "link", "set", f"veth-{machine}", "up")
            ip(*inside, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the namespaces, and with them their ends of the cable."""
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


@dataclass
class Machine:
    """One machine's launch: the namespace it runs in, its process, and its log."""

    name: str
    process: subprocess.Popen
    log: Path

    def kill(self) -> None:
        """Kill all its processes; the launcher's workers have sessions of their own and would go on without it."""
        inside = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for process in map(int, inside.stdout.split()):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process, signal.SIGKILL)
        self.process.wait()

    def errors(self) -> list[str]:
        """The lines of its log that a command of ours ends with."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return [line[line.index("error: ") :] for line in text.splitlines() if "error: " in line]


def start(machine: int, data: Path, out: Path, log: Path, *flags: str, own: Path | None = None) -> Machine:
    """Start the training on one machine; with `own`, a folder of its own lies where others see that of `data`."""
    mount = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" "$1" && shift && exec "$@"',
        str(own),
        str(data.parent),
    ]
    launch = ["ip", "netns", "exec", NAMES[machine], *(mount if own is not None else ())]
    launch += [sys.executable, "-m", "accelerate.commands.launch"]
    launch += [
        "--config_file",
        "recipes/accelerate_configs/cpu_zero2.yaml",
        "--deepspeed_multinode_launcher",
        "standard",
    ]
    launch += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(machine), "--main_process_ip"]
    launch += [ADDRESSES[0], "--main_process_port", str(PORT), "--rdzv_backend", "static"]
    run = ["recipes/sft.py", "--config", "recipes/configs/tiny.yaml", "--ddp_backend", "gloo", "--ddp_timeout", "60"]
    run += ["--model", str(data / "model"), "--train_files", str(data / "rows.parquet"), "--output_dir", str(out)]
    run += ["--max_steps", str(STEPS), "--save_steps", str(SAVED), "--per_device_train_batch_size", "2", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"GLOO_SOCKET_IFNAME": f"veth-{machine}", "TP_SOCKET_IFNAME": f"veth-{machine}"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*launch, *run], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    return Machine(NAMES[machine], process, log)


def make_data(folder: Path) -> Path:
    """A toy checkpoint and encoded rows."""
    make_vq().save_pretrained(folder / "vq")
    extend(save_llm(folder / "llm", make_tokenizer()), folder / "vq", folder / "model")
    write_toy_rows(folder / "rows.parquet", "ddat" * 8, UnifiedConfig.from_pretrained(folder / "model").vq_fingerprint)
    return folder


class Rehearsal:
    """What was shown so far; `out` holds data, runs and logs."""

    def __init__(self, out: Path, patience: float) -> None:
        self.out, self.patience, self.failed = out, patience, False
        self.data = make_data(out / "data")

    def both(self, name: str, apart: bool, *flags: str) -> list[Machine]:
        """Start both machines: on shared folders, or each on its own under the same path, HERE."""
        if not apart:
            return [start(i, self.data, self.out / "run", self.out / f"{name}-{i}.log", *flags) for i in (0, 1)]
        here, owns = self.out / "here", [self.out / f"machine-{i}" for i in (0, 1)]
        logs = [self.out / f"{name}-{i}.log" for i in (0, 1)]
        return [start(i, here / "data", here / "run", logs[i], *flags, own=owns[i]) for i in (0, 1)]

    def say(self, name: str, holds: bool, what: str) -> None:
        """One line, and whether it is as it must be."""
        self.failed |= not holds
        sys.stdout.write(f"{name:12} {'holds' if holds else 'FAILS'}  {what}\n")
        sys.stdout.flush()

    def statuses(self, machines: list[Machine]) -> list[int]:
        """Exit statuses of both; one that has not ended after ten times the patience is killed."""
        for machine in machines:
            try:
                machine.process.wait(10 * self.patience)
            except subprocess.TimeoutExpired:
                machine.kill()
        return [machine.process.returncode for machine in machines]

    def undisturbed(self) -> None:
        found = self.statuses(self.both("undisturbed", apart=False))
        (self.out / "run").rename(self.out / "whole")
        self.say("undisturbed", found == [0, 0], f"statuses {found}")

    def killed(self, name: str, machine: int, run: Path, apart: bool) -> None:
        """Kill one machine once the first checkpoint is in `run`; the other has to end soon, and say so."""
        machines = self.both(name, apart)
        saved = run / f"checkpoint-{SAVED}" / "trainer_state.json"
        while not saved.exists() and all(m.process.poll() is None for m in machines):
            time.sleep(0.05)
        machines[machine].kill()
        other, began = machines[1 - machine], time.monotonic()
        status = self.statuses([other])[0]
        took, lines = time.monotonic() - began, other.errors()
        steps = sorted(path.name for path in run.glob("checkpoint-*"))
        what = f"machine {machine} after {steps[-1:]}: the other ends with {status} in {took:.0f} s: {lines[:1]}"
        self.say(name, status > 0 and took < self.patience and bool(lines), what)

    def same_weights(self, run: Path) -> bool:
        """Whether a run's weights are those of the undisturbed one."""
        expected = load_file(self.out / "whole/model.safetensors")
        path = run / "model.safetensors"
        if not path.exists():
            return False
        found = load_file(path)
        return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)

    def resumed(self, name: str, run: Path, apart: bool) -> None:
        """Start both again; they must end well, with the weights of the undisturbed run."""
        found = self.statuses(self.both(name, apart, "--resume", "True"))
        equal = self.same_weights(run)
        self.say(name, found == [0, 0] and equal, f"statuses {found}, weights {'equal' if equal else 'differ'}")

    def apart(self, machine: int) -> None:
        """Each machine has folders of its own."""
        folders = [self.out / f"machine-{i}" for i in (0, 1)]
        (self.out / "here").mkdir()
        for folder in folders:
            shutil.copytree(self.data, folder / "data")
        self.killed("apart-killed", machine, folders[0] / "run", apart=True)
        machines = self.both("apart", True, "--resume", "True")
        found = self.statuses(machines)
        lines = [started.errors()[:1] for started in machines]
        self.say("apart", min(found) > 0 and all(lines), f"statuses {found}, lines {lines}")
        for source, target in (folders, folders[::-1]):
            shutil.copytree(source / "run", target / "run", dirs_exist_ok=True)
        self.resumed("apart-copied", folders[0] / "run", apart=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/two_machines"), help="new folder for everything")
    parser.add_argument("--killed", type=int, default=1, choices=(0, 1), help="machine that is killed")
    parser.add_argument("--patience", type=float, default=90, help="seconds in which the other one has to end")
    args = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        sys.exit("error: network namespaces need root and iproute2's `ip`; run this with sudo, after installing it")
    out = args.out.resolve()
    if out.exists():
        sys.exit(f"error: {out} exists; give another --out, or delete it")
    out.mkdir(parents=True)
    with Cable():
        rehearsal = Rehearsal(out, args.patience)
        rehearsal.undisturbed()
        rehearsal.killed("killed", args.killed, out / "run", apart=False)
        rehearsal.resumed("resumed", out / "run", apart=False)
        rehearsal.apart(args.killed)
    return int(rehearsal.failed)


if __name__ == "__main__":
    sys.exit(main())
