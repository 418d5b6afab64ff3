"""How fast deaths and hangs of an engine are noticed, and what the beats cost; see 010-supervision.md."""

import os
import signal
import statistics
import time
from functools import partial
from pathlib import Path

import ventoux
from ventoux.config import EngineConfig
from ventoux.errors import EngineDeadError
from ventoux.supervisor import Supervisor
from ventoux.worker import EngineProcess


def main() -> None:
    folder = Path(ventoux.__file__).parent / "demo"
    began = time.monotonic()
    processes = []

    def start() -> EngineProcess:
        processes.append(EngineProcess(folder, EngineConfig(kv_cache_memory=2**28, max_model_len=32768)))
        return processes[-1]

    engine = Supervisor(start)
    engine.wait_ready()
    starts, deaths, silences = [time.monotonic() - began], [], []
    for _ in range(3):
        wait(partial(is_up, engine))
        os.kill(processes[-1].pid, signal.SIGSTOP)
        silences.append(wait(lambda: engine.stats().is_silent))
        os.kill(processes[-1].pid, signal.SIGCONT)
        wait(lambda: not engine.stats().is_silent)
        os.kill(processes[-1].pid, signal.SIGKILL)
        deaths.append(wait(lambda: not is_up(engine)))
        starts.append(wait(partial(is_up, engine)))
    ticks = [cpu_seconds(processes[-1].pid), cpu_seconds(os.getpid())]
    time.sleep(10)
    spent = [cpu_seconds(pid) - before for pid, before in zip((processes[-1].pid, os.getpid()), ticks, strict=True)]
    engine.stop()
    print(f"death noticed after {1e3 * statistics.median(deaths):.1f} ms, at most {1e3 * max(deaths):.1f} ms")
    print(f"stop noticed after {statistics.median(silences):.2f} s, at most {max(silences):.2f} s")
    print(f"engine up after {statistics.median(starts):.1f} s, at most {max(starts):.1f} s")
    print(f"beats of an idle engine: {10 * spent[0]:.2f} % of a core there, {10 * spent[1]:.2f} % here")


def is_up(engine: Supervisor) -> bool:
    try:
        engine.stats()
    except EngineDeadError:
        return False
    return True


def wait(condition) -> float:
    began = time.monotonic()
    while not condition():
        time.sleep(0.001)
    return time.monotonic() - began


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
