// Sends texts to a device, as a backend does; or one record of each kind of recipient and option.
//
//	go run . DEVICE TEXT...
//	go run . --each-kind USER GROUP DEVICE    (USER is JSON: 99 and "99" are different users)
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
	SessionID   string         `json:"session_id"`
	ID          string         `json:"id,omitempty"`
	DeviceID    string         `json:"device_id,omitempty"` // the recipient, without "to"
	To          map[string]any `json:"to,omitempty"`
	Except      map[string]any `json:"except,omitempty"`
	Priority    string         `json:"priority,omitempty"`
	TTL         *int           `json:"ttl,omitempty"` // a pointer, because 0 has a meaning
	CollapseKey string         `json:"collapse_key,omitempty"`
	Text        string         `json:"text"`
	Timestamp   time.Time      `json:"timestamp"`
	Success     bool           `json:"success"`
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: produce DEVICE TEXT... | --each-kind USER GROUP DEVICE")
	}
	var records []*kgo.Record
	if os.Args[1] == "--each-kind" {
		if len(os.Args) < 5 {
			log.Fatal("usage: produce --each-kind USER GROUP DEVICE")
		}
		records = ofEachKind(json.RawMessage(os.Args[2]), os.Args[3], os.Args[4])
	} else {
		records = toDevice(os.Args[1], os.Args[2:])
	}
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
	// ProduceSync waits for the acknowledgements. A server would use Produce with a callback.
	for _, sent := range client.ProduceSync(context.Background(), records...) {
		if sent.Err != nil {
			log.Fatal(sent.Err)
		}
		fmt.Printf("sent: %d %d\n", sent.Record.Partition, sent.Record.Offset)
	}
}

func toDevice(device string, texts []string) (records []*kgo.Record) {
	for _, text := range texts {
		// Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
		ttl := kgo.RecordHeader{Key: "cocoa.ttl", Value: []byte("3600")}
		// The key keeps a device's records in one partition, and therefore in order.
		records = append(records, record(device, result{DeviceID: device, Text: text}, ttl))
	}
	return records
}

func ofEachKind(user json.RawMessage, group, device string) []*kgo.Record {
	minute, now := 60, 0
	toGroup, butDevice := map[string]any{"group": group}, map[string]any{"devices": []string{device}}
	header, err := json.Marshal(toGroup)
	if err != nil {
		log.Fatal(err)
	}
	return []*kgo.Record{
		record(string(user), result{To: map[string]any{"user": user}, Text: "to a user"}),
		record(group, result{To: toGroup, Text: "to a group"}),
		record(group, result{To: toGroup, Except: butDevice, Text: "to the rest of a group"}),
		record("all", result{To: map[string]any{"all": true}, Text: "to all devices"}),
		record(device, result{To: map[string]any{"device": device}, Text: "to a device"}),
		record(device, result{To: map[string]any{"devices": []string{device}}, Text: "to a list of devices"}),
		record(device, result{DeviceID: device, TTL: &minute, Text: "worth sending for a minute"}),
		record(device, result{DeviceID: device, TTL: &now, Text: "only for open connections"}),
		record(device, result{DeviceID: device, Text: "urgent"}, kgo.RecordHeader{Key: "cocoa.priority", Value: []byte("high")}),
		record(device, result{DeviceID: device, Priority: "low", Text: "first to be dropped"}),
		record(device, result{DeviceID: device, CollapseKey: "volume", Text: "volume 7"}),
		// The id is new for each message, and the same when a message is sent again.
		record(device, result{ID: fmt.Sprintf("example-%d", time.Now().UnixNano()), DeviceID: device, Text: "with an id"}),
		// The same fields can be headers, for records whose value cannot be changed.
		record(group, result{Text: "to a group, by header"}, kgo.RecordHeader{Key: "cocoa.to", Value: header}),
	}
}

func record(key string, fields result, headers ...kgo.RecordHeader) *kgo.Record {
	fields.SessionID, fields.Timestamp, fields.Success = "example", time.Now().UTC(), true
	value, err := json.Marshal(fields)
	if err != nil {
		log.Fatal(err)
	}
	return &kgo.Record{Key: []byte(key), Value: value, Headers: headers}
}

func env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}
