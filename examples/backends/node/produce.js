// Sends texts to a device, as a backend does; or one record of each kind of recipient and option.
//
//     node produce.js DEVICE TEXT...
//     node produce.js --each-kind USER GROUP DEVICE    (USER is JSON: 99 and "99" are different users)

import { randomUUID } from "node:crypto";
import { CompressionTypes, Kafka, Partitioners, logLevel } from "kafkajs";

const [first, ...others] = process.argv.slice(2);
if (!others.length) {
  console.error("usage: produce.js DEVICE TEXT... | --each-kind USER GROUP DEVICE");
  process.exit(2);
}
const brokers = (process.env.KAFKA_BOOTSTRAP ?? "127.0.0.1:9092").split(",");
const topic = process.env.TOPIC ?? "transcription.results";

// Use one producer for the life of the process: its idempotence lasts only as long as it does.
const producer = new Kafka({ clientId: "example", brokers, logLevel: logLevel.ERROR }).producer({
  idempotent: true, // a retry neither repeats a record nor overtakes the one before it
  maxInFlightRequests: 1, // KafkaJS does not preserve the order with more
  // murmur2, like the Java client. Not LegacyPartitioner, which maps some keys to other partitions: all producers of a
  // topic must use the same hash (examples/README.rst).
  createPartitioner: Partitioners.DefaultPartitioner,
});
await producer.connect();
const messages = first === "--each-kind" ? ofEachKind(JSON.parse(others[0]), others[1], others[2]) : toDevice(first, others);
// acks -1 means all: the records survive the loss of a broker. send rejects with the error, if any.
const sent = await producer.send({ topic, messages, acks: -1, compression: CompressionTypes.GZIP });
for (const { partition, baseOffset } of sent) {
  // KafkaJS does not say how many of the records went to each partition, only where the first one is.
  const known = sent.length === 1 ? messages.length : 1;
  for (let index = 0; index < known; index++) console.log(`sent: ${partition} ${Number(baseOffset) + index}`);
}
await producer.disconnect();

function toDevice(device, texts) {
  // The key keeps a device's records in one partition, and therefore in order.
  // Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
  return texts.map((text) => message(device, { device_id: device, text }, { "cocoa.ttl": "3600" }));
}

function ofEachKind(user, group, device) {
  return [
    message(String(user), { to: { user }, text: "to a user" }),
    message(group, { to: { group }, text: "to a group" }),
    message(group, { to: { group }, except: { devices: [device] }, text: "to the rest of a group" }),
    message("all", { to: { all: true }, text: "to all devices" }),
    message(device, { to: { device }, text: "to a device" }),
    message(device, { to: { devices: [device] }, text: "to a list of devices" }),
    message(device, { device_id: device, ttl: 60, text: "worth sending for a minute" }),
    message(device, { device_id: device, ttl: 0, text: "only for open connections" }),
    message(device, { device_id: device, text: "urgent" }, { "cocoa.priority": "high" }),
    message(device, { device_id: device, priority: "low", text: "first to be dropped" }),
    message(device, { device_id: device, collapse_key: "volume", text: "volume 7" }),
    // The id is new for each message, and the same when a message is sent again.
    message(device, { id: randomUUID(), device_id: device, text: "with an id" }),
    // The same fields can be headers, for records whose value cannot be changed.
    message(group, { text: "to a group, by header" }, { "cocoa.to": JSON.stringify({ group }) }),
  ];
}

function message(key, fields, headers = {}) {
  const value = { session_id: "example", ...fields, timestamp: new Date().toISOString(), success: true };
  return { key, value: JSON.stringify(value), headers };
}
