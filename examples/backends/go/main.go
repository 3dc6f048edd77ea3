// Sends texts to a device, as a backend does.
//
//	go run . DEVICE TEXT...
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

type result struct {
	SessionID string    `json:"session_id"`
	DeviceID  string    `json:"device_id"` // the recipient
	Text      string    `json:"text"`
	Timestamp time.Time `json:"timestamp"`
	Success   bool      `json:"success"`
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: produce DEVICE TEXT...")
	}
	device, texts := os.Args[1], os.Args[2:]
	// Use one client for the life of the process: it batches, and its idempotence, which is on by default (a retry
	// neither repeats a record nor overtakes the one before it), lasts only as long as it does.
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(env("KAFKA_BOOTSTRAP", "127.0.0.1:9092"), ",")...),
		kgo.DefaultProduceTopic(env("TOPIC", "transcription.results")),
		kgo.RequiredAcks(kgo.AllISRAcks()), // the record survives the loss of a broker
		// murmur2, like the Java client. This is the default; it is explicit here because all producers of a topic must
		// use the same hash (examples/README.rst).
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()),
		kgo.RecordDeliveryTimeout(30*time.Second),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var records []*kgo.Record
	for _, text := range texts {
		value, err := json.Marshal(result{"example", device, text, time.Now().UTC(), true})
		if err != nil {
			log.Fatal(err)
		}
		records = append(records, &kgo.Record{
			Key:   []byte(device), // keeps a device's records in one partition, and therefore in order
			Value: value,
			// Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
			Headers: []kgo.RecordHeader{{Key: "cocoa.ttl", Value: []byte("3600")}},
		})
	}
	// ProduceSync waits for the acknowledgements. A server would use Produce with a callback.
	for _, sent := range client.ProduceSync(context.Background(), records...) {
		if sent.Err != nil {
			log.Fatal(sent.Err)
		}
		fmt.Printf("sent: %d %d\n", sent.Record.Partition, sent.Record.Offset)
	}
}

func env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}
