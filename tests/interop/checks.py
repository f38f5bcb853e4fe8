"""What every Python client is put through: the same calls, whatever transport and protocol carry them.

Each check takes a `Connection` and raises on the first thing that is not as promised. A connection is used for all of
them in turn, so that what one leaves unread or unclean breaks the next.
"""

import json

from chord import KVStore, Tetrachord
from chord.ttypes import (
    KV,
    BatchRequest,
    ClientRequest,
    GetRequest,
    InvalidRequest,
    Level,
    Operation,
    PutRequest,
    RemoveRequest,
    SystemException,
)
from thrift.Thrift import TApplicationException, TMessageType, TType

ABSENT_KEY = 63  # no client puts it
BIG_BYTES = 3_000_000


class Connection:
    """Both services over one protocol. `key` is this client's own classic key; server 0 is a replica of it."""

    def __init__(self, protocol, key):
        self.protocol = protocol
        self.kv = KVStore.Client(protocol)
        self.app = Tetrachord.Client(protocol)
        self.key = key


def says_who_it_is(at):
    assert at.kv.hello() == str(at.kv.getServerID())
    assert json.loads(at.kv.getInfo())["serverID"] == at.kv.getServerID()


def puts_and_gets(at):
    for value in ["value", "", "naïve ✓ 𝄞", "x" * 5000]:
        for level in ["ONE", "quorum"]:
            put = at.kv.clientPut(ClientRequest(level, KV(at.key, value)))
            assert (put.status, put.kv) == ("SUCCESS", None), put
        got = at.kv.clientGet(ClientRequest("QUORUM", KV(at.key)))
        assert (got.status, got.kv.key, got.kv.value) == ("SUCCESS", at.key, value), got
        assert got.kv.time > 1_600_000_000_000_000, "microseconds since 1970"


def does_not_find(at):
    for level in ["ONE", "QUORUM", "ALL"]:
        got = at.kv.clientGet(ClientRequest(level, KV(ABSENT_KEY)))
        assert (got.status, got.kv) == ("FAIL", None), got


def is_told_what_was_wrong(at):
    def refused(request, call, word):
        try:
            answer = call(request)
        except SystemException as thrown:
            assert word in thrown.message.lower(), thrown.message
            return
        raise AssertionError(f"{request} was answered {answer}")

    refused(ClientRequest("ONE", KV(at.key, "value")), at.kv.clientGet, "value")
    refused(ClientRequest("ONE", KV(at.key)), at.kv.clientPut, "value")
    refused(ClientRequest("SOME", KV(at.key)), at.kv.clientGet, "level")
    refused(ClientRequest("ONE", KV(256)), at.kv.clientGet, "key")
    refused(ClientRequest("ONE", KV(-1)), at.kv.clientGet, "key")
    refused(ClientRequest("ONE", KV()), at.kv.clientGet, "key")
    refused(ClientRequest("ONE"), at.kv.clientGet, "kv")
    refused(ClientRequest(None, KV(at.key)), at.kv.clientGet, "level")


def stores_on_one_replica(at):
    time = at.kv.clientGet(ClientRequest("ALL", KV(at.key))).kv.time + 1_000
    put = at.kv.serverPut(KV(at.key, "here only", time))
    assert put.status == "SUCCESS", put
    assert at.kv.serverGet(KV(at.key)).kv.value == "here only"
    at.kv.serverDelete(KV(at.key, None, time - 1))
    assert at.kv.serverGet(KV(at.key)).kv.value == "here only", "another version is not shadowed"
    at.kv.serverDelete(KV(at.key, None, time))
    gone = at.kv.serverGet(KV(at.key))
    assert (gone.status, gone.kv) == ("FAIL", None), gone
    at.kv.resendHints(1)


def goes_on_after_an_unknown_method(at):
    for _ in range(2):
        call_unknown(at.protocol)
        assert at.kv.hello() == str(at.kv.getServerID())


def call_unknown(protocol):
    """Calls a method nobody has, with an argument, and expects Thrift's own exception for it."""
    protocol.writeMessageBegin("noSuchMethod", TMessageType.CALL, 0)
    protocol.writeStructBegin("args")
    protocol.writeFieldBegin("request", TType.STRING, 1)
    protocol.writeString("argument")
    protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()
    protocol.writeMessageEnd()
    protocol.trans.flush()
    name, kind, _ = protocol.readMessageBegin()
    assert (name, kind) == ("noSuchMethod", TMessageType.EXCEPTION), (name, kind)
    error = TApplicationException()
    error.read(protocol)
    protocol.readMessageEnd()
    assert error.type == TApplicationException.UNKNOWN_METHOD, error


def carries_a_big_value(at):
    value = "0123456789" * (BIG_BYTES // 10)
    at.kv.clientPut(ClientRequest("QUORUM", KV(at.key, value)))
    assert at.kv.clientGet(ClientRequest("QUORUM", KV(at.key))).kv.value == value
    at.kv.clientPut(ClientRequest("QUORUM", KV(at.key, "small again")))


def is_answered_in_order_when_it_does_not_wait(at):
    for number in range(10):
        at.app.send_put(PutRequest(b"%d of %d" % (number, at.key), b"pipelined %d" % number, Level.QUORUM))
    for _ in range(10):
        at.app.recv_put()
    for number in range(10):
        at.app.send_get(GetRequest(b"%d of %d" % (number, at.key), Level.QUORUM))
        at.kv.send_hello()
    for number in range(10):
        assert at.app.recv_get().value == b"pipelined %d" % number
        assert at.kv.recv_hello() == "0"


def gets_an_error_and_not_damage_for_bytes_that_are_no_text(at):
    raw = b"\xff\xfe\x00\x80"
    at.app.put(PutRequest(bytes([at.key]), raw, Level.QUORUM))
    try:
        got = at.kv.clientGet(ClientRequest("QUORUM", KV(at.key)))
    except SystemException as thrown:
        assert "not text" in thrown.message, thrown.message
    else:
        raise AssertionError(f"bytes came back as {got}")
    assert at.app.get(GetRequest(bytes([at.key]), Level.QUORUM)).value == raw
    at.kv.clientPut(ClientRequest("QUORUM", KV(at.key, "text again")))
    assert at.app.get(GetRequest(bytes([at.key]), Level.QUORUM)).value == b"text again"


def keeps_binary_keys_and_values(at):
    key = bytes(range(256)) + bytes([at.key])
    for value in [b"", bytes(range(256)), b"\x00" * 1000]:
        written = at.app.put(PutRequest(key, value, Level.ALL))
        assert written.replicas == 3 and written.stamp > 0, written
        got = at.app.get(GetRequest(key, Level.QUORUM))
        assert (got.value, got.stamp, got.expires) == (value, written.stamp, None), got
    at.app.remove(RemoveRequest(key, Level.QUORUM))
    gone = at.app.get(GetRequest(key, Level.ALL))
    assert (gone.value, gone.stamp) == (None, None), gone
    at.app.put(PutRequest(key, b"for an hour", Level.QUORUM, ttl=3600))
    assert at.app.get(GetRequest(key, Level.QUORUM)).expires > 1_600_000_000
    try:
        at.app.put(PutRequest(b"", b"", Level.ONE))
    except InvalidRequest as thrown:
        assert "key" in thrown.why, thrown.why
    else:
        raise AssertionError("an empty key was taken")


def batches(at):
    key = b"batch %d" % at.key
    outcomes = at.app.batch(
        BatchRequest(
            [
                Operation(put=PutRequest(key, b"one", Level.QUORUM)),
                Operation(put=PutRequest(b"", b"wrong", Level.QUORUM)),
                Operation(get=GetRequest(b"absent %d" % at.key, Level.ONE)),
                Operation(remove=RemoveRequest(b"absent too", Level.ALL)),
            ]
        )
    ).outcomes
    assert len(outcomes) == 4
    assert outcomes[0].written.replicas >= 2, outcomes[0]
    assert outcomes[1].invalid is not None and outcomes[1].written is None, outcomes[1]
    assert outcomes[2].got is not None and outcomes[2].got.value is None, outcomes[2]
    assert outcomes[3].written.replicas == 3, outcomes[3]
    assert at.app.get(GetRequest(key, Level.QUORUM)).value == b"one"


def describes(at):
    description = at.app.describe()
    assert (description.id, description.replicationFactor, len(description.members)) == (0, 3, 4), description
    assert [member.state for member in description.members] == ["up"] * 4, description.members
    assert len(at.app.stats().values) > 5


ALL = [
    says_who_it_is,
    puts_and_gets,
    does_not_find,
    is_told_what_was_wrong,
    stores_on_one_replica,
    goes_on_after_an_unknown_method,
    carries_a_big_value,
    is_answered_in_order_when_it_does_not_wait,
    gets_an_error_and_not_damage_for_bytes_that_are_no_text,
    keeps_binary_keys_and_values,
    batches,
    describes,
]
