"""Apache Thrift's Python clients: every transport and protocol of the package that is served here, one after another.

    python_client.py PORT      server 0 of a cluster of four

Prints one line for each: `ok NAME` or `FAIL NAME: why`.
"""

import os
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "gen-py"))

from thrift.protocol.TBinaryProtocol import TBinaryProtocol, TBinaryProtocolAccelerated
from thrift.protocol.TCompactProtocol import TCompactProtocol, TCompactProtocolAccelerated
from thrift.protocol.THeaderProtocol import THeaderProtocol
from thrift.protocol.TJSONProtocol import TJSONProtocol
from thrift.transport.THeaderTransport import THeaderClientType, THeaderSubprotocolID
from thrift.transport.TSocket import TSocket
from thrift.transport.TTransport import TBufferedTransport, TFramedTransport, TTransportException

import checks

TIMEOUT_MS = 30_000


def unbuffered(socket):
    """No transport of the package buffers here: each field is a packet of its own."""
    return socket


def header(subprotocol):
    return lambda socket: THeaderProtocol(socket, [THeaderClientType.HEADERS], subprotocol)


def over(transport, protocol):
    return lambda socket: protocol(transport(socket))


SERVED = {
    "TBufferedTransport + TBinaryProtocol": over(TBufferedTransport, TBinaryProtocol),
    "TBufferedTransport + TBinaryProtocolAccelerated": over(TBufferedTransport, TBinaryProtocolAccelerated),
    "TBufferedTransport + TCompactProtocol": over(TBufferedTransport, TCompactProtocol),
    "TBufferedTransport + TCompactProtocolAccelerated": over(TBufferedTransport, TCompactProtocolAccelerated),
    "TFramedTransport + TBinaryProtocol": over(TFramedTransport, TBinaryProtocol),
    "TFramedTransport + TBinaryProtocolAccelerated": over(TFramedTransport, TBinaryProtocolAccelerated),
    "TFramedTransport + TCompactProtocol": over(TFramedTransport, TCompactProtocol),
    "TFramedTransport + TCompactProtocolAccelerated": over(TFramedTransport, TCompactProtocolAccelerated),
    "TSocket + TBinaryProtocol": over(unbuffered, TBinaryProtocol),
    "TSocket + TCompactProtocol": over(unbuffered, TCompactProtocol),
    "THeaderProtocol, binary": header(THeaderSubprotocolID.BINARY),
    "THeaderProtocol, compact": header(THeaderSubprotocolID.COMPACT),
}

# Protocols that are not served must be told so at once, by the end of the connection, and not left waiting.
NOT_SERVED = {
    "TBufferedTransport + TJSONProtocol": over(TBufferedTransport, TJSONProtocol),
    "TFramedTransport + TJSONProtocol": over(TFramedTransport, TJSONProtocol),
}


def main():
    port = int(sys.argv[1])
    for number, (name, protocol) in enumerate(SERVED.items()):
        report(name, lambda: all_checks(port, protocol, key=number + 1))
    for name, protocol in NOT_SERVED.items():
        report(name + " is closed", lambda: closed_at_once(port, protocol))


def report(name, run):
    try:
        run()
    except Exception as error:  # whatever it is, the next client gets its turn
        where = traceback.extract_tb(error.__traceback__)
        lines = [frame for frame in where if frame.filename.endswith("checks.py")] or where
        what = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
        print(f"FAIL {name}: {lines[0].name}: {lines[-1].line}: {what}", flush=True)
    else:
        print(f"ok   {name}", flush=True)


def all_checks(port, protocol, key):
    socket = TSocket("127.0.0.1", port)
    socket.setTimeout(TIMEOUT_MS)
    socket.open()
    try:
        connection = checks.Connection(protocol(socket), key)
        for check in checks.ALL:
            check(connection)
    finally:
        socket.close()


def closed_at_once(port, protocol):
    socket = TSocket("127.0.0.1", port)
    socket.setTimeout(TIMEOUT_MS)
    socket.open()
    try:
        checks.Connection(protocol(socket), 0).kv.hello()
    except TTransportException as error:
        assert error.type != TTransportException.TIMED_OUT, "it was left waiting"
    else:
        raise AssertionError("it was answered")
    finally:
        socket.close()


main()
