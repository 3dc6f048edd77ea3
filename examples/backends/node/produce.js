// Sends texts to a device, as a backend does.
//
//     node produce.js DEVICE TEXT...

import { CompressionTypes, Kafka, Partitioners, logLevel } from "kafkajs";

const [device, ...texts] = process.argv.slice(2);
if (!texts.length) {
  console.error("usage: produce.js DEVICE TEXT...");
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
const messages = texts.map((text) => ({
  key: device, // keeps a device's records in one partition, and therefore in order
  value: JSON.stringify({
    session_id: "example",
    device_id: device, // the recipient
    text,
    timestamp: new Date().toISOString(),
    success: true,
  }),
  // Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
  headers: { "cocoa.ttl": "3600" },
}));
// acks -1 means all: the records survive the loss of a broker. send rejects with the error, if any.
const sent = await producer.send({ topic, messages, acks: -1, compression: CompressionTypes.GZIP });
for (const { partition, baseOffset } of sent) {
  texts.forEach((_, index) => console.log(`sent: ${partition} ${Number(baseOffset) + index}`));
}
await producer.disconnect();
