// A gateway on `ws` with KafkaJS, put together as their documentation shows.
// Nothing bounds what waits for a slow device: ws queues what send() is given.

import { createServer, STATUS_CODES } from 'node:http';
import { parseArgs } from 'node:util';

import jwt from 'jsonwebtoken';
import { Kafka, logLevel } from 'kafkajs';
import { WebSocketServer } from 'ws';

const PING_INTERVAL_MS = 30_000;
const MAX_MESSAGE_BYTES = 512 * 1024;
const TYPE = 'transcription';

const { values: options } = parseArgs({
  options: {
    port: { type: 'string' },
    bootstrap: { type: 'string' },
    topic: { type: 'string' },
    group: { type: 'string' },
  },
});
const secret = Buffer.from(process.env.COCOA_JWT_SECRET);

const clients = new Map(); // device_id -> WebSocket
let ready = false;

// --- Devices

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  response.writeHead(pathname === '/ready' ? (ready ? 200 : 503) : 404).end();
});
const sockets = new WebSocketServer({
  noServer: true,
  perMessageDeflate: false,
  maxPayload: MAX_MESSAGE_BYTES,
});

function refuse(socket, status) {
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
}

function verify(token) {
  try {
    const { device_id: deviceId, exp } = jwt.verify(token, secret, { algorithms: ['HS256'] });
    return exp !== undefined && typeof deviceId === 'string' ? deviceId : '';
  } catch {
    return '';
  }
}

server.on('upgrade', (request, socket, head) => {
  socket.on('error', () => socket.destroy());
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname !== '/ws') return refuse(socket, 404);
  const deviceId = verify(searchParams.get('token') ?? '');
  if (!deviceId) return refuse(socket, 401);
  if (clients.has(deviceId)) return refuse(socket, 409);
  // The callback runs before this returns: no other connection can come between.
  sockets.handleUpgrade(request, socket, head, (client) => {
    clients.set(deviceId, client);
    client.isAlive = true;
    client.on('pong', () => { client.isAlive = true; });
    client.on('message', () => {});
    client.on('error', () => {}); // 'close' follows
    client.on('close', () => {
      if (clients.get(deviceId) === client) clients.delete(deviceId);
    });
  });
});

setInterval(() => {
  for (const client of clients.values()) {
    if (!client.isAlive) {
      client.terminate();
      continue;
    }
    client.isAlive = false;
    client.ping();
  }
}, PING_INTERVAL_MS);

// --- Records

function deliver(value) {
  let record;
  try {
    record = JSON.parse(value.toString());
  } catch {
    return;
  }
  const client = clients.get(record?.device_id);
  // Named twice: the first gives it its place, the second wins over a type of the record's own.
  client?.send(JSON.stringify({ type: TYPE, ...record, type: TYPE }));
}

const kafka = new Kafka({ brokers: [options.bootstrap], logLevel: logLevel.WARN });
// An idle fetch of the default, 5 s, is what /ready would wait for.
const consumer = kafka.consumer({ groupId: options.group, maxWaitTimeInMs: 500 });
const { GROUP_JOIN, FETCH, REBALANCING, CRASH } = consumer.events;
let joined = false;
consumer.on(GROUP_JOIN, ({ payload }) => { joined = Object.values(payload.memberAssignment).flat().length > 0; });
// Where to begin in a partition is settled with the first fetch after joining.
consumer.on(FETCH, () => { ready = joined; });
consumer.on(REBALANCING, () => { joined = ready = false; });
consumer.on(CRASH, ({ payload }) => {
  joined = ready = false;
  if (!payload.restart) process.exit(1);
});

process.on('SIGTERM', async () => {
  await consumer.disconnect();
  process.exit(0);
});

server.listen({ port: Number(options.port), backlog: 65_535 }, () => console.log(`listening on ${options.port}`));
await consumer.connect();
await consumer.subscribe({ topics: [options.topic], fromBeginning: false });
await consumer.run({
  eachMessage: async ({ message }) => {
    if (message.value) deliver(message.value);
  },
});
