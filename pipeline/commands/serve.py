"""`setbacks serve`: an arm of a run behind an OpenAI-compatible server, for tools with attacks of their own.

The server is a process of its own with the run's engine settings. It ends with this command, however that
ends.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import date
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from pipeline import models, preflight, sampling
from pipeline.adapters import check_adapter
from pipeline.config import Config
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.data.output import Output
from pipeline.errors import RunFailed, UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.base import Served
from pipeline.runtime import environment
from pipeline.settings.base import Draw
from pipeline.suites import VANILLA

KEY = "VLLM_API_KEY"  # what vLLM takes a key from; on a command line everybody could read it
LOCAL = ("127.0.0.1", "localhost", "::1")
START_S = 1800.0  # longest time until the server answers: a large model loads for minutes
END_S = 6.0  # from the signal to the end of the server's processes

Log = Callable[[str], object]


def serve(config: Config, arm: str, host: str, port: int, api_key_env: str | None, log: Log) -> None:
    """Serve an arm, and the base model under the name `vanilla`, until interrupted.

    arm: an arm of the configuration (NAME_seedN of one with several seeds), one of `adapters`, or `vanilla`.
    api_key_env: the variable that holds the key to ask for; None for no key. Raises UserError before a
    process starts, RunFailed if the server ends by itself.
    """
    adapter = _adapter(config, arm)
    key = _key(api_key_env)
    config = preflight.dated(config)
    directory, notices = _checked(config, arm, adapter)
    config, draw_field, draw = _sampled(config, directory, notices)
    if (ask := config.asks.get(arm)) is not None:
        field = f"{config.adapter_field(arm)}.ask"
        notices.append(f"{field} is not what the server adds: suites ask the arm with {ask!r}; send it so")
    _check_port(host, port)
    if key is None and host not in LOCAL:
        notices.append(f"--host {host} without --api-key-env: whoever reaches this machine can ask the model")
    for notice in notices:
        log(notice)
    values = {name: getattr(draw, name) for name in Draw.NEUTRAL} if draw else None
    with tempfile.TemporaryDirectory(prefix="setbacks-adapters-") as scratch:
        local = {arm: adapter_files.fetch(adapter, scratch)} if adapter else {}
        served = Served(VANILLA, host, port, values)
        command, variables = config.engine.server(config.model, directory, local, served)
        variables.pop(KEY, None)
        if key is not None:
            variables[KEY] = key
        names = " and ".join([*local, VANILLA])
        by = f"{draw_field} says ({draw.described()})" if draw else "the model's files say"
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _run(
            command,
            variables,
            f"{place}/health",
            lambda: log(
                f"serving {names} at {place}/v1, until Ctrl-C; requests that do not say otherwise are sampled"
                f" as {by}, and end where the client or the model's length says"
            ),
        )


# -- checks


def _adapter(config: Config, arm: str) -> str | None:
    """The directory of an arm's adapter; None for the base model. Raises UserError."""
    if arm == VANILLA:
        return None
    if arm in config.adapters:
        return storage.absolute(config.adapters[arm])
    if arm not in (*config.replicas, *config.further):
        raise UserError(f"{arm} is no arm of this run; it has {', '.join(config.arm_names)}")
    output = Output(storage.absolute(config.run_dir), f"adapter/{arm}")
    if output.complete is None:
        raise UserError(f"{output.path} is not complete: run `setbacks train` first")
    output.check(fingerprints(config)[output.name])
    return output.path


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(f"--api-key-env {variable}: the variable is not set; set it to the key to ask for")
    return key


def _checked(config: Config, arm: str, adapter: str | None) -> tuple[str, list[str]]:
    """Check what `evaluate` would. Returns the model's directory, and notices. Raises UserError."""
    engine, notices = config.engine, []
    if not engine.reads_model:
        engine.server(config.model, "", {}, Served(VANILLA, "", 0))  # raises
    models.check_model_path(config.model, "model")
    engine.check("engine")
    engine.check_build("engine")
    environment.check_imports()
    directory = models.model_dir(config.model)
    models.check_weights(directory, config.model.revision)
    models.check_writes(config.model, directory)
    if settings := models.quantization(config.model, directory):
        engine.check_quantized("model", config.model, settings)
    template = models.load_template(config.model, directory)
    template.check_arguments()
    if "strftime_now" in template.source and config.model.date != date.today():
        notices.append(
            f"the chat template writes the date: the server takes today's, the run {config.model.date}"
        )
    if adapter is not None:
        notices += check_adapter(config.adapter_field(arm), adapter, directory)
    return directory, notices


def _sampled(config: Config, directory: str, notices: list[str]) -> tuple[Config, str, Draw | None]:
    """What the first suite samples its answers with, its field, and the configuration with its values."""
    suites = config.suites.items()
    config, told = sampling.resolved(config, {"evaluate"} if suites else set(), suites, directory)
    notices += told
    for name, suite in config.suites.items().items():
        for field, draw in suite.repeats[2].items():
            place = f"suites.{name}.{field}"
            if odd := [one for one in ("stop", "system") if getattr(draw, one)]:
                notices.append(f"{place}.{' and '.join(odd)} is not what the server adds: send it yourself")
            return config, place, draw
    return config, "", None


def _check_port(host: str, port: int) -> None:
    """Raises UserError if the server could not listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except socket.gaierror:
        raise UserError(f"--host {host}: no such address of this machine; the default is 127.0.0.1") from None
    except OSError as e:
        why = "is taken by another process" if e.errno == 98 else f"cannot be used ({e.strerror})"
        raise UserError(f"--port {port}: {why} on {host}; give another one") from None


# -- the process


def _run(command: list[str], variables: dict[str, str], health: str, ready: Callable[[], object]) -> None:
    """Run the server until it ends. It and its children end when this function does, or this process."""
    process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True)
    # The shell waits until this process has ended, however it ends, then ends the server's process group.
    end = f"cat >/dev/null; kill -s KILL -- -{process.pid} 2>/dev/null"
    guard = subprocess.Popen(["sh", "-c", end], stdin=subprocess.PIPE, start_new_session=True)
    try:
        _wait_for(health, process)
        ready()
        code = process.wait()
        raise RunFailed(f"the server ended by itself (exit code {code}); what it said is above")
    finally:
        _end(process)
        guard.kill()
        guard.wait()


def _wait_for(health: str, process: subprocess.Popen) -> None:
    """Wait until the server answers. Raises RunFailed if it ends before that, or takes too long."""
    ask, limit = build_opener(ProxyHandler({})).open, time.monotonic() + START_S
    while time.monotonic() < limit:
        if (code := process.poll()) is not None:
            raise RunFailed(f"the server did not start (exit code {code}); what it said is above")
        with contextlib.suppress(HTTPError, URLError, ConnectionError, TimeoutError), ask(health, timeout=5):
            return
        time.sleep(0.2)
    raise RunFailed(f"the server did not answer in {START_S / 60:.0f} minutes")


def _end(process: subprocess.Popen) -> None:
    """End the server and all its processes: asked first, then killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
