package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	startPatience = 60 * time.Second
	startPause    = 200 * time.Millisecond
)

// segmentioConsumer reads with segmentio/kafka-go.
type segmentioConsumer struct {
	hub    *Hub
	from   source
	client *kafka.Client
}

func newSegmentioConsumer(hub *Hub, from source) *segmentioConsumer {
	return &segmentioConsumer{hub, from, &kafka.Client{Addr: kafka.TCP(from.bootstrap), Timeout: 10 * time.Second}}
}

// Ready asks the broker: the reader does not tell what it has been assigned.
func (c *segmentioConsumer) Ready(ctx context.Context) bool {
	response, err := c.client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{c.from.group}})
	if err != nil || len(response.Groups) != 1 {
		return false
	}
	group := response.Groups[0]
	return group.Error == nil && group.GroupState == "Stable" && len(group.Members) > 0
}

func (c *segmentioConsumer) Run(ctx context.Context) error {
	if err := c.beginAtEnd(ctx); err != nil {
		return err
	}
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers:        []string{c.from.bootstrap},
		GroupID:        c.from.group,
		Topic:          c.from.topic,
		StartOffset:    kafka.LastOffset,
		CommitInterval: time.Second,
		MaxWait:        500 * time.Millisecond,
		ErrorLogger:    kafka.LoggerFunc(log.Printf),
	})
	defer reader.Close()
	for {
		record, err := reader.ReadMessage(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		deliver(c.hub, record.Value)
	}
}

// beginAtEnd gives a fresh group the topic's end as its offsets. The reader would look for the end by itself, but some
// time after it has joined, and what is produced meanwhile would be missed.
func (c *segmentioConsumer) beginAtEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := c.commitEnds(ctx)
		if err == nil {
			return nil
		}
		select { // a broker that has just started has no coordinator yet
		case <-ctx.Done():
			return fmt.Errorf("offsets of the group: %w", err)
		case <-time.After(startPause):
		}
	}
}

func (c *segmentioConsumer) commitEnds(ctx context.Context) error {
	topic := c.from.topic
	metadata, err := c.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return err
	}
	if len(metadata.Topics) != 1 || metadata.Topics[0].Error != nil {
		return fmt.Errorf("no topic %s", topic)
	}
	numbers := make([]int, len(metadata.Topics[0].Partitions))
	for i, partition := range metadata.Topics[0].Partitions {
		numbers[i] = partition.ID
	}
	fresh, err := c.withoutOffset(ctx, numbers)
	if err != nil || len(fresh) == 0 {
		return err
	}
	listed, err := c.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{
		Topics: map[string][]kafka.OffsetRequest{topic: fresh},
	})
	if err != nil {
		return err
	}
	commits := make([]kafka.OffsetCommit, 0, len(fresh))
	for _, partition := range listed.Topics[topic] {
		if partition.Error != nil {
			return partition.Error
		}
		commits = append(commits, kafka.OffsetCommit{Partition: partition.Partition, Offset: partition.LastOffset})
	}
	committed, err := c.client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{
		GroupID:      c.from.group,
		GenerationID: -1,
		Topics:       map[string][]kafka.OffsetCommit{topic: commits},
	})
	if err != nil {
		return err
	}
	for _, partition := range committed.Topics[topic] {
		err = errors.Join(err, partition.Error)
	}
	return err
}

// withoutOffset returns a question after the end of each partition in which the group has no offset.
func (c *segmentioConsumer) withoutOffset(ctx context.Context, numbers []int) ([]kafka.OffsetRequest, error) {
	response, err := c.client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{
		GroupID: c.from.group,
		Topics:  map[string][]int{c.from.topic: numbers},
	})
	if err != nil {
		return nil, err
	}
	if response.Error != nil {
		return nil, response.Error
	}
	var fresh []kafka.OffsetRequest
	for _, partition := range response.Topics[c.from.topic] {
		if partition.Error != nil {
			return nil, partition.Error
		}
		if partition.CommittedOffset < 0 {
			fresh = append(fresh, kafka.LastOffsetOf(partition.Partition))
		}
	}
	return fresh, nil
}
