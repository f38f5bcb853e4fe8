// Apache Thrift's Node client in each transport and protocol that it has for sockets.
//
//     node node_client.js PORT      server 0 of a cluster of four; NODE_PATH finds the `thrift` package
//
// Prints one line for each: `ok NAME` or `FAIL NAME: why`.
'use strict';

const assert = require('node:assert');
const thrift = require('thrift');
const KVStore = require('./gen-nodejs/KVStore');
const Tetrachord = require('./gen-nodejs/Tetrachord');
const types = require('./gen-nodejs/chord_types');

const ABSENT_KEY = 63; // no client puts it
const TIMEOUT_MS = 60_000;

const CLIENTS = {
  'TBufferedTransport + TBinaryProtocol': [thrift.TBufferedTransport, thrift.TBinaryProtocol],
  'TBufferedTransport + TCompactProtocol': [thrift.TBufferedTransport, thrift.TCompactProtocol],
  'TFramedTransport + TBinaryProtocol': [thrift.TFramedTransport, thrift.TBinaryProtocol],
  'TFramedTransport + TCompactProtocol': [thrift.TFramedTransport, thrift.TCompactProtocol],
};

async function main() {
  const port = Number(process.argv[2]);
  let key = 30; // the Python clients have those below
  for (const [name, [transport, protocol]] of Object.entries(CLIENTS)) {
    try {
      await within(TIMEOUT_MS, allChecks(port, transport, protocol, key++));
      console.log(`ok   ${name}`);
    } catch (error) {
      console.log(`FAIL ${name}: ${String(error.stack || error).split('\n').slice(0, 4).join(' ').slice(0, 400)}`);
    }
  }
  process.exit(0); // a connection that a failed client left open must not keep us
}

function within(milliseconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${milliseconds} ms`)), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function allChecks(port, transport, protocol, key) {
  const connection = thrift.createConnection('127.0.0.1', port, { transport, protocol, max_attempts: 1 });
  const broken = new Promise((_, reject) => {
    connection.on('error', reject);
    connection.on('close', () => reject(new Error('the server closed the connection')));
  });
  try {
    await Promise.race([broken, classic(connection, key).then(() => application(connection, key))]);
  } finally {
    broken.catch(() => {});
    connection.end();
  }
}

async function classic(connection, key) {
  const kv = thrift.createClient(KVStore, connection);
  const request = (level, fields) => new types.ClientRequest({ constLevel: level, kv: new types.KV(fields) });
  const get = async (k) => kv.clientGet(request('QUORUM', { key: k }));

  assert.strictEqual(await kv.hello(), '0');
  assert.strictEqual(await kv.getServerID(), 0);
  assert.strictEqual(JSON.parse(await kv.getInfo()).serverID, 0);

  const big = '0123456789'.repeat(300_000);
  for (const value of ['value', 'naïve ✓ 𝄞', big, 'small again']) {
    const put = await kv.clientPut(request('QUORUM', { key, value }));
    assert.strictEqual(put.status, 'SUCCESS');
    const got = await get(key);
    assert.strictEqual(got.status, 'SUCCESS');
    assert.ok(got.kv.value === value, 'the value came back changed');
    assert.ok(got.kv.time.toNumber() > 1.6e15, 'microseconds since 1970');
  }
  const absent = await get(ABSENT_KEY);
  assert.strictEqual(absent.status, 'FAIL');
  assert.ok(absent.kv == null);

  await assert.rejects(kv.clientGet(request('ONE', { key: 256 })), (thrown) => {
    assert.ok(thrown instanceof types.SystemException, String(thrown));
    assert.match(thrown.message, /key/);
    return true;
  });
  await assert.rejects(unknownMethod(kv), (thrown) => {
    assert.ok(thrown instanceof thrift.Thrift.TApplicationException, String(thrown));
    assert.strictEqual(thrown.type, thrift.Thrift.TApplicationExceptionType.UNKNOWN_METHOD);
    return true;
  });
  assert.strictEqual(await kv.hello(), '0');

  // Many calls under way at once.
  const values = Array.from({ length: 20 }, (_, number) => `value ${number}`);
  await Promise.all(values.map((value) => kv.clientPut(request('QUORUM', { key, value }))));
  const answers = await Promise.all(values.map(() => get(key)));
  for (const answer of answers) {
    assert.ok(values.includes(answer.kv.value), answer.kv.value);
  }
}

// A call of a method nobody has, made the way the generated code makes its own.
function unknownMethod(client) {
  client._seqid = client.new_seqid();
  const seqid = client.seqid();
  const { Type, MessageType } = thrift.Thrift;
  return new Promise((resolve, reject) => {
    client._reqs[seqid] = (error, result) => (error ? reject(error) : resolve(result));
    client.recv_noSuchMethod = (input, type, sequence) => {
      const callback = client._reqs[sequence];
      delete client._reqs[sequence];
      assert.strictEqual(type, MessageType.EXCEPTION);
      const error = new thrift.Thrift.TApplicationException();
      error.read(input);
      input.readMessageEnd();
      callback(error);
    };
    const output = new client.pClass(client.output);
    output.writeMessageBegin('noSuchMethod', MessageType.CALL, seqid);
    output.writeStructBegin('args');
    output.writeFieldBegin('request', Type.STRING, 1);
    output.writeString('argument');
    output.writeFieldEnd();
    output.writeFieldStop();
    output.writeStructEnd();
    output.writeMessageEnd();
    output.flush();
  });
}

async function application(connection, key) {
  const app = thrift.createClient(Tetrachord, connection);
  const level = types.Level.QUORUM;
  const binaryKey = Buffer.from([0, 255, 128, key]);
  const value = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte));

  const written = await app.put(new types.PutRequest({ key: binaryKey, value, level }));
  assert.ok(written.replicas >= 2);
  const got = await app.get(new types.GetRequest({ key: binaryKey, level }));
  assert.deepStrictEqual(Buffer.from(got.value), value);
  assert.strictEqual(got.stamp.toNumber(), written.stamp.toNumber());
  await app.remove(new types.RemoveRequest({ key: binaryKey, level }));
  const gone = await app.get(new types.GetRequest({ key: binaryKey, level }));
  assert.ok(gone.value == null && gone.stamp == null);

  await assert.rejects(app.put(new types.PutRequest({ key: Buffer.alloc(0), value, level })), (thrown) => {
    assert.ok(thrown instanceof types.InvalidRequest, String(thrown));
    assert.match(thrown.why, /key/);
    return true;
  });
  const batch = new types.BatchRequest({
    operations: [
      new types.Operation({ put: new types.PutRequest({ key: binaryKey, value, level }) }),
      new types.Operation({ get: new types.GetRequest({ key: Buffer.from('absent'), level }) }),
    ],
  });
  const { outcomes } = await app.batch(batch);
  assert.strictEqual(outcomes.length, 2);
  assert.ok(outcomes[0].written && outcomes[1].got);
  assert.strictEqual((await app.describe()).members.length, 4);
}

main();
