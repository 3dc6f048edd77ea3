package main

import (
	"context"
	"log"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// franzConsumer reads with franz-go.
type franzConsumer struct {
	hub    *Hub
	client *kgo.Client
	ready  atomic.Bool
}

func newFranzConsumer(hub *Hub, from source) (*franzConsumer, error) {
	c := &franzConsumer{hub: hub}
	var err error
	c.client, err = kgo.NewClient(
		kgo.SeedBrokers(from.bootstrap),
		kgo.ConsumerGroup(from.group),
		kgo.ConsumeTopics(from.topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtEnd()),
		kgo.AdjustFetchOffsetsFn(c.settleOffsets),
		kgo.OnPartitionsLost(func(context.Context, *kgo.Client, map[string][]int32) { c.ready.Store(false) }),
	)
	return c, err
}

func (c *franzConsumer) Ready(context.Context) bool { return c.ready.Load() }

func (c *franzConsumer) Run(ctx context.Context) error {
	defer c.client.Close()
	for {
		fetches := c.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		fetches.EachError(func(topic string, partition int32, err error) {
			log.Printf("%s[%d]: %v", topic, partition, err)
		})
		fetches.EachRecord(func(record *kgo.Record) { deliver(c.hub, record.Value) })
	}
}

// settleOffsets turns "at the end" into a number while the group is being joined: the client itself would ask for it
// some time later, and what is produced meanwhile would be missed.
func (c *franzConsumer) settleOffsets(
	ctx context.Context, offsets map[string]map[int32]kgo.Offset,
) (map[string]map[int32]kgo.Offset, error) {
	for topic, partitions := range offsets {
		ends, err := kadm.NewClient(c.client).ListEndOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		if err != nil {
			return nil, err
		}
		for partition, offset := range partitions {
			end, found := ends.Lookup(topic, partition)
			if offset.EpochOffset().Offset < 0 && found {
				partitions[partition] = kgo.NewOffset().At(end.Offset)
			}
		}
		c.ready.Store(len(partitions) > 0)
	}
	return offsets, nil
}
