"""Several machines on this one, each a network namespace with an address of its own on a common switch; on
each of them a Ray node.

A machine sees nothing of another but its network and the file system, of which directories can be hidden from
it. Killing one ends all that runs on it at once, as a lost node does. Needs root and iproute2; where they are
missing the tests that use it are skipped.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.213.77"
GCS, DASHBOARD, S3 = 6379, 8265, 5001
LIVING = """
import sys
from ray._raylet import GcsClient
print(*(node.node_manager_address for node in GcsClient(sys.argv[1]).get_all_node_info().values() if node.state == 0))
"""
ROOT = Path(__file__).parents[2]


def can_have_machines() -> bool:
    if os.geteuid() != 0 or not shutil.which("ip"):
        return False
    name = f"probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "delete", name], capture_output=True).returncode == 0


@dataclass
class Machine:
    """One namespace. `hidden` directories are empty there, whatever they hold elsewhere."""

    name: str
    address: str
    environment: dict[str, str]
    hidden: tuple[str, ...] = ()
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(
        self, *command: str, output=subprocess.DEVNULL, alone: bool = False, **environment: str
    ) -> subprocess.Popen:
        """Start a process on the machine. `alone`: in its own process namespace, so it sees no other process."""
        inside = ["ip", "netns", "exec", self.name]
        if self.hidden:
            mounts = " && ".join(f"mount -t tmpfs tmpfs {directory}" for directory in self.hidden)
            inside += ["sh", "-c", f'{mounts} && exec "$@"', "sh"]
        if alone:
            inside += ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
        process = subprocess.Popen(
            [*inside, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not subprocess.DEVNULL else output,
            start_new_session=True,
            env={**_inherited(), **self.environment, **environment},
        )
        self.started.append(process)
        return process

    def run(self, *command: str, seconds: float = 300, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command that comes to its end there."""
        process = self.start(*command, output=subprocess.PIPE, **environment)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"no end after {seconds:g} s: {' '.join(command)}") from None
        return process.returncode, output.decode()

    def pids(self) -> list[int]:
        return [
            int(pid)
            for pid in subprocess.run(
                ["ip", "netns", "pids", self.name], capture_output=True, text=True
            ).stdout.split()
        ]

    def titles(self) -> list[str]:
        """What runs there, by the titles that Ray gives its processes."""
        found = []
        for pid in self.pids():
            try:
                found.append(
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
        return found

    def has(self, title: str) -> bool:
        return any(title in other for other in self.titles())

    def kill(self) -> None:
        """All that runs there ends at once, without a word to anybody."""
        end = time.monotonic() + 10
        while (pids := self.pids()) and time.monotonic() < end:
            subprocess.run(["kill", "-9", *map(str, pids)], capture_output=True)
            time.sleep(0.05)
        for process in self.started:
            process.wait(10)


class Network:
    """Machines on one switch. The first is the head, which takes no work; drivers run there, too."""

    def __init__(self):
        self._token = secrets.token_hex(2)
        self.temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's, which wants a short one
        self.machines: list[Machine] = []
        # Ray asks for a token as soon as it finds one in the home directory; gloo and NCCL would look for the
        # address of the host's name.
        self.environment = {
            "RAY_AUTH_MODE": "disabled",
            "GLOO_SOCKET_IFNAME": "eth0",
            "RAY_TMPDIR": self.temporary,
            "NO_PROXY": f"{SUBNET}.0/24",
        }
        self.head = self._machine()
        self.address = f"{self.head.address}:{GCS}"

    def _machine(self, hidden: Iterable[str] = ()) -> Machine:
        number = len(self.machines)
        machine = Machine(
            f"sb{self._token}-{number}", f"{SUBNET}.{number + 1}", dict(self.environment), tuple(hidden)
        )
        switch = f"sb{self._token}-0"
        _ip("netns", "add", machine.name)
        self.machines.append(machine)
        _ip("-n", machine.name, "link", "set", "lo", "up")
        if number == 0:
            _ip(
                "-n", switch, "link", "add", "eth0", "type", "bridge"
            )  # the head's own address is the switch's
        else:
            _ip(
                "-n",
                machine.name,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                f"port{number}",
                "netns",
                switch,
            )
            _ip("-n", switch, "link", "set", f"port{number}", "master", "eth0", "up")
        _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
        _ip("-n", machine.name, "link", "set", "eth0", "up")
        return machine

    def start_head(self, **environment: str) -> None:
        """Ray's head without CPUs, and its dashboard, which takes jobs."""
        self.environment |= environment
        self.head.environment |= environment
        where = ["--node-ip-address", self.head.address, "--port", str(GCS), "--temp-dir", self.temporary]
        dashboard = [
            "--include-dashboard",
            "true",
            "--dashboard-host",
            self.head.address,
            "--dashboard-port",
            str(DASHBOARD),
        ]
        self.head.start(
            *ray("start", "--head", "--num-cpus", "0", "--block", "--disable-usage-stats", *where, *dashboard)
        )
        self.environment["RAY_ADDRESS"] = self.head.environment["RAY_ADDRESS"] = self.address
        self.until(lambda: self.head.address in self.living(), "Ray's head")

    def add(
        self, cpus: int = 1, gpus: int = 0, hidden: Iterable[str] = (), kind: str | None = None
    ) -> Machine:
        """A further machine with a Ray node that has joined. Its Ray has a temporary directory of its own.

        kind: of its GPUs, by Ray's name.
        """
        machine = self._machine([self.temporary, *hidden])
        amounts = [
            "--num-cpus",
            str(cpus),
            "--num-gpus",
            str(gpus),
            "--object-store-memory",
            str(100 * 2**20),
            *(["--resources", json.dumps({f"accelerator_type:{kind}": 1})] if kind else []),
        ]
        # Alone, since a driver connects to whatever Ray node it finds in the process table.
        machine.start(
            *ray(
                "start", "--address", self.address, "--node-ip-address", machine.address, "--block", *amounts
            ),
            alone=True,
        )
        self.until(lambda: machine.address in self.living(), f"the Ray node on {machine.name}")
        return machine

    def lose(self, machine: Machine) -> None:
        """It is gone; the head finds out by itself, see `noticed`."""
        machine.kill()
        _ip("netns", "delete", machine.name)

    def noticed(self) -> None:
        """Wait until Ray's head knows of every machine that is lost."""
        there = {machine.address for machine in self.machines if machine.pids()}
        self.until(lambda: set(self.living()) <= there, "lost nodes were noticed")

    def living(self) -> list[str]:
        """Addresses of the nodes that Ray's head takes for living; none where there is no head yet."""
        _, output = self.head.run(sys.executable, "-c", LIVING, self.address, seconds=60)
        return output.split()

    @staticmethod
    def until(condition: Callable[[], bool], what: str, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not after {seconds:g} s"
            time.sleep(0.2)

    def close(self) -> None:
        for machine in reversed(self.machines):
            machine.kill()
            subprocess.run(["ip", "netns", "delete", machine.name], capture_output=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


def ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def setbacks(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def _inherited() -> dict[str, str]:
    """This process's environment, less what it has set for a Ray of its own, such as that it is no
    cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # `ray` and `setbacks` are commands of the environment that runs the tests, whether or not it is activated.
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
