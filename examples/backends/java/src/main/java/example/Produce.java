package example;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/** Send texts to a device, as a backend does: arguments DEVICE TEXT... */
public final class Produce {
  private static final String TOPIC = env("TOPIC", "transcription.results");

  public static void main(String[] arguments) throws InterruptedException, ExecutionException {
    if (arguments.length < 2) {
      System.err.println("usage: Produce DEVICE TEXT...");
      System.exit(2);
    }
    // The default partitioner hashes the key with murmur2. Do not set partitioner.class: all producers of a topic must
    // use the same hash (examples/README.rst).
    Map<String, Object> settings =
        Map.of(
            ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, env("KAFKA_BOOTSTRAP", "127.0.0.1:9092"),
            ProducerConfig.ACKS_CONFIG, "all", // the record survives the loss of a broker
            // A retry neither repeats a record nor overtakes the one before it. This is the default, but the client
            // silently turns it off if another setting conflicts with it, unless it is set explicitly.
            ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, true,
            ProducerConfig.COMPRESSION_TYPE_CONFIG, "lz4",
            ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, StringSerializer.class,
            ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, StringSerializer.class);
    String device = arguments[0];
    // Use one producer for the life of the process: it batches, is thread-safe, and is idempotent only within its life.
    try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
      List<Future<RecordMetadata>> sent = new ArrayList<>();
      for (String text : Arrays.asList(arguments).subList(1, arguments.length)) {
        // The key keeps a device's records in one partition, and therefore in order.
        ProducerRecord<String, String> record = new ProducerRecord<>(TOPIC, device, value(device, text));
        // Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
        record.headers().add("cocoa.ttl", "3600".getBytes(UTF_8));
        sent.add(producer.send(record));
      }
      for (Future<RecordMetadata> future : sent) {
        RecordMetadata metadata = future.get(); // throws the error, if any; send() only queues the record
        System.out.println("sent: " + metadata.partition() + " " + metadata.offset());
      }
    }
  }

  /** The record's value. Its device_id is the recipient. Use a JSON library in a program of your own. */
  private static String value(String device, String text) {
    return String.format(
        "{\"session_id\":\"example\",\"device_id\":%s,\"text\":%s,\"timestamp\":\"%s\",\"success\":true}",
        quoted(device), quoted(text), Instant.now());
  }

  private static String quoted(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        json.append('\\').append(c);
      } else if (c < ' ') {
        json.append(String.format("\\u%04x", (int) c));
      } else {
        json.append(c);
      }
    }
    return json.append('"').toString();
  }

  private static String env(String name, String otherwise) {
    String value = System.getenv(name);
    return value == null ? otherwise : value;
  }

  private Produce() {}
}
