package main

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	linger     = 5 * time.Millisecond // what Kafka's own producer waits for a batch to fill, by default
	flushLimit = 30 * time.Second
)

// flowing is what "flow" is told: records for Count devices from First on, at Rate records a second, Each of them in
// immediate succession for the same device. Messages 0: until "settle". A ping from each device every PingEveryS.
type flowing struct {
	Bootstrap  string  `json:"bootstrap"`
	Topic      string  `json:"topic"`
	FlowFirst  int     `json:"flow_first"`
	FlowCount  int     `json:"flow_count"`
	Each       int     `json:"each"`
	Rate       float64 `json:"rate"`
	Messages   int     `json:"messages"`
	TextBytes  int     `json:"text_bytes"`
	PingEveryS float64 `json:"ping_every_s"`
	PatientS   float64 `json:"settle_patience_s"`
	ToGroup    bool    `json:"to_group"`  // each record is for the group of all, and not for one device
	LingerMS   int     `json:"linger_ms"` // what the producer waits for a batch to fill
}

// settled is the answer to "settle".
type settled struct {
	heard
	Sent      int       `json:"sent"`
	Failed    int       `json:"failed"`  // records that the broker did not take
	Seconds   float64   `json:"seconds"` // from the first record to the last receipt
	LagUS     int64     `json:"lag_us"`  // how far the publisher was behind its plan, at most
	CPUS      float64   `json:"cpu_s"`   // of the whole generator
	LatencyUS quantiles `json:"latency_us"`
	AckUS     quantiles `json:"ack_us"` // from a record to the broker's acknowledgement
	PongUS    quantiles `json:"pong_us"`
}

type flow struct {
	flowing
	client   *kgo.Client
	dialect  dialect
	text     string
	began    time.Time
	cpuS     float64
	lagUS    int64
	sent     int
	failed   atomic.Int64
	acks     []int64 // microseconds; the client's, which calls back from one goroutine, until it is flushed
	stop     chan struct{}
	done     chan struct{}
	nextPing time.Time
}

var sequence int64 // of the last record; only one flow runs at a time

func (f *fleet) startFlow(spec flowing) any {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(spec.Bootstrap), kgo.DefaultProduceTopic(spec.Topic), kgo.ProducerLinger(time.Duration(spec.LingerMS)*time.Millisecond),
		kgo.MaxBufferedRecords(200_000), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
		defer cancel()
		err = client.Ping(ctx)
	}
	if err != nil {
		return failure{err.Error()}
	}
	text := make([]byte, spec.TextBytes)
	for i := range text {
		text[i] = 'a' + byte(i%26)
	}
	it := &flow{
		flowing: spec, client: client, dialect: f.dialect, text: string(text),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	f.do(func() {
		f.heard, f.flow = newHeard(), it
		if spec.ToGroup {
			f.heard.name, f.heard.prefix = []byte(groupNamed), f.dialect.groupPrefix
		}
	})
	it.began, it.cpuS = time.Now(), cpuSeconds()
	go it.run()
	return map[string]bool{"flowing": true}
}

// settle waits for the end of the flow, or ends it if it has none, and until all has come that can be expected.
func (f *fleet) settle() any {
	it := f.flow
	if it == nil {
		return failure{"nothing flows"}
	}
	if it.Messages == 0 {
		close(it.stop)
	}
	<-it.done
	it.client.Close()
	each := 1 // messages of a record
	if it.ToGroup {
		each = it.FlowCount
	}
	answer := settled{Sent: it.sent * each, Failed: int(it.failed.Load()) * each, LagUS: it.lagUS}
	patience := time.Duration(it.PatientS * float64(time.Second))
	f.do(func() { it.PingEveryS = 0 })
	f.awaitMessages(answer.Sent-answer.Failed, patience)
	f.awaitPongs(patience)
	f.do(func() { answer.heard, f.flow = *f.heard, nil })
	answer.Seconds = answer.last.Sub(it.began).Seconds()
	answer.CPUS = cpuSeconds() - it.cpuS
	answer.LatencyUS, answer.PongUS = summarise(answer.latencies), summarise(answer.pongs)
	answer.AckUS = summarise(it.acks)
	return answer
}

// awaitMessages returns when so many have come, or when none has come for so long.
func (f *fleet) awaitMessages(count int, patience time.Duration) {
	began := time.Now()
	for {
		received, last := 0, began
		f.do(func() { received, last = f.heard.Received, f.heard.last })
		if last.Before(began) {
			last = began
		}
		if received >= count || time.Since(last) > patience {
			return
		}
		time.Sleep(tick)
	}
}

// awaitPongs returns when all pings have been answered, or after so long.
func (f *fleet) awaitPongs(patience time.Duration) {
	for began, missing := time.Now(), 1; missing > 0 && time.Since(began) < patience; time.Sleep(tick) {
		f.do(func() { missing = f.heard.PingsSent - len(f.heard.pongs) })
	}
}

// expect begins to count anew, for "await".
func (f *fleet) expect() any {
	f.do(func() { f.heard = newHeard() })
	return map[string]float64{"cpu_s": cpuSeconds()}
}

// awaited is the answer to "await".
type awaited struct {
	heard
	CPUS float64 `json:"cpu_s"`
}

func (f *fleet) await(messages int, withinS float64) any {
	f.awaitMessages(messages, time.Duration(withinS*float64(time.Second)))
	var found awaited
	f.do(func() { found.heard = *f.heard })
	found.CPUS = cpuSeconds()
	return found
}

func (it *flow) run() {
	defer close(it.done)
	order := rand.New(rand.NewPCG(1, 2)).Perm(it.FlowCount)
	for group := 0; it.Messages == 0 || it.sent < it.Messages; group++ {
		due := it.began.Add(time.Duration(float64(group*it.Each) / it.Rate * float64(time.Second)))
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			select {
			case <-it.stop:
				_ = it.client.Flush(context.Background())
				return
			default:
				time.Sleep(min(max(wait, time.Millisecond), 50*time.Millisecond))
			}
		}
		it.lagUS = max(it.lagUS, time.Since(due).Microseconds())
		id := deviceID(it.FlowFirst + order[group%len(order)])
		headers, to := it.dialect.headers(id), ""
		if it.ToGroup {
			id, headers, to = groupName, it.dialect.groupHeaders, `,"to":{"group":"`+groupName+`"}`
		}
		for range it.Each {
			it.publish(id, headers, to)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	_ = it.client.Flush(ctx)
}

// publish produces one record. The key of all records for the group is the same, so that they keep their order.
func (it *flow) publish(id string, headers []kgo.RecordHeader, to string) {
	it.sent++
	sequence++
	now := time.Now()
	value := make([]byte, 0, 192+len(it.text))
	value = append(value, `{"session_id":"a1b2c3d4e5f6g7h8","user_id":99,"device_id":"`...)
	value = append(value, id...)
	value = append(value, '"')
	value = append(value, to...)
	value = append(value, `,"text":"`...)
	value = append(value, it.text...)
	value = append(value, `","timestamp":"2024-01-15T10:30:00Z","success":true,"seq":`...)
	value = strconv.AppendInt(value, sequence, 10)
	value = append(value, `,"sent_us":`...)
	value = strconv.AppendInt(value, now.UnixMicro(), 10)
	value = append(value, '}')
	record := &kgo.Record{Key: []byte(id), Value: value, Headers: headers, Timestamp: now}
	it.client.Produce(context.Background(), record, func(_ *kgo.Record, err error) {
		if err != nil {
			it.failed.Add(1)
			return
		}
		it.acks = append(it.acks, time.Since(now).Microseconds())
	})
}

// onTick lets the devices of the flow ping, if they are to.
func (it *flow) onTick(f *fleet, now time.Time) {
	if it == nil || it.PingEveryS == 0 || now.Before(it.nextPing) {
		return
	}
	it.nextPing = now.Add(time.Duration(it.PingEveryS * float64(time.Second)))
	payload := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMicro()))
	for _, d := range f.devices[it.FlowFirst : it.FlowFirst+it.FlowCount] {
		if d.state == open {
			f.heard.PingsSent++
			d.control(opPing, payload)
		}
	}
}
