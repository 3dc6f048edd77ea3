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
    // The client's own partitioner hashes the key with murmur2: leave partitioner.class alone, for the producers of one
    // topic must agree on it (examples/README.rst).
    Map<String, Object> settings =
        Map.of(
            ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, env("KAFKA_BOOTSTRAP", "127.0.0.1:9092"),
            ProducerConfig.ACKS_CONFIG, "all", // the record survives the loss of a broker
            // A retry neither repeats a record nor overtakes the one before it. It is the default, unless another
            // setting contradicts it: then the client would do without and not say so.
            ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, true,
            ProducerConfig.COMPRESSION_TYPE_CONFIG, "lz4",
            ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, StringSerializer.class,
            ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, StringSerializer.class);
    String device = arguments[0];
    // One producer for the life of the process: it batches, is safe for threads, and its idempotence lasts as long.
    try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
      List<Future<RecordMetadata>> sent = new ArrayList<>();
      for (String text : Arrays.asList(arguments).subList(1, arguments.length)) {
        // The key keeps a device's records in one partition, and so in order.
        ProducerRecord<String, String> record = new ProducerRecord<>(TOPIC, device, value(device, text));
        // Headers named cocoa.* may say more about delivery, in JSON; a gateway ignores those that it does not know.
        record.headers().add("cocoa.ttl", "3600".getBytes(UTF_8));
        sent.add(producer.send(record));
      }
      for (Future<RecordMetadata> future : sent) {
        RecordMetadata metadata = future.get(); // throws what went wrong; send() alone only puts it in a queue
        System.out.println("sent: " + metadata.partition() + " " + metadata.offset());
      }
    }
  }

  /** The device_id in the value decides who gets it. A program of your own would use its JSON library here. */
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
