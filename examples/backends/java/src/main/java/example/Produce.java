package example;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Sends texts to a device, as a backend does: arguments DEVICE TEXT... Or one record of each kind of recipient and
 * option: arguments --each-kind USER GROUP DEVICE, where USER is JSON (99 and "99" are different users).
 */
public final class Produce {
  private static final String TOPIC = env("TOPIC", "transcription.results");

  public static void main(String[] arguments) throws InterruptedException, ExecutionException {
    if (arguments.length < 2) {
      System.err.println("usage: Produce DEVICE TEXT... | --each-kind USER GROUP DEVICE");
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
    List<String> others = Arrays.asList(arguments).subList(1, arguments.length);
    List<ProducerRecord<String, String>> records =
        arguments[0].equals("--each-kind")
            ? ofEachKind(others.get(0), others.get(1), others.get(2))
            : toDevice(arguments[0], others);
    // Use one producer for the life of the process: it batches, is thread-safe, and is idempotent only within its life.
    try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
      List<Future<RecordMetadata>> sent = new ArrayList<>();
      for (ProducerRecord<String, String> record : records) {
        sent.add(producer.send(record));
      }
      for (Future<RecordMetadata> future : sent) {
        RecordMetadata metadata = future.get(); // throws the error, if any; send() only queues the record
        System.out.println("sent: " + metadata.partition() + " " + metadata.offset());
      }
    }
  }

  private static List<ProducerRecord<String, String>> toDevice(String device, List<String> texts) {
    List<ProducerRecord<String, String>> records = new ArrayList<>();
    for (String text : texts) {
      // The key keeps a device's records in one partition, and therefore in order.
      ProducerRecord<String, String> record = record(device, text, "\"device_id\":" + quoted(device));
      // Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
      record.headers().add("cocoa.ttl", "3600".getBytes(UTF_8));
      records.add(record);
    }
    return records;
  }

  private static List<ProducerRecord<String, String>> ofEachKind(String user, String group, String device) {
    String toDevice = "\"device_id\":" + quoted(device);
    String inGroup = "{\"group\":" + quoted(group) + "}";
    String toGroup = "\"to\":" + inGroup;
    String exceptDevice = "\"except\":{\"devices\":[" + quoted(device) + "]}";
    ProducerRecord<String, String> urgent = record(device, "urgent", toDevice);
    urgent.headers().add("cocoa.priority", "high".getBytes(UTF_8));
    // The same fields can be headers, for records whose value cannot be changed.
    ProducerRecord<String, String> byHeader = record(group, "to a group, by header");
    byHeader.headers().add("cocoa.to", inGroup.getBytes(UTF_8));
    return List.of(
        record(user, "to a user", "\"to\":{\"user\":" + user + "}"),
        record(group, "to a group", toGroup),
        record(group, "to the rest of a group", toGroup, exceptDevice),
        record("all", "to all devices", "\"to\":{\"all\":true}"),
        record(device, "to a device", "\"to\":{\"device\":" + quoted(device) + "}"),
        record(device, "to a list of devices", "\"to\":{\"devices\":[" + quoted(device) + "]}"),
        record(device, "worth sending for a minute", toDevice, "\"ttl\":60"),
        record(device, "only for open connections", toDevice, "\"ttl\":0"),
        urgent,
        record(device, "first to be dropped", toDevice, "\"priority\":\"low\""),
        record(device, "volume 7", toDevice, "\"collapse_key\":\"volume\""),
        // The id is new for each message, and the same when a message is sent again.
        record(device, "with an id", "\"id\":" + quoted(UUID.randomUUID().toString()), toDevice),
        byHeader);
  }

  /** A record with a text and more members, as JSON text. Use a JSON library in a program of your own. */
  private static ProducerRecord<String, String> record(String key, String text, String... more) {
    List<String> members = new ArrayList<>(List.of("\"session_id\":\"example\""));
    members.addAll(List.of(more));
    members.add("\"text\":" + quoted(text));
    members.add("\"timestamp\":\"" + Instant.now() + "\"");
    members.add("\"success\":true");
    return new ProducerRecord<>(TOPIC, key, "{" + String.join(",", members) + "}");
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
