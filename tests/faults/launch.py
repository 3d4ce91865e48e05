"""Starts the processes of one run on this machine, with so many simulated devices each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def final_state(workdir, step):
    """The arrays of a checkpoint, by name, without a device."""
    path = Path(workdir) / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path, restore_args=numpy)


def largest_difference(a, b):
    """Over all arrays of two states, of which neither may lack one."""
    assert a.keys() == b.keys() and a
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def ids_by_step(workdir):
    """The ids that all processes have read for each step, sorted; a step may have been read again
    by a later start, and was the same then.
    """
    read = {}
    for path in Path(workdir).parent.glob(f"{Path(workdir).name}.*.ids"):
        for step, ids in map(json.loads, path.read_text().splitlines()):
            read.setdefault(step, set()).update(ids)
    return {step: sorted(ids) for step, ids in sorted(read.items())}


class Run:
    """`processes` × `devices`, running; `said(k)` is what process k wrote on standard error."""

    def __init__(self, workdir, data_dir, cache, processes, devices, *fields, own=None):
        self.logs = [Path(f"{workdir}.{number}.log") for number in range(processes)]
        several = []
        if processes > 1:
            several = [f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={processes}"]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "XDG_CACHE_HOME": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.processes = []
        for number, log in enumerate(self.logs):
            command = [
                sys.executable,
                "-m",
                "tests.faults.process",
                str(workdir),
                str(data_dir),
                *fields,
                *several,
            ]
            command += [f"--process-id={number}"] if several else []
            command += (own or {}).get(number, [])
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=file
                    )
                )

    def said(self, number):
        return self.logs[number].read_text()

    def wait(self, timeout=300):
        """The exit statuses; ends what takes longer."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            self.end()

    def end(self):
        """Ends what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
