"""Runs Apache Thrift's own clients against four servers.

    run.py [--bin FOLDER] [--port PORT]

Starts four servers from FOLDER (target/debug) on free ports in a temporary directory, or takes a running cluster whose
server 0 listens on PORT; runs the Python clients with the Python that runs this, and the Node clients with `node` and
NODE_PATH. Prints a line for each client and `N passed, N failed` at the end. Exit code 0 if none failed. Whatever
happens, the servers it started are stopped.

tests/run.sh installs what this needs.
"""

import argparse
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
SERVERS = 4
READY_S = 60
CLIENTS_S = 300
STOP_S = 15


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--bin", default=os.path.join(TOP, "target/debug"), help="folder of the server binary")
    arguments.add_argument("--port", type=int, help="server 0 of a running cluster; starts none")
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs

    if options.port:
        return run_clients(options.port)
    cluster = Cluster(os.path.join(os.path.abspath(options.bin), "server"))
    try:
        cluster.start()
        return run_clients(cluster.ports[0])
    finally:
        cluster.stop()


class Cluster:
    """Four server processes in a temporary directory."""

    def __init__(self, binary):
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="tetrachord-interop-")
        self.ports = []
        self.servers = []

    def start(self):
        for _ in range(10):
            self.ports = free_ports()
            with open(os.path.join(self.directory, "nodes.txt"), "w") as nodes:
                nodes.writelines(f"127.0.0.1:{port}\n" for port in self.ports)
            self.servers = [self.spawn(id, port) for id, port in enumerate(self.ports)]
            if all([self.ready(id) for id in range(SERVERS)]):
                return
            # Somebody took a port between our look and the server's bind, or it is broken: show, then try others.
            said = self.log_of_the_dead()
            self.end_servers()
            if "cannot listen" not in said:
                sys.exit(f"the servers did not start:\n{said}")
            shutil.rmtree(os.path.join(self.directory, "data"), ignore_errors=True)
        sys.exit("no free ports")

    def spawn(self, id, port):
        with open(self.log_path(id), "w") as log:
            return subprocess.Popen(
                [self.binary, str(port)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ready(self, id):
        until = time.monotonic() + READY_S
        path = os.path.join(self.directory, f"data/{id}/READY")
        while time.monotonic() < until and self.servers[id].poll() is None:
            try:
                with open(path) as ready:
                    if ready.read().strip() == str(self.servers[id].pid):
                        return True
            except FileNotFoundError:
                pass
            time.sleep(0.02)
        return False

    def log_path(self, id):
        return os.path.join(self.directory, f"server-{id}.log")

    def log_of_the_dead(self):
        said = ""
        for id, server in enumerate(self.servers):
            if server.poll() is not None:
                with open(self.log_path(id)) as log:
                    said += f"server {id}, exit code {server.returncode}:\n" + "".join(log.readlines()[-20:])
        return said

    def stop(self):
        died = self.log_of_the_dead()
        if died:
            print(f"died meanwhile:\n{died}", file=sys.stderr)
        self.end_servers()
        shutil.rmtree(self.directory, ignore_errors=True)

    def end_servers(self):
        for server in self.servers:
            server.terminate()
        until = time.monotonic() + STOP_S
        for server in self.servers:
            try:
                server.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self.servers = []


def free_ports():
    """Below the range from which the system gives ports to clients."""
    ports = []
    while len(ports) < SERVERS:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def run_clients(port):
    wait_all_up(port)
    passed = failed = 0
    for language, command in [
        ("python", [sys.executable, os.path.join(HERE, "python_client.py"), str(port)]),
        ("node", ["node", os.path.join(HERE, "node_client.js"), str(port)]),
    ]:
        lines = client_lines(command)
        for verdict, name in lines:
            print(f"{verdict:4} {language}: {name}", flush=True)
            passed += verdict == "ok"
            failed += verdict != "ok"
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 and passed > 0 else 1


def client_lines(command):
    """The verdict and the name of each client of one language; one failure more if the program itself fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=CLIENTS_S)
        out, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as late:
        out, code = (late.stdout or b"").decode(), "none: it took too long"
    except FileNotFoundError as error:
        out, code = "", str(error)
    lines = [tuple(line.split(maxsplit=1)) for line in out.splitlines() if line.startswith(("ok ", "FAIL "))]
    if code != 0 or not lines:
        lines.append(("FAIL", f"{os.path.basename(command[1])}: exit code {code}"))
    return lines


def wait_all_up(port):
    """Waits until server 0 sees the others Up, so that the clients may ask for every replica."""
    sys.path.insert(0, os.path.join(HERE, "gen-py"))
    from chord import Tetrachord
    from thrift.protocol.TBinaryProtocol import TBinaryProtocol
    from thrift.transport.TSocket import TSocket
    from thrift.transport.TTransport import TBufferedTransport

    logging.getLogger("thrift").setLevel(logging.CRITICAL)  # the package logs every attempt to connect
    until = time.monotonic() + READY_S
    states = None
    while time.monotonic() < until:
        try:
            tcp = TSocket("127.0.0.1", port)
            tcp.setTimeout(READY_S * 1000)
            transport = TBufferedTransport(tcp)
            transport.open()
            states = [member.state for member in Tetrachord.Client(TBinaryProtocol(transport)).describe().members]
            transport.close()
        except Exception as error:  # not yet
            states = error
        if states == ["up"] * SERVERS:
            return
        time.sleep(0.05)
    sys.exit(f"server 0 does not see all others up: {states}")


if __name__ == "__main__":
    sys.exit(main())
